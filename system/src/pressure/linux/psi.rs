//! Pressure stall information: how long tasks stood still for want of memory.

use std::{
    fmt,
    fs::OpenOptions,
    io::{self, Write as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags};

use super::{
    groups,
    listen::{self, Heard, Listen},
};
use crate::{
    MemoryProbe as _, SystemProbe,
    pressure::{Polling, Pressure, PressureLevel, PressureSink, PressureSource, Watch},
};

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

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Some => "some",
            Self::Full => "full",
        })
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.stall, self.time.as_micros(), self.window.as_micros())
    }
}

/// How long tasks had stood still in all, at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sample {
    at: Instant,
    total: Duration,
}

impl Sample {
    /// Of a file's `text`: the `total=` of the line of `stall`, in microseconds.
    fn parse(text: &str, stall: Stall, at: Instant) -> Option<Self> {
        let mut fields = text.lines().map(str::split_whitespace).find_map(|mut fields| {
            let name = fields.next()?;
            (name == stall.to_string()).then_some(fields)
        })?;
        let total = fields.find_map(|field| field.strip_prefix("total="))?.parse().ok()?;
        Some(Self { at, total: Duration::from_micros(total) })
    }
}

/// Whether stalls from `before` to `now` add up to what `trigger` tells of: to its time, where a window or less has passed, and to
/// as much in each window where it was more.
fn is_reached(trigger: &Trigger, before: Sample, now: Sample) -> bool {
    let windows = now.at.saturating_duration_since(before.at).as_secs_f64() / trigger.window.as_secs_f64();
    now.total.saturating_sub(before.total).as_secs_f64() >= trigger.time.as_secs_f64() * windows.max(1.0)
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
///
/// That the kernel wakes is a hint only: the first time, and after a while without stalls, it counts ones of long ago (Linux 6.18
/// wakes for 200 ms after 15 ms of them). What counts is how much `total=` has risen since the last look, one window ago or more.
/// Stalls that begin after a while without are so reported one window later, if they go on.
///
/// Stalls of the whole system are also those of other groups, each at its own limit, which nothing that this process gives back
/// ends. So they are critical only where little is free, by the default [`Shares`](crate::pressure::Shares): of physical memory,
/// or of what a group of this process may have. Else they warn.
#[derive(Debug, Clone)]
pub struct Psi {
    name: &'static str,
    file: PathBuf,
    of_system: bool,
    warn: Trigger,
    critical: Trigger,
}

impl Psi {
    /// Of the whole system, or the container where the system shows that: `/proc/pressure/memory`.
    pub fn system() -> Self {
        Self { of_system: true, ..Self::of("psi", "/proc/pressure/memory".into()) }
    }

    /// Of the cgroup v2 `folder`: its `memory.pressure`.
    pub fn at(folder: impl AsRef<Path>) -> Self {
        Self::of("memory.pressure", folder.as_ref().join("memory.pressure"))
    }

    fn of(name: &'static str, file: PathBuf) -> Self {
        let (time, window) = (Duration::from_millis(200), Duration::from_secs(2));
        let [warn, critical] = [Stall::Some, Stall::Full].map(|stall| Trigger::new(stall, time, window));
        Self { name, file, of_system: false, warn, critical }
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

    fn sample(&self, stall: Stall) -> io::Result<Sample> {
        let text = std::fs::read_to_string(&self.file).map_err(|error| groups::failed(&self.file, "read", error))?;
        Sample::parse(&text, stall, Instant::now()).ok_or_else(|| {
            let found = format!("expected a line `{stall} ... total=<microseconds>`, found `{}`", text.trim_end());
            groups::failed(&self.file, "read", io::Error::new(io::ErrorKind::InvalidData, found))
        })
    }

    fn watched(&self, level: PressureLevel, trigger: Trigger) -> io::Result<Watched> {
        Ok(Watched { level, trigger, fd: self.open(trigger)?, before: self.sample(trigger.stall)? })
    }
}

impl PressureSource for Psi {
    fn name(&self) -> &str {
        self.name
    }

    fn watch(&self, sink: PressureSink) -> io::Result<Box<dyn Watch>> {
        let watched =
            [self.watched(PressureLevel::Critical, self.critical)?, self.watched(PressureLevel::Warn, self.warn)?];
        listen::spawn("llm-psi", Stalls { psi: self.clone(), watched }, sink)
    }
}

/// A trigger, and the total that its stalls are counted from.
struct Watched {
    level: PressureLevel,
    trigger: Trigger,
    fd: OwnedFd,
    before: Sample,
}

impl Watched {
    /// Whether there were as many stalls as the kernel says, up to `now`.
    fn confirm(&mut self, now: Sample) -> bool {
        let is_reached = is_reached(&self.trigger, self.before, now);
        // What comes sooner is part of the same window.
        if is_reached || now.at.saturating_duration_since(self.before.at) >= self.trigger.window {
            self.before = now;
        }
        is_reached
    }
}

/// The worse first.
struct Stalls {
    psi: Psi,
    watched: [Watched; 2],
}

/// How bad stalls of the system are that would be `level` in a group, where what is left is `by_rest`.
fn of_system(level: PressureLevel, by_rest: PressureLevel) -> PressureLevel {
    level.min(by_rest.max(PressureLevel::Warn))
}

/// How little is left of memory and to the groups of this process. Where that cannot be read, the stalls alone count.
fn by_rest() -> PressureLevel {
    let probe = SystemProbe::new();
    match probe.read() {
        Ok(memory) => Polling::new(Arc::new(probe)).level(&memory),
        Err(error) => {
            tracing::warn!(%error, "what is left of memory could not be read");
            PressureLevel::Critical
        }
    }
}

impl Listen for Stalls {
    fn fds(&self) -> Vec<PollFd<'_>> {
        self.watched.iter().map(|watched| PollFd::new(&watched.fd, PollFlags::PRI)).collect()
    }

    fn hear(&mut self, ready: &[PollFlags]) -> Heard {
        // A group that is removed has both flags.
        if ready.iter().any(|ready| ready.intersects(PollFlags::ERR | PollFlags::NVAL)) {
            return Heard::Gone;
        }
        let mut first = None;
        for (watched, ready) in self.watched.iter_mut().zip(ready) {
            if !ready.contains(PollFlags::PRI) {
                continue;
            }
            match self.psi.sample(watched.trigger.stall) {
                Ok(now) if watched.confirm(now) => first = first.or(Some((watched.level, watched.trigger))),
                Ok(_) => tracing::debug!(trigger = %watched.trigger, "the kernel woke for stalls of long ago"),
                Err(error) => tracing::warn!(%error, "stalls could not be read"),
            }
        }
        first.map_or(Heard::Nothing, |(level, trigger)| {
            let who = match trigger.stall {
                Stall::Some => "some tasks",
                Stall::Full => "all tasks",
            };
            let (file, time, window) = (self.psi.file.display(), trigger.time, trigger.window);
            let reason = format!("{file}: {who} stood still for {time:?} or more within {window:?}");
            let level = if self.psi.of_system { of_system(level, by_rest()) } else { level };
            Heard::Report(Pressure::new(level, self.psi.name, reason))
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
    fn the_total_of_the_line_that_is_meant_is_read() {
        let text = "some avg10=1.07 avg60=0.00 avg300=0.00 total=2238223\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=680056\n";
        let at = Instant::now();
        let total = |text, stall| Sample::parse(text, stall, at).map(|sample| sample.total);
        assert_eq!(total(text, Stall::Some), Some(Duration::from_micros(2_238_223)));
        assert_eq!(total(text, Stall::Full), Some(Duration::from_micros(680_056)));
        assert_eq!(total("some avg10=0.00 total=1", Stall::Full), None);
        assert_eq!(total("full avg10=0.00 total=x", Stall::Full), None);
    }

    #[test]
    fn stalls_count_where_they_came_within_a_window() {
        let trigger = Psi::system().critical;
        let start = Instant::now();
        let sample = |at, total| Sample {
            at: start + Duration::from_millis(at),
            total: Duration::from_secs(3) + Duration::from_micros(total),
        };
        let reached = |at, total| is_reached(&trigger, sample(0, 0), sample(at, total));
        // What the kernel woke for, after a long time without.
        assert!(!reached(920, 22_600));
        assert!(!reached(2000, 199_999));
        assert!(reached(2000, 200_000));
        // Sooner it is as much, and later as much in each window.
        assert!(!reached(100, 199_999));
        assert!(reached(100, 200_000));
        assert!(!reached(6000, 599_000));
        assert!(reached(6000, 601_000));
        assert!(!is_reached(&trigger, sample(0, 200_000), sample(10, 0)));
    }

    #[test]
    fn stalls_of_the_system_are_critical_only_where_little_is_left() {
        use PressureLevel::{Critical, Normal, Warn};
        let levels = |stalls| [Normal, Warn, Critical].map(|by_rest| of_system(stalls, by_rest));
        assert_eq!(levels(Warn), [Warn; 3]);
        assert_eq!(levels(Critical), [Warn, Warn, Critical]);
        assert!(Psi::system().of_system && !Psi::at("/").of_system);
    }

    #[test]
    fn a_wake_counts_only_with_stalls_and_the_worse_of_two_triggers_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("memory.pressure");
        std::fs::write(&file, "").unwrap();
        let second = Duration::from_secs(1);
        // Within windows that no test outlasts.
        let trigger = |stall| Trigger::new(stall, second, 100_000 * second);
        let psi = Psi::at(folder.path()).with_triggers(trigger(Stall::Some), trigger(Stall::Full));
        let triggers = [(PressureLevel::Critical, psi.critical), (PressureLevel::Warn, psi.warn)];
        let opened = triggers.map(|(level, trigger)| (level, trigger, psi.open(trigger).unwrap()));
        // As the kernel shows it, whatever is written to it.
        let stalled = |some: u64, full: u64| {
            let line =
                |name, seconds| format!("{name} avg10=0.00 avg60=0.00 avg300=0.00 total={}\n", seconds * 1_000_000);
            std::fs::write(&file, line("some", some) + &line("full", full)).unwrap();
        };
        stalled(70, 30);
        let watched = opened.map(|(level, trigger, fd)| {
            let before = psi.sample(trigger.stall).unwrap();
            Watched { level, trigger, fd, before }
        });
        let mut stalls = Stalls { psi: psi.clone(), watched };
        let (pri, none) = (PollFlags::PRI, PollFlags::empty());
        let mut level = |ready: [PollFlags; 2]| match stalls.hear(&ready) {
            Heard::Report(pressure) => Some((pressure.level, pressure.reason)),
            heard => {
                assert_eq!(heard, if ready[1].contains(PollFlags::ERR) { Heard::Gone } else { Heard::Nothing });
                None
            }
        };
        let of = |who| format!("{}: {who} stood still for 1s or more within 100000s", file.display());
        let (warn, critical) =
            (Some((PressureLevel::Warn, of("some tasks"))), Some((PressureLevel::Critical, of("all tasks"))));
        // Stalls of long ago: the kernel wakes, and nothing has risen.
        assert_eq!(level([pri, pri]), None);
        stalled(71, 30);
        assert_eq!(level([pri, pri]), warn);
        assert_eq!(level([pri, pri]), None);
        stalled(72, 31);
        assert_eq!(level([none, none]), None);
        assert_eq!(level([pri, pri]), critical);
        // Both were told of by that.
        assert_eq!(level([none, pri]), None);
        stalled(73, 31);
        assert_eq!(level([none, pri]), warn);
        // A file that cannot be read tells of nothing.
        std::fs::write(&file, "").unwrap();
        assert_eq!(level([pri, pri]), None);
        assert_eq!(level([none, pri | PollFlags::ERR]), None);
    }

    #[test]
    fn what_was_seen_goes_on_to_count_until_a_window_has_passed() {
        let trigger = Psi::system().warn;
        let start = Instant::now();
        let sample = |at, total| Sample { at: start + Duration::from_millis(at), total: Duration::from_millis(total) };
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("memory.pressure"), "").unwrap();
        let fd = Psi::at(folder.path()).open(trigger).unwrap();
        let mut watched = Watched { level: PressureLevel::Warn, trigger, fd, before: sample(0, 50) };
        let mut confirm = |at, total| watched.confirm(sample(at, total));
        assert_eq!([confirm(500, 150), confirm(1000, 250), confirm(1100, 449)], [false, true, false]);
        // After a minute that many are few, and begin anew.
        assert_eq!([confirm(60_000, 700), confirm(62_000, 899), confirm(64_000, 1099)], [false, false, true]);
    }
}
