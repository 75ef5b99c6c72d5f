//! Pressure that somebody tells of.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use super::{Pressure, PressureLevel, PressureSink, PressureSource, Watch};

/// Reports what it is told: by an application that hears of pressure in a way of its own, or by a test. Clones share everything.
#[derive(Clone, Default)]
pub struct ManualPressure {
    sinks: Arc<Mutex<Sinks>>,
}

#[derive(Default)]
struct Sinks {
    next: u64,
    all: Vec<(u64, PressureSink)>,
}

impl ManualPressure {
    /// A source that nobody watches yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reports `level` to whoever watches, with a reason for people. Returns when they have it.
    pub fn report(&self, level: PressureLevel, reason: impl Into<String>) {
        let pressure = Pressure::new(level, self.name(), reason);
        // Under the lock, so that no sink is called after its watch was dropped.
        for (_, sink) in &lock(&self.sinks).all {
            sink(pressure.clone());
        }
    }

    /// Whether anybody watches.
    pub fn is_watched(&self) -> bool {
        !lock(&self.sinks).all.is_empty()
    }
}

impl PressureSource for ManualPressure {
    fn name(&self) -> &str {
        "manual"
    }

    fn watch(&self, sink: PressureSink) -> io::Result<Box<dyn Watch>> {
        let mut sinks = lock(&self.sinks);
        let id = sinks.next;
        sinks.next += 1;
        sinks.all.push((id, sink));
        Ok(Box::new(Registered { id, sinks: self.sinks.clone() }))
    }
}

struct Registered {
    id: u64,
    sinks: Arc<Mutex<Sinks>>,
}

impl Watch for Registered {}

impl Drop for Registered {
    fn drop(&mut self) {
        lock(&self.sinks).all.retain(|(id, _)| *id != self.id);
    }
}

fn lock(sinks: &Mutex<Sinks>) -> std::sync::MutexGuard<'_, Sinks> {
    sinks.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
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
}
