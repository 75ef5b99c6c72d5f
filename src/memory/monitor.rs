//! The thread that hears of pressure, and looks after idle models.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
};

use llm_local_core::{Error, Result};

use super::{
    Memory,
    pressure::{Pressure, PressureLevel, PressureSource, Watch},
};

/// What runs until it is dropped.
pub(crate) struct Monitor {
    watches: Vec<Box<dyn Watch>>,
    woken: Sender<Woken>,
    thread: Option<JoinHandle<()>>,
    memory: Arc<Memory>,
}

/// What wakes the thread.
pub(super) enum Woken {
    Pressure(Pressure),
    /// A model may be idle, or is to stay for another time.
    Changed,
    Stop,
}

impl Monitor {
    pub(super) fn start(memory: &Arc<Memory>, sources: &[Arc<dyn PressureSource>]) -> Result<Self> {
        let (sender, woken) = mpsc::channel();
        let mut monitor = Self { watches: Vec::new(), woken: sender, thread: None, memory: memory.clone() };
        for source in sources {
            let (reports, name) = (monitor.woken.clone(), source.name());
            let sink = Arc::new(move |pressure| {
                // Where the thread has ended, nobody is left to hear of it.
                let _ = reports.send(Woken::Pressure(pressure));
            });
            match source.watch(sink) {
                Ok(watch) => {
                    tracing::debug!(target: "llm_local::memory", source = name, "watched");
                    monitor.watches.push(watch);
                }
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    tracing::debug!(target: "llm_local::memory", source = name, %error, "not on this machine");
                }
                Err(error) => tracing::warn!(target: "llm_local::memory", source = name, %error, "cannot be watched"),
            }
        }
        if monitor.watches.is_empty() && !sources.is_empty() {
            let reason = "none of the sources of memory pressure is to be had on this machine; the log says why";
            return Err(Error::unsupported("monitoring", reason));
        }
        // Before the thread waits for what comes.
        *monitor.memory.monitor() = Some(monitor.woken.clone());
        let memory = memory.clone();
        let thread = thread::Builder::new().name("llm-memory".into()).spawn(move || run(&memory, &woken));
        let thread = thread.map_err(|error| Error::unsupported("monitoring", format!("no thread for it: {error}")))?;
        monitor.thread = Some(thread);
        Ok(monitor)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // Nothing is reported behind them.
        self.watches.clear();
        *self.memory.monitor() = None;
        // Where the thread has ended, it needs not be told.
        let _ = self.woken.send(Woken::Stop);
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!(target: "llm_local::memory", "the thread of the monitor panicked");
        }
        // Nobody would see it fall.
        self.memory.pressure().reset();
        self.memory.changed();
    }
}

/// All that the thread does.
fn run(memory: &Memory, woken: &Receiver<Woken>) {
    loop {
        let next = match memory.next_due() {
            Some(due) => woken.recv_timeout(due.saturating_sub(memory.now())),
            None => woken.recv().map_err(RecvTimeoutError::from),
        };
        // Many changes are one.
        let all: Vec<_> = next.into_iter().chain(woken.try_iter()).collect();
        for woken in all {
            match woken {
                Woken::Stop => return,
                Woken::Pressure(pressure) => survive(memory.react(pressure)),
                Woken::Changed => {}
            }
        }
        memory.calm_down();
        survive(async {
            if memory.level() == PressureLevel::Critical {
                // What has become idle meanwhile.
                memory.evict_idle(PressureLevel::Critical).await;
            }
            memory.evict_expired().await;
        });
    }
}

/// Does `work`. A backend that panics must not end the thread: nobody would hear of pressure any more.
fn survive(work: impl Future<Output = ()>) {
    if catch_unwind(AssertUnwindSafe(|| pollster::block_on(work))).is_err() {
        tracing::error!(target: "llm_local::memory", "a backend panicked while memory was taken back");
    }
}
