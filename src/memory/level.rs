//! How short memory is, from reports that come as they like.

use std::time::Duration;

use super::pressure::PressureLevel;

/// The level that reports add up to. It rises at once, and falls only when nobody has reported it for a while: otherwise what
/// was given back would be taken again, and the pressure be back.
#[derive(Debug)]
pub(super) struct Level {
    settle: Duration,
    calm: Duration,
    /// When each was reported last: warn, critical.
    reported: [Option<Duration>; 2],
    now: PressureLevel,
    /// When something was last done about it, and at which level.
    acted: Option<(Duration, PressureLevel)>,
}

impl Level {
    /// `settle` and `calm` as in [`super::MemoryPolicy`].
    pub(super) fn new(settle: Duration, calm: Duration) -> Self {
        Self { settle, calm, reported: [None; 2], now: PressureLevel::Normal, acted: None }
    }

    pub(super) fn now(&self) -> PressureLevel {
        self.now
    }

    /// Takes a report. Gives the level at which something is to be done about it: each time that the level rises, and while
    /// reports go on, once in a while.
    pub(super) fn report(&mut self, level: PressureLevel, at: Duration) -> Option<PressureLevel> {
        let index = match level {
            PressureLevel::Normal => return None,
            PressureLevel::Warn => 0,
            PressureLevel::Critical => 1,
        };
        self.reported[index] = Some(at);
        self.now = self.now.max(level);
        let is_due = match self.acted {
            Some((last, acted)) => level > acted || at.saturating_sub(last) >= self.settle,
            None => true,
        };
        is_due.then(|| {
            self.acted = Some((at, level));
            level
        })
    }

    /// Says that what is done about a level was done by `at`.
    pub(super) fn done(&mut self, at: Duration) {
        if let Some((last, _)) = &mut self.acted {
            *last = at;
        }
    }

    /// Lets the level fall if nobody has reported it for long enough. Gives the new one if it fell.
    pub(super) fn fall(&mut self, at: Duration) -> Option<PressureLevel> {
        let lasts = |reported: Option<Duration>| reported.is_some_and(|last| at.saturating_sub(last) < self.calm);
        let level = match self.reported.map(lasts) {
            [_, true] => PressureLevel::Critical,
            [true, false] => PressureLevel::Warn,
            [false, false] => PressureLevel::Normal,
        };
        let fell = level < self.now;
        if fell {
            self.now = level;
            // What rises again is acted on at once.
            self.acted = self.acted.map(|(last, acted)| (last, acted.min(level)));
            if level == PressureLevel::Normal {
                self.acted = None;
            }
        }
        fell.then_some(level)
    }

    /// When it may fall next.
    pub(super) fn falls_at(&self) -> Option<Duration> {
        let of = |level: PressureLevel, reported: Option<Duration>| reported.filter(|_| self.now >= level);
        let [warn, critical] = self.reported;
        let lasts = [of(PressureLevel::Critical, critical), of(PressureLevel::Warn, warn)];
        let last = if self.now == PressureLevel::Critical { lasts[0] } else { lasts[1] };
        last.map(|last| last.saturating_add(self.calm))
    }

    /// Forgets everything.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.settle, self.calm);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use PressureLevel::*;

    fn at(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn level() -> Level {
        Level::new(at(1.0), at(10.0))
    }

    #[test]
    fn it_rises_at_once_and_acts_once_in_a_while() {
        let mut level = level();
        assert_eq!(level.report(Normal, at(0.0)), None);
        assert_eq!(level.report(Warn, at(0.1)), Some(Warn));
        assert_eq!(level.report(Warn, at(0.9)), None);
        // Higher than what was acted on.
        assert_eq!(level.report(Critical, at(0.9)), Some(Critical));
        assert_eq!(level.report(Warn, at(1.5)), None);
        assert_eq!(level.report(Critical, at(1.8)), None);
        assert_eq!(level.report(Critical, at(1.9)), Some(Critical));
        level.done(at(2.5));
        assert_eq!(level.report(Critical, at(3.0)), None);
        assert_eq!(level.report(Critical, at(3.5)), Some(Critical));
        assert_eq!(level.now(), Critical);
    }

    #[test]
    fn it_falls_when_nobody_has_reported_it_for_long_enough() {
        let mut level = level();
        level.report(Warn, at(0.0));
        level.report(Critical, at(1.0));
        level.report(Warn, at(5.0));
        assert_eq!(level.falls_at(), Some(at(11.0)));
        assert_eq!(level.fall(at(10.9)), None);
        // That the system says that all is well does not hurry it.
        assert_eq!(level.report(Normal, at(10.9)), None);
        assert_eq!(level.fall(at(11.0)), Some(Warn));
        assert_eq!((level.now(), level.falls_at()), (Warn, Some(at(15.0))));
        assert_eq!(level.fall(at(15.0)), Some(Normal));
        assert_eq!((level.now(), level.falls_at()), (Normal, None));
        assert_eq!(level.fall(at(99.0)), None);
    }

    #[test]
    fn one_that_is_never_over_is_no_overflow() {
        let mut level = Level::new(at(1.0), Duration::MAX);
        level.report(Critical, at(5.0));
        assert_eq!((level.falls_at(), level.fall(at(1e9))), (Some(Duration::MAX), None));
    }

    #[test]
    fn it_may_fall_by_two_at_once_and_what_rises_again_is_acted_on() {
        let mut level = level();
        level.report(Critical, at(0.0));
        assert_eq!(level.fall(at(10.0)), Some(Normal));
        assert_eq!(level.report(Warn, at(10.1)), Some(Warn));
        let mut level = self::level();
        level.report(Critical, at(0.0));
        level.report(Warn, at(9.9));
        assert_eq!(level.fall(at(10.0)), Some(Warn));
        assert_eq!(level.report(Critical, at(10.1)), Some(Critical));
    }
}
