//! Bytes per second over the last seconds.

use std::{collections::VecDeque, time::Duration};

/// How far back a speed looks.
const WINDOW: Duration = Duration::from_secs(5);
/// Readings nearer to each other than this are one, which bounds their number.
const APART: Duration = Duration::from_millis(100);
/// Over less time than this a speed would be noise.
const LEAST: Duration = Duration::from_millis(500);

/// A sliding window over the bytes that came.
#[derive(Debug, Default)]
pub(super) struct Speed {
    /// Bytes that came in all.
    bytes: u64,
    /// When how many had come, oldest first.
    readings: VecDeque<(Duration, u64)>,
}

impl Speed {
    /// `n` bytes came by the time `now`.
    pub(super) fn add(&mut self, now: Duration, n: u64) {
        if self.readings.back().is_none_or(|(at, _)| now.saturating_sub(*at) >= APART) {
            self.readings.push_back((now, self.bytes));
        }
        self.bytes += n;
        // The youngest reading that is outside of the window stays: the window begins at it.
        while self.readings.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= WINDOW) {
            self.readings.pop_front();
        }
    }

    /// Bytes per second up to `now`; `None` before that can be said.
    pub(super) fn per_second(&self, now: Duration) -> Option<f64> {
        let begin = self.readings.iter().rev().find(|(at, _)| now.saturating_sub(*at) >= WINDOW);
        let (at, before) = begin.or(self.readings.front())?;
        let time = now.saturating_sub(*at);
        (time >= LEAST).then(|| (self.bytes - before) as f64 / time.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn the_speed_is_that_of_the_last_five_seconds() {
        let mut speed = Speed::default();
        assert_eq!(speed.per_second(ms(0)), None);
        speed.add(ms(0), 100);
        assert_eq!(speed.per_second(ms(499)), None);
        assert_eq!(speed.per_second(ms(500)), Some(200.0));
        // 1000 bytes each second for 20 seconds, then 3000 each second for 5.
        let mut speed = Speed::default();
        for t in 0..200 {
            speed.add(ms(t * 100), 100);
        }
        assert_eq!(speed.per_second(ms(20_000)), Some(1000.0));
        for t in 200..250 {
            speed.add(ms(t * 100), 300);
        }
        assert_eq!(speed.per_second(ms(25_000)), Some(3000.0));
    }

    #[test]
    fn a_stall_brings_the_speed_to_zero() {
        let mut speed = Speed::default();
        for t in 0..20 {
            speed.add(ms(t * 100), 100);
        }
        assert_eq!(speed.per_second(ms(3900)), Some(2000.0 / 3.9));
        assert!(speed.per_second(ms(7000)).unwrap() < 100.0, "{:?}", speed.per_second(ms(7000)));
    }

    #[test]
    fn a_year_of_bytes_is_a_bounded_number_of_readings() {
        let mut speed = Speed::default();
        for t in 0..100_000 {
            speed.add(ms(t), 1);
        }
        assert!(speed.readings.len() <= 52, "{}", speed.readings.len());
    }

    #[test]
    fn a_clock_that_steps_back_does_no_harm() {
        let mut speed = Speed::default();
        speed.add(ms(9000), 10);
        speed.add(ms(1000), 10);
        assert_eq!(speed.per_second(ms(1000)), None);
    }
}
