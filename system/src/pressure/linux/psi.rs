//! Pressure stall information: how long tasks stood still for want of memory.

use std::{
    fmt,
    fs::OpenOptions,
    io::{self, Write as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::event::{PollFd, PollFlags};

use super::{
    groups,
    listen::{self, Heard, Listen},
};
use crate::pressure::{Pressure, PressureLevel, PressureSink, PressureSource, Watch};

/// Whose stalls count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stall {
    /// Time in which at least one task stood still.
    Some,
    /// Time in which no task did any work.
    Full,
}

/// When the kernel tells of stalls: once they add up to `time` within `window`, and at most once in each window
/// (Documentation/accounting/psi.rst). Displayed as it is written to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Trigger {
    /// Whose stalls.
    pub stall: Stall,
    /// How much of them, above 0 and up to the window.
    pub time: Duration,
    /// Within which time: from 500 ms to 10 s, and without CAP_SYS_RESOURCE a multiple of 2 s.
    pub window: Duration,
}

impl Trigger {
    /// Tells of `time` of `stall` within `window`.
    pub fn new(stall: Stall, time: Duration, window: Duration) -> Self {
        Self { stall, time, window }
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stall = match self.stall {
            Stall::Some => "some",
            Stall::Full => "full",
        };
        write!(f, "{stall} {} {}", self.time.as_micros(), self.window.as_micros())
    }
}

/// Hears of stalls of the whole system, or of a cgroup v2 and those below it.
///
/// By itself it warns of 200 ms in 2 s in which a task stood still, which is what systemd tells services of
/// (`MemoryPressureThresholdSec=`), and finds the same time critical in which none did any work. Android's lmkd kills from 70 ms of
/// the one and 700 ms of the other in 1 s; here less is lost by being early. Systemd-oomd's 60 % for 30 s are far too late for
/// whoever wants to be there afterwards.
///
/// The kernel looks at a trigger of an unprivileged process every 2 s: a group without swap can fill up and be killed before. What
/// tells of that are the other sources; this one knows of a system that thrashes.
#[derive(Debug, Clone)]
pub struct Psi {
    name: &'static str,
    file: PathBuf,
    warn: Trigger,
    critical: Trigger,
}

impl Psi {
    /// Of the whole system, or the container where the system shows that: `/proc/pressure/memory`.
    pub fn system() -> Self {
        Self::of("psi", "/proc/pressure/memory".into())
    }

    /// Of the cgroup v2 `folder`: its `memory.pressure`.
    pub fn at(folder: impl AsRef<Path>) -> Self {
        Self::of("memory.pressure", folder.as_ref().join("memory.pressure"))
    }

    fn of(name: &'static str, file: PathBuf) -> Self {
        let (time, window) = (Duration::from_millis(200), Duration::from_secs(2));
        let [warn, critical] = [Stall::Some, Stall::Full].map(|stall| Trigger::new(stall, time, window));
        Self { name, file, warn, critical }
    }

    /// Sets what is told of.
    pub fn with_triggers(mut self, warn: Trigger, critical: Trigger) -> Self {
        (self.warn, self.critical) = (warn, critical);
        self
    }

    /// The file as the kernel waits with it: each trigger needs one of its own.
    fn open(&self, trigger: Trigger) -> io::Result<OwnedFd> {
        let failed = |tried: &str, error| groups::failed(&self.file, tried, error);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.file)
            .map_err(|error| failed("open to be told of stalls (older kernels want CAP_SYS_RESOURCE)", error))?;
        // Whole and at once, with its end: the kernel parses each write.
        file.write_all(format!("{trigger}\0").as_bytes())
            .map_err(|error| failed(&format!("set the trigger `{trigger}`"), error))?;
        Ok(file.into())
    }
}

impl PressureSource for Psi {
    fn name(&self) -> &str {
        self.name
    }

    fn watch(&self, sink: PressureSink) -> io::Result<Box<dyn Watch>> {
        let fds = [self.open(self.critical)?, self.open(self.warn)?];
        listen::spawn("llm-psi", Stalls { psi: self.clone(), fds }, sink)
    }
}

