//! Memory that is set aside, and what a loaded model has of it.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use llm_local_core::{CancellationToken, KeepAlive, MemoryEstimate, Result};

use super::{
    EvictionReason, Memory, MemoryEvent,
    ledger::{Id, Phase, Stop},
};
use crate::engine::{Model, WeakModel};

/// Memory that is set aside for one model, until this is dropped: by a load that failed, or behind a model whose memory is back.
/// Backends hold it as long as the model ([`llm_local_core::ModelWeights::reservation`]).
pub(crate) struct Reservation {
    memory: Arc<Memory>,
    id: Id,
}

impl Reservation {
    pub(super) fn new(memory: Arc<Memory>, id: Id) -> Self {
        Self { memory, id }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.memory.ledger().remove(self.id);
        self.memory.changed();
    }
}

/// What a loaded model has in the ledger.
pub(crate) struct Residence {
    memory: Arc<Memory>,
    id: Id,
    /// Bytes of tokenizer and chat template, which a model's own account does not have.
    text: u64,
    /// Beside the backend's, which may let go too early; until the model begins to be unloaded.
    reservation: Mutex<Option<Arc<Reservation>>>,
    /// Until the one who loaded it has it: nobody evicts it before.
    fresh: Mutex<Option<Lease>>,
    /// Why the engine unloads it, and the bytes that it held then; until that is told.
    evicted: Mutex<Option<(EvictionReason, u64)>>,
}

impl Residence {
    /// That of a model that is loaded now, in the memory of `reservation`, which takes what `estimate` says from now on.
    pub(crate) fn new(reservation: Arc<Reservation>, estimate: &MemoryEstimate) -> Self {
        let (memory, id) = (reservation.memory.clone(), reservation.id);
        let now = memory.now();
        let first = memory.ledger().ready_in_use(id, estimate.running(), now);
        let fresh = first.map(|number| Lease { memory: memory.clone(), id, number, stop: None });
        memory.changed();
        let (reservation, fresh) = (Mutex::new(Some(reservation)), Mutex::new(fresh));
        Self { memory, id, text: estimate.text, reservation, fresh, evicted: Mutex::default() }
    }

    /// Says whose it is.
    pub(crate) fn belongs_to(&self, model: WeakModel) {
        self.memory.ledger().belongs_to(self.id, model);
    }

    pub(crate) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    pub(super) fn text(&self) -> u64 {
        self.text
    }

    /// Says how long it is to stay from now on.
    pub(crate) fn keep(&self, keep_alive: KeepAlive) {
        let keeps = self.memory.policy().keeps(keep_alive);
        self.memory.ledger().keep(self.id, keeps);
        self.memory.changed();
    }

    /// Says that whoever loaded it has it.
    pub(crate) fn settle(&self) {
        drop(lock(&self.fresh).take());
    }

    /// Whether it takes requests.
    pub(crate) fn is_ready(&self) -> bool {
        self.memory.ledger().get(self.id).is_some_and(|resident| resident.phase == Phase::Ready)
    }

    /// Begins a use of the model, for as long as this is held. `None` if it takes none any more.
    pub(crate) fn lease(&self) -> Option<Lease> {
        Lease::begin(&self.memory, self.id, None)
    }

    /// As [`Residence::lease`], of a generation that `cancel` ends.
    pub(crate) fn lease_stoppable(&self, cancel: CancellationToken) -> Option<Lease> {
        Lease::begin(&self.memory, self.id, Some(cancel))
    }

    /// Keeps the model from being unloaded to make room, for as long as this is held.
    pub(crate) fn pin(&self) {
        self.memory.ledger().pin(self.id, true);
    }

    pub(crate) fn unpin(&self) {
        self.memory.ledger().pin(self.id, false);
        self.memory.changed();
    }

    /// Says that the model is being unloaded. From now on its backend alone has the reservation: whoever unloads it may stop
    /// waiting for that, and nobody would be left to give this one back.
    pub(crate) fn leave(&self) {
        let handle = {
            let mut ledger = self.memory.ledger();
            ledger.leave(self.id);
            ledger.get(self.id).and_then(|resident| resident.handle.clone())
        };
        if let Some(model) = handle.and_then(|handle| handle.any()) {
            let bytes = model.memory().total();
            self.memory.ledger().leaves_with(self.id, bytes);
        }
        drop(lock(&self.reservation).take());
    }

    /// Says that the engine unloads it, and why; it holds so many bytes now.
    pub(super) fn evict(&self, reason: EvictionReason, bytes: u64) {
        *lock(&self.evicted) = Some((reason, bytes));
    }

    /// Says that the unloading of `model`, whose this is, has ended: its memory is back, whoever else holds the reservation, or
    /// its backend could not give it back.
    pub(crate) fn unloaded(&self, model: &Model, outcome: &Result<()>) {
        let name = || model.plan().id.clone();
        match outcome {
            Ok(()) => {
                self.memory.ledger().remove(self.id);
                self.memory.changed();
                if let Some((reason, bytes)) = lock(&self.evicted).take() {
                    self.memory.forget(model);
                    self.memory.tell(MemoryEvent::Evicted { model: name(), bytes, reason });
                }
            }
            Err(error) => {
                self.memory.ledger().stick(self.id);
                // Its memory is back with its last handle at the latest, which must not be the engine's own.
                self.memory.forget(model);
                self.memory.changed();
                tracing::error!(target: "llm_local::memory", model = name(), %error, "its backend could not unload it");
            }
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A use of a model, which is not evicted meanwhile.
pub(crate) struct Lease {
    memory: Arc<Memory>,
    id: Id,
    number: u64,
    stop: Option<Arc<Stop>>,
}

impl Lease {
    fn begin(memory: &Arc<Memory>, id: Id, cancel: Option<CancellationToken>) -> Option<Self> {
        let stop = cancel.map(|cancel| Arc::new(Stop { cancel, by_pressure: AtomicBool::new(false) }));
        let number = memory.ledger().lease(id, stop.clone())?;
        Some(Self { memory: memory.clone(), id, number, stop })
    }

    /// Whether the generation was stopped because memory is short.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.as_ref().is_some_and(|stop| stop.by_pressure.load(Ordering::Acquire))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let now = self.memory.now();
        self.memory.ledger().release(self.id, self.number, now);
        self.memory.changed();
    }
}

/// Keeps a model from being unloaded when nobody uses it, when others need its memory, and under pressure, until this is dropped.
/// Under critical pressure it still gives up the KV caches of idle sessions. [`Model::unload`] unloads it all the same.
#[must_use = "the model is pinned until this is dropped"]
pub struct Pinned {
    model: Model,
}

impl Pinned {
    pub(crate) fn new(model: Model) -> Self {
        model.residence().pin();
        Self { model }
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.model.residence().unpin();
    }
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned").field("model", &self.model).finish()
    }
}
