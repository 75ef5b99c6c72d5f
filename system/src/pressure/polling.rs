//! Pressure that is looked for.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{
    Pressure, PressureLevel, PressureSink, PressureSource, Shares, Watch,
    watch::{join, tell},
};
use crate::{MemoryLimit, MemoryProbe, SystemMemory};

/// Looks at a probe again and again: the fallback where the system tells of nothing, and behind what it tells of. It reports a
/// level for as long as it lasts, each time that it looks, and [`PressureLevel::Normal`] once when it is over.
#[derive(Clone)]
pub struct Polling {
    probe: Arc<dyn MemoryProbe>,
    every: Duration,
    shares: Shares,
}

impl Polling {
    /// Looks at `probe` twice a second, by the default [`Shares`]: warns when less than a tenth of physical memory or of a limit
    /// is free, and less than a twentieth is critical.
    pub fn new(probe: Arc<dyn MemoryProbe>) -> Self {
        Self { probe, every: Duration::from_millis(500), shares: Shares::default() }
    }

    /// Sets how often it looks.
    pub fn every(mut self, time: Duration) -> Self {
        self.every = time;
        self
    }

    /// Sets the shares of physical memory, and of each limit, below which what is free of it is short, from 0 to 1.
    pub fn below(mut self, warn: f64, critical: f64) -> Self {
        self.shares = Shares::new(warn, critical);
        self
    }

    /// How short `memory` is: physical memory, and each limit, by what is free of its own bytes; of these the worst.
    pub fn level(&self, memory: &SystemMemory) -> PressureLevel {
        self.look(memory).level
    }

    fn look(&self, memory: &SystemMemory) -> Pressure {
        let MemoryLimit { bytes, available, by } = memory.shortest();
        let reason = format!("{available} of {bytes} bytes are free ({by})");
        Pressure::new(self.shares.level(available, bytes), self.name(), reason)
    }

    /// What there is to say after a look that found `before`. A look that fails changes nothing.
    fn next(&self, before: &mut PressureLevel) -> Option<Pressure> {
        // A probe may be an application's. One that panics once is asked again all the same.
        let pressure = match catch_unwind(AssertUnwindSafe(|| self.probe.read())) {
            Ok(Ok(memory)) => self.look(&memory),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the memory could not be read");
                return None;
            }
            Err(_) => {
                tracing::error!("the probe of the memory panicked");
                return None;
            }
        };
        let is_news = pressure.level.max(*before) > PressureLevel::Normal;
        *before = pressure.level;
        is_news.then_some(pressure)
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
                if let Some(pressure) = polling.next(&mut before) {
                    tell(&sink, pressure);
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
        join(self.thread.take());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc::channel};

    use super::*;
    use crate::ScriptedProbe;

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
        let late = polling.below(0.02, 0.01);
        let levels = [20, 19, 9].map(|free| late.level(&SystemMemory::new(1000, free)));
        assert_eq!(levels, [PressureLevel::Normal, PressureLevel::Warn, PressureLevel::Critical]);
    }

    #[test]
    fn each_bound_is_short_by_its_own_bytes_and_the_shortest_is_named() {
        let polling = polling(ScriptedProbe::new(SystemMemory::new(1, 1)));
        let limit = |bytes, available, by| MemoryLimit::new(bytes, available, by);
        let of = |memory: SystemMemory, limits: &[MemoryLimit]| {
            let pressure = polling.look(&memory.with_limits(limits.to_vec()));
            (pressure.level, pressure.reason)
        };
        let said = |level, reason: &str| (level, reason.to_owned());
        let small = [limit(200, 19, "memory.max")];
        assert_eq!(
            of(SystemMemory::new(1000, 900), &small),
            said(PressureLevel::Warn, "19 of 200 bytes are free (memory.max)")
        );
        // The group has enough, and the machine has not: by the group's bytes it would have.
        assert_eq!(
            of(SystemMemory::new(6400, 100), &[limit(400, 300, "memory.max")]),
            said(PressureLevel::Critical, "100 of 6400 bytes are free (physical memory)")
        );
        // So with a group above.
        assert_eq!(
            of(SystemMemory::new(6400, 6000), &[limit(800, 600, "own"), limit(1600, 70, "above")]),
            said(PressureLevel::Critical, "70 of 1600 bytes are free (above)")
        );
        // And where what is left in it is not the least.
        assert_eq!(
            of(SystemMemory::new(6400, 6000), &[limit(200, 60, "own"), limit(1600, 70, "above")]),
            said(PressureLevel::Critical, "70 of 1600 bytes are free (above)")
        );
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
    fn a_probe_or_a_sink_that_panics_is_called_again() {
        let mut looks = 0;
        let probe = ScriptedProbe::from_fn(move || {
            looks += 1;
            assert_ne!(looks, 2, "as the test wants");
            Ok(SystemMemory::new(1000, 30))
        });
        let (sender, heard) = channel();
        let sink: PressureSink = Arc::new(move |pressure: Pressure| {
            sender.send(pressure.level).unwrap();
            panic!("as the test wants");
        });
        let watch = polling(probe).watch(sink).unwrap();
        let heard: Vec<_> = heard.iter().take(3).collect();
        assert_eq!(heard, [PressureLevel::Critical; 3]);
        drop(watch);
    }

    #[test]
    fn a_sink_may_drop_the_watch_that_it_is_called_by() {
        let watch = Arc::new(Mutex::new(None::<Box<dyn Watch>>));
        let (dropped, drops) = channel();
        let sink: PressureSink = Arc::new({
            let watch = watch.clone();
            move |_| {
                let watch = watch.lock().unwrap().take();
                let is_first = watch.is_some();
                drop(watch);
                // Behind the drop, which must return.
                dropped.send(is_first).unwrap();
            }
        });
        // Held until it is there, so that the sink cannot be first.
        let mut held = watch.lock().unwrap();
        *held = Some(polling(ScriptedProbe::new(SystemMemory::new(1000, 30))).watch(sink).unwrap());
        drop(held);
        let patience = Duration::from_secs(60);
        assert_eq!(drops.recv_timeout(patience), Ok(true));
        // The thread gives the sink up as it ends.
        assert_eq!(drops.recv_timeout(patience), Err(RecvTimeoutError::Disconnected));
    }

    #[test]
    fn a_probe_that_cannot_be_read_is_an_error_at_once() {
        let probe = ScriptedProbe::from_fn(|| Err(io::Error::other("no such file")));
        let error = polling(probe).watch(Arc::new(|_| ())).map(drop).unwrap_err();
        assert_eq!(error.to_string(), "no such file");
    }
}
