//! Pressure that is looked for.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{Pressure, PressureLevel, PressureSink, PressureSource, Shares, Watch};
use crate::{MemoryProbe, SystemMemory};

/// Looks at a probe again and again: the fallback where the system tells of nothing, and behind what it tells of. It reports a
/// level for as long as it lasts, each time that it looks, and [`PressureLevel::Normal`] once when it is over.
#[derive(Clone)]
pub struct Polling {
    probe: Arc<dyn MemoryProbe>,
    every: Duration,
    shares: Shares,
}

impl Polling {
    /// Looks at `probe` twice a second, by the default [`Shares`]: warns when less than a tenth of what may be used is free, and
    /// less than a twentieth is critical.
    pub fn new(probe: Arc<dyn MemoryProbe>) -> Self {
        Self { probe, every: Duration::from_millis(500), shares: Shares::default() }
    }

    /// Sets how often it looks.
    pub fn every(mut self, time: Duration) -> Self {
        self.every = time;
        self
    }

    /// Sets the shares of [`SystemMemory::usable`] below which free memory is short, from 0 to 1.
    pub fn below(mut self, warn: f64, critical: f64) -> Self {
        self.shares = Shares::new(warn, critical);
        self
    }

    /// How short `memory` is.
    pub fn level(&self, memory: &SystemMemory) -> PressureLevel {
        self.shares.level(memory.free(), memory.usable())
    }

    fn report(&self, memory: &SystemMemory, level: PressureLevel) -> Pressure {
        let by = memory.limit.as_ref().filter(|limit| limit.available < memory.available);
        let of = by.map_or("physical memory", |limit| &limit.by);
        let reason = format!("{} of {} bytes are free ({of})", memory.free(), memory.usable());
        Pressure::new(level, self.name(), reason)
    }
}

impl PressureSource for Polling {
    fn name(&self) -> &str {
        "polling"
    }

    fn watch(&self, sink: PressureSink) -> io::Result<Box<dyn Watch>> {
        // So that whoever cannot read it hears of that at once, and not a thread that nobody asks.
        self.probe.read()?;
        let (stop, stopped) = mpsc::channel::<()>();
        let polling = self.clone();
        let thread = thread::Builder::new().name("llm-memory-poll".into()).spawn(move || {
            let mut before = PressureLevel::Normal;
            while stopped.recv_timeout(polling.every) == Err(RecvTimeoutError::Timeout) {
                match polling.probe.read() {
                    Ok(memory) => {
                        let level = polling.level(&memory);
                        if level > PressureLevel::Normal || before > PressureLevel::Normal {
                            sink(polling.report(&memory, level));
                        }
                        before = level;
                    }
                    Err(error) => tracing::warn!(%error, "the memory could not be read"),
                }
            }
        })?;
        Ok(Box::new(Running { stop: Some(stop), thread: Some(thread) }))
    }
}

struct Running {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch for Running {}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the thread that looks at the memory panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::{MemoryLimit, ScriptedProbe};

    fn polling(probe: ScriptedProbe) -> Polling {
        Polling::new(Arc::new(probe)).every(Duration::ZERO)
    }

    #[test]
    fn shares_of_what_may_be_used_are_levels() {
        let polling = polling(ScriptedProbe::new(SystemMemory::new(1, 1)));
        let of = |memory| polling.level(&memory);
        assert_eq!(of(SystemMemory::new(1000, 100)), PressureLevel::Normal);
        assert_eq!(of(SystemMemory::new(1000, 99)), PressureLevel::Warn);
        assert_eq!(of(SystemMemory::new(1000, 50)), PressureLevel::Warn);
        assert_eq!(of(SystemMemory::new(1000, 49)), PressureLevel::Critical);
        assert_eq!(of(SystemMemory::new(0, 0)), PressureLevel::Critical);
        let limit = MemoryLimit::new(200, 19, "memory.max");
        let limited = SystemMemory::new(1000, 900).with_limit(limit);
        assert_eq!(of(limited.clone()), PressureLevel::Warn);
        assert!(polling.report(&limited, PressureLevel::Warn).reason.contains("19 of 200 bytes are free (memory.max)"));
    }

    #[test]
    fn a_level_is_reported_while_it_lasts_and_its_end_once() {
        let frees = [100, 30, 70, 60, 200, 300, 80];
        let mut at = frees.into_iter();
        let probe = ScriptedProbe::from_fn(move || Ok(SystemMemory::new(1000, at.next().unwrap_or(1000))));
        let (sender, heard) = channel();
        let sink: PressureSink = Arc::new(move |pressure: Pressure| {
            let _ = sender.send(pressure.level);
        });
        // The first is read as it begins, and reported by nobody.
        let watch = polling(probe).watch(sink).unwrap();
        let heard: Vec<_> = heard.iter().take(6).collect();
        drop(watch);
        use PressureLevel::*;
        assert_eq!(heard, [Critical, Warn, Warn, Normal, Warn, Normal]);
    }

    #[test]
    fn a_probe_that_cannot_be_read_is_an_error_at_once() {
        let probe = ScriptedProbe::from_fn(|| Err(io::Error::other("no such file")));
        let error = polling(probe).watch(Arc::new(|_| ())).map(drop).unwrap_err();
        assert_eq!(error.to_string(), "no such file");
    }
}
