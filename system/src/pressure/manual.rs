//! Pressure that somebody tells of.

use std::{
    io, mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, ThreadId},
};

use super::{Pressure, PressureLevel, PressureSink, PressureSource, Watch, watch::tell};

/// Reports what it is told: by an application that hears of pressure in a way of its own, or by a test. Clones share everything.
#[derive(Clone, Default)]
pub struct ManualPressure {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    sinks: Mutex<Sinks>,
    /// Told whenever a call is over.
    returned: Condvar,
}

#[derive(Default)]
struct Sinks {
    next: u64,
    all: Vec<(u64, PressureSink)>,
    /// Which of them are being called, and where.
    calls: Vec<(u64, ThreadId)>,
}

impl Shared {
    fn sinks(&self) -> MutexGuard<'_, Sinks> {
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls the sink `id` without the lock, so that it may watch, report, and drop its watch. Not if that was dropped meanwhile.
    fn call(&self, id: u64, pressure: Pressure) {
        let call = (id, thread::current().id());
        let sink = {
            let mut sinks = self.sinks();
            let Some((_, sink)) = sinks.all.iter().find(|(of, _)| *of == id) else { return };
            let sink = sink.clone();
            sinks.calls.push(call);
            sink
        };
        tell(&sink, pressure);
        drop(sink);
        let mut sinks = self.sinks();
        if let Some(at) = sinks.calls.iter().position(|other| *other == call) {
            sinks.calls.swap_remove(at);
        }
        self.returned.notify_all();
    }
}

impl ManualPressure {
    /// A source that nobody watches yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reports `level` to whoever watches, with a reason for people. Returns when they have it.
    pub fn report(&self, level: PressureLevel, reason: impl Into<String>) {
        let pressure = Pressure::new(level, self.name(), reason);
        let ids: Vec<_> = self.shared.sinks().all.iter().map(|(id, _)| *id).collect();
        for id in ids {
            self.shared.call(id, pressure.clone());
        }
    }

    /// Whether anybody watches.
    pub fn is_watched(&self) -> bool {
        !self.shared.sinks().all.is_empty()
    }
}

impl PressureSource for ManualPressure {
    fn name(&self) -> &str {
        "manual"
    }

    fn watch(&self, sink: PressureSink) -> io::Result<Box<dyn Watch>> {
        let mut sinks = self.shared.sinks();
        let id = sinks.next;
        sinks.next += 1;
        sinks.all.push((id, sink));
        Ok(Box::new(Registered { id, shared: self.shared.clone() }))
    }
}

struct Registered {
    id: u64,
    shared: Arc<Shared>,
}

impl Watch for Registered {}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut sinks = self.shared.sinks();
        let (own, others) = mem::take(&mut sinks.all).into_iter().partition(|(id, _)| *id == self.id);
        sinks.all = others;
        let here = thread::current().id();
        let called_elsewhere = |sinks: &mut Sinks| sinks.calls.iter().any(|(id, at)| *id == self.id && *at != here);
        let sinks = self.shared.returned.wait_while(sinks, called_elsewhere).unwrap_or_else(PoisonError::into_inner);
        // What a sink holds may come back here as it goes.
        drop(sinks);
        drop::<Vec<_>>(own);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc::{RecvTimeoutError, channel},
        time::Duration,
    };

    use super::*;

    #[test]
    fn whoever_watches_hears_of_it_until_the_watch_is_dropped() {
        let source = ManualPressure::new();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let sink = |heard: &Arc<Mutex<Vec<_>>>| -> PressureSink {
            let heard = heard.clone();
            Arc::new(move |pressure: Pressure| heard.lock().unwrap().push(pressure.level))
        };
        source.report(PressureLevel::Critical, "nobody hears of it");
        let first = source.watch(sink(&heard)).unwrap();
        let second = source.watch(sink(&heard)).unwrap();
        source.report(PressureLevel::Warn, "both");
        drop(first);
        source.report(PressureLevel::Critical, "one");
        drop(second);
        assert!(!source.is_watched());
        source.report(PressureLevel::Warn, "nobody");
        assert_eq!(*heard.lock().unwrap(), [PressureLevel::Warn, PressureLevel::Warn, PressureLevel::Critical]);
    }

    #[test]
    fn a_sink_may_drop_its_watch_and_another_s_and_ask_the_source() {
        let source = ManualPressure::new();
        let watches = Arc::new(Mutex::new(Vec::new()));
        let (sender, heard) = channel();
        let dropping: PressureSink = Arc::new({
            let (source, watches, sender) = (source.clone(), watches.clone(), sender.clone());
            move |_| {
                let all: Vec<Box<dyn Watch>> = mem::take(&mut *watches.lock().unwrap());
                drop(all);
                sender.send(source.is_watched()).unwrap();
            }
        });
        // That the second is there is known when the first is called: it is not told any more.
        let watch = |sink| watches.lock().unwrap().push(source.watch(sink).unwrap());
        watch(dropping);
        watch(Arc::new(move |_| sender.send(true).unwrap()));
        source.report(PressureLevel::Warn, "once");
        source.report(PressureLevel::Warn, "nobody is left");
        assert_eq!(heard.iter().collect::<Vec<_>>(), [false], "a sink outlived its watch");
    }

    #[test]
    fn a_sink_that_panics_is_called_again_and_those_behind_it_are_told() {
        let source = ManualPressure::new();
        let (sender, heard) = channel();
        let failing: PressureSink = Arc::new({
            let sender = sender.clone();
            move |_| {
                sender.send("first").unwrap();
                panic!("as the test wants");
            }
        });
        let first = source.watch(failing).unwrap();
        let second = source.watch(Arc::new(move |_| sender.send("second").unwrap())).unwrap();
        source.report(PressureLevel::Warn, "one");
        source.report(PressureLevel::Warn, "two");
        drop((first, second));
        assert_eq!(heard.iter().collect::<Vec<_>>(), ["first", "second", "first", "second"]);
    }

    #[test]
    fn a_drop_waits_for_a_call_in_another_thread() {
        let source = ManualPressure::new();
        let (enters, entered) = channel();
        let (drops, dropped) = channel::<()>();
        let (tells, told) = channel();
        let dropped = Mutex::new(dropped);
        let slow: PressureSink = Arc::new(move |_| {
            enters.send(()).unwrap();
            // In this time a drop that waits for nobody is over.
            tells.send(dropped.lock().unwrap().recv_timeout(Duration::from_millis(200))).unwrap();
        });
        let watch = source.watch(slow).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| source.report(PressureLevel::Warn, "slow"));
            entered.recv().unwrap();
            drop(watch);
            assert!(drops.send(()).is_err(), "the sink outlived the watch");
        });
        assert_eq!(told.recv(), Ok(Err(RecvTimeoutError::Timeout)));
    }
}
