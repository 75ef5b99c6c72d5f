//! When memory runs short.
//!
//! A source reports each time that it hears of pressure, as often as it hears of it, and reports [`PressureLevel::Normal`] only
//! where the system says so itself. What follows from a report, and when pressure is over, is for whoever listens.

#[cfg(any(test, target_vendor = "apple"))]
mod apple;
#[cfg(target_os = "linux")]
pub mod linux;
mod manual;
mod polling;
mod shares;
mod watch;
#[cfg(any(test, windows))]
mod windows;

#[cfg(target_vendor = "apple")]
use apple as platform;
#[cfg(target_os = "linux")]
use linux as platform;
#[cfg(windows)]
use windows as platform;

/// A system without a way to hear of pressure.
#[cfg(not(any(target_os = "linux", target_vendor = "apple", windows)))]
mod platform {
    pub(super) fn sources() -> Vec<std::sync::Arc<dyn super::PressureSource>> {
        Vec::new()
    }
}

pub use manual::ManualPressure;
pub use polling::Polling;
pub use shares::Shares;
pub use watch::{PressureSink, Watch};

use std::{fmt, io, sync::Arc};

/// How short memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PressureLevel {
    /// There is enough.
    Normal,
    /// It runs short: what costs little to rebuild should go.
    Warn,
    /// Whoever does not give memory back now may be killed.
    Critical,
}

/// A report of pressure.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pressure {
    /// How short memory is.
    pub level: PressureLevel,
    /// The name of the source that says so.
    pub source: String,
    /// What it has seen, for people: the file and its value, the event.
    pub reason: String,
}

impl Pressure {
    /// A report of `source`.
    pub fn new(level: PressureLevel, source: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { level, source: source.into(), reason: reason.into() }
    }
}

/// Says when memory runs short.
pub trait PressureSource: Send + Sync {
    /// Its name in reports: `psi`, `memory.events`, ...
    fn name(&self) -> &str;

    /// Begins to report to `sink`, until what is returned is dropped. Nothing of it runs before.
    ///
    /// # Errors
    /// What the system said, with the file or call: [`io::ErrorKind::Unsupported`] where this machine has no such source.
    fn watch(&self, sink: PressureSink) -> io::Result<Box<dyn Watch>>;
}

const _: fn(&dyn PressureSource) = |_| {};

impl fmt::Display for PressureLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Normal => "normal",
            Self::Warn => "warn",
            Self::Critical => "critical",
        })
    }
}

/// The sources of this system, best first: those that hear of pressure as it comes, and [`Polling`] of `probe` behind them,
/// which sees what these do not.
pub fn of_system(probe: Arc<dyn crate::MemoryProbe>) -> Vec<Arc<dyn PressureSource>> {
    let mut sources = platform::sources();
    sources.push(Arc::new(Polling::new(probe)));
    sources
}
