//! Memory: which models may take how much of it, for how long, and what goes when it runs short. Backends and the system only
//! report; everything is decided here.
//!
//! A load is let in by `admit`: `measure` asks what there is, `decide` weighs it against what the `ledger` has promised, and idle
//! models are unloaded (`reclaim`) until there is room. What is let in has a reservation until its
//! memory is back. A request holds a lease, and a model with one is not evicted. How long a context is, `context` says.
//!
//! Nothing runs by itself unless [`Engine::start_monitoring`] is called: then one thread (`monitor`) hears of pressure, whose
//! reports `level` adds up, and looks after models that were idle for long enough.
//!
//! | item | what it is |
//! |---|---|
//! | [`MemoryPolicy`] | what an application decides |
//! | [`ContextTiers`] | how long contexts are, by the memory of the device |
//! | [`MemoryEvents`] | what happened, and why |
//! | [`MemoryStatus`] | what there is, what is promised, and to whom |
//! | [`Pinned`] | keeps a model in memory |
//! | [`MemoryProbe`] | says how much memory there is |
//! | [`pressure`] | sources of pressure |

mod admit;
mod context;
mod decide;
mod events;
mod ledger;
mod level;
mod measure;
mod monitor;
mod policy;
mod reclaim;
mod reservation;
mod status;

pub use context::{ContextTier, ContextTiers};
pub use events::{EvictionReason, MemoryEvent, MemoryEvents};
pub use llm_local_system::{MemoryLimit, MemoryProbe, ScriptedProbe, SystemMemory, SystemProbe, pressure};
pub use policy::{Budget, MemoryPolicy, WhenShort};
pub use reservation::Pinned;
pub use status::{DeviceStatus, MemoryStatus, ResidentPhase, ResidentStatus};

pub(crate) use admit::Room;
pub(crate) use context::{ContextBounds, FEWEST};
pub(crate) use monitor::Monitor;
pub(crate) use reservation::{Lease, Reservation, Residence};

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::Duration,
};

use tokio::sync::watch;

use crate::engine::{Engine, Model};
use {events::Events, ledger::Ledger, level::Level, monitor::Woken, pressure::PressureLevel};

/// The time since some moment, by which models grow old and pressure falls.
pub(crate) type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// The memory of one engine's models.
pub(crate) struct Memory {
    policy: MemoryPolicy,
    probe: Arc<dyn MemoryProbe>,
    clock: Clock,
    ledger: Mutex<Ledger>,
    pressure: Mutex<Level>,
    /// Counts what may let a waiting load in.
    changes: watch::Sender<u64>,
    /// Wakes the monitor, while there is one.
    monitor: Mutex<Option<mpsc::Sender<Woken>>>,
    events: Events,
    /// Empties the place of a model that was evicted.
    forget: Box<dyn Fn(&Model) + Send + Sync>,
}

impl Memory {
    /// The memory of an engine that `forget`s models which were evicted. `forget` must not keep any in memory.
    pub(crate) fn new(
        policy: MemoryPolicy,
        probe: Arc<dyn MemoryProbe>,
        clock: Clock,
        forget: impl Fn(&Model) + Send + Sync + 'static,
    ) -> Arc<Self> {
        let pressure = Mutex::new(Level::new(policy.settle, policy.calm));
        Arc::new(Self {
            policy,
            probe,
            clock,
            ledger: Mutex::default(),
            pressure,
            changes: watch::Sender::new(0),
            monitor: Mutex::default(),
            events: Events::new(),
            forget: Box::new(forget),
        })
    }

    pub(crate) fn policy(&self) -> &MemoryPolicy {
        &self.policy
    }

    pub(crate) fn probe(&self) -> &Arc<dyn MemoryProbe> {
        &self.probe
    }

    pub(crate) fn subscribe(&self) -> MemoryEvents {
        self.events.subscribe()
    }

    pub(crate) fn tell(&self, event: MemoryEvent) {
        self.events.tell(event);
    }

    fn now(&self) -> Duration {
        (self.clock)()
    }

    fn forget(&self, model: &Model) {
        (self.forget)(model);
    }

    /// Neither lock is held while anything is called that is not of this folder, or while the other is taken.
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pressure(&self) -> MutexGuard<'_, Level> {
        self.pressure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn level(&self) -> PressureLevel {
        self.pressure().now()
    }

    fn monitor(&self) -> MutexGuard<'_, Option<mpsc::Sender<Woken>>> {
        self.monitor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that a load that waits may look again, and the monitor for idle models.
    fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
        if let Some(woken) = &*self.monitor() {
            // One that is about to end needs not look.
            let _ = woken.send(Woken::Changed);
        }
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

impl Engine {
    /// What the memory policy does from now on, and what it hears.
    pub fn memory_events(&self) -> MemoryEvents {
        self.inner.memory.subscribe()
    }

    /// What memory there is, what is promised of it, and to whom.
    pub fn memory_status(&self) -> MemoryStatus {
        let monitoring = self.inner.monitor().is_some();
        self.inner.memory.status(self.registry(), monitoring)
    }

    /// Hears of memory pressure from now on, from the system's sources and by polling behind them, and unloads models whose
    /// time is over ([`MemoryPolicy::keep_alive`]). It takes a thread, and one for each source, until
    /// [`Engine::stop_monitoring`] or the last handle of the engine is dropped. Where it is on, nothing happens.
    ///
    /// A source that this machine does not have is left out, which is logged.
    ///
    /// # Errors
    /// [`Error::Unsupported`](llm_local_core::Error::Unsupported) if there is no source at all, or no thread to be had.
    pub fn start_monitoring(&self) -> llm_local_core::Result<()> {
        self.start_monitoring_with(pressure::of_system(self.inner.memory.probe().clone()))
    }

    /// As [`Engine::start_monitoring`], from these sources alone: [`pressure::ManualPressure`] for an application that hears of
    /// pressure in its own way. Without any, it looks after idle models only.
    ///
    /// # Errors
    /// As [`Engine::start_monitoring`].
    pub fn start_monitoring_with(&self, sources: Vec<Arc<dyn pressure::PressureSource>>) -> llm_local_core::Result<()> {
        let mut monitor = self.inner.monitor();
        if monitor.is_none() {
            *monitor = Some(Monitor::start(&self.inner.memory, &sources)?);
        }
        Ok(())
    }

    /// Ends what [`Engine::start_monitoring`] began; no thread of it is left when this returns. Pressure is over then, and loads
    /// that waited for its end go on.
    pub fn stop_monitoring(&self) {
        // Under the lock: a monitor that is started meanwhile would be the one that is ended.
        drop(self.inner.monitor().take());
    }

    /// Gives memory back now, as for pressure of this `level`, whether the engine is monitoring or not. Returns when it is back.
    pub async fn relieve(&self, level: PressureLevel) {
        self.inner.memory.relieve(level).await;
    }

    /// Unloads the models that nobody has used for as long as they were to stay, as [`Engine::start_monitoring`] does by itself.
    /// Returns when their memory is back.
    pub async fn unload_idle(&self) {
        self.inner.memory.evict_expired().await;
    }
}