/// The worse first.
struct Stalls {
    psi: Psi,
    fds: [OwnedFd; 2],
}

impl Listen for Stalls {
    fn fds(&self) -> Vec<PollFd<'_>> {
        self.fds.iter().map(|fd| PollFd::new(fd, PollFlags::PRI)).collect()
    }

    fn hear(&mut self, ready: &[PollFlags]) -> Heard {
        // A group that is removed has both flags.
        if ready.iter().any(|ready| ready.intersects(PollFlags::ERR | PollFlags::NVAL)) {
            return Heard::Gone;
        }
        let triggers = [(PressureLevel::Critical, self.psi.critical), (PressureLevel::Warn, self.psi.warn)];
        let first = triggers.iter().zip(ready).find(|(_, ready)| ready.contains(PollFlags::PRI));
        first.map_or(Heard::Nothing, |((level, trigger), _)| {
            let who = match trigger.stall {
                Stall::Some => "some tasks",
                Stall::Full => "all tasks",
            };
            let (file, time, window) = (self.psi.file.display(), trigger.time, trigger.window);
            let reason = format!("{file}: {who} stood still for {time:?} or more within {window:?}");
            Heard::Report(Pressure::new(*level, self.psi.name, reason))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn ignore() -> PressureSink {
        Arc::new(|_| ())
    }

    #[test]
    fn triggers_are_written_as_the_kernel_reads_them() {
        let psi = Psi::system();
        assert_eq!(psi.warn.to_string(), "some 200000 2000000");
        assert_eq!(psi.critical.to_string(), "full 200000 2000000");
        let fine = Trigger::new(Stall::Some, Duration::from_micros(1_500), Duration::from_millis(500));
        assert_eq!(fine.to_string(), "some 1500 500000");
    }

    #[test]
    fn each_trigger_is_written_with_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("memory.pressure");
        std::fs::write(&file, "").unwrap();
        let psi = Psi::at(folder.path());
        let written = |psi: &Psi| {
            [psi.critical, psi.warn].map(|trigger| {
                drop(psi.open(trigger).unwrap());
                std::fs::read_to_string(&file).unwrap()
            })
        };
        assert_eq!(written(&psi), ["full 200000 2000000\0", "some 200000 2000000\0"]);
        let trigger =
            |milliseconds| Trigger::new(Stall::Some, Duration::from_millis(milliseconds), Duration::from_secs(4));
        let psi = psi.with_triggers(trigger(150), trigger(950));
        assert_eq!(written(&psi), ["some 950000 4000000\0", "some 150000 4000000\0"]);
    }

    #[test]
    fn a_file_that_is_not_there_is_a_source_that_is_not_supported() {
        let folder = tempfile::tempdir().unwrap();
        let error = Psi::at(folder.path()).watch(ignore()).map(drop).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        let file = folder.path().join("memory.pressure");
        assert!(error.to_string().starts_with(file.to_str().unwrap()), "{error}");
    }

    #[test]
    fn the_worse_of_two_triggers_is_told_and_the_flag_of_an_error_is_a_group_that_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("memory.pressure");
        std::fs::write(&file, "").unwrap();
        let psi = Psi::at(folder.path());
        let fds = [psi.open(psi.critical).unwrap(), psi.open(psi.warn).unwrap()];
        let mut stalls = Stalls { psi, fds };
        let (pri, none) = (PollFlags::PRI, PollFlags::empty());
        let mut level = |ready: [PollFlags; 2]| match stalls.hear(&ready) {
            Heard::Report(pressure) => Some((pressure.level, pressure.reason)),
            heard => {
                assert_eq!(heard, if ready == [none; 2] { Heard::Nothing } else { Heard::Gone });
                None
            }
        };
        let of = |who| format!("{}: {who} stood still for 200ms or more within 2s", file.display());
        assert_eq!(level([none, pri]), Some((PressureLevel::Warn, of("some tasks"))));
        assert_eq!(level([pri, pri]), Some((PressureLevel::Critical, of("all tasks"))));
        assert_eq!(level([none, none]), None);
        assert_eq!(level([none, pri | PollFlags::ERR]), None);
    }
}
