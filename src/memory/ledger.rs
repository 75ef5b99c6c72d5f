//! Who has which memory: the models that are loaded, being loaded or leaving, and what may be done with them. It measures
//! nothing and waits for nothing.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use llm_local_core::CancellationToken;

use crate::engine::WeakModel;

/// One load, and the model that it becomes.
pub(super) type Id = u64;

/// What a model takes, and where.
#[derive(Debug, Clone)]
pub(crate) struct Demand {
    /// The model's id.
    pub(crate) model: String,
    /// The device's id.
    pub(crate) device: String,
    /// Whether the device takes the machine's memory.
    pub(crate) on_host: bool,
    /// Bytes.
    pub(crate) bytes: u64,
}

/// A model in the ledger.
pub(super) struct Resident {
    pub(super) demand: Demand,
    pub(super) phase: Phase,
    /// Of one that is loaded. Weak: the ledger keeps nobody in memory.
    pub(super) handle: Option<WeakModel>,
    /// What is running now: by their numbers, and those that can be stopped with how.
    pub(super) leases: HashMap<u64, Option<Arc<Stop>>>,
    pub(super) pins: usize,
    pub(super) used: Duration,
    /// The order of uses, where the clock is too coarse for it.
    pub(super) turn: u64,
    /// How long it stays when nobody uses it.
    pub(super) keeps: Option<Duration>,
    /// Of one that is leaving: bytes that it held when it began to. It may tell nothing of them itself any more, and they are
    /// not back yet.
    pub(super) leaves_with: u64,
}

/// What becomes of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Loading,
    Ready,
    /// It is being unloaded, and takes no more requests.
    Leaving,
    /// Its backend could not unload it; nobody knows when its memory is back.
    Stuck,
}

/// How a generation is stopped.
pub(crate) struct Stop {
    pub(crate) cancel: CancellationToken,
    pub(crate) by_pressure: AtomicBool,
}

impl Stop {
    /// Stops the generation. Whoever waits for it is woken, so nobody calls this under a lock.
    pub(super) fn stop(&self) {
        self.by_pressure.store(true, Ordering::Release);
        self.cancel.cancel();
    }
}

impl Resident {
    /// Whether it may be unloaded to make room: nobody uses it, and nobody has pinned it.
    pub(super) fn is_idle(&self) -> bool {
        self.phase == Phase::Ready && self.leases.is_empty() && self.pins == 0
    }
}

/// All models that have memory, or were promised some.
#[derive(Default)]
pub(super) struct Ledger {
    residents: BTreeMap<Id, Resident>,
    next: Id,
    turn: u64,
}

impl Ledger {
    pub(super) fn residents(&self) -> impl Iterator<Item = (Id, &Resident)> {
        self.residents.iter().map(|(id, resident)| (*id, resident))
    }

    pub(super) fn get(&self, id: Id) -> Option<&Resident> {
        self.residents.get(&id)
    }

    /// Sets memory aside.
    pub(super) fn insert(&mut self, demand: Demand, now: Duration) -> Id {
        let id = self.number();
        let turn = self.turn();
        let resident = Resident {
            demand,
            phase: Phase::Loading,
            handle: None,
            leases: HashMap::new(),
            pins: 0,
            used: now,
            turn,
            keeps: None,
            leaves_with: 0,
        };
        self.residents.insert(id, resident);
        id
    }

    /// Says that the load has become a model, which takes `bytes` from now on.
    pub(super) fn ready(&mut self, id: Id, bytes: u64, now: Duration) {
        let turn = self.turn();
        if let Some(resident) = self.residents.get_mut(&id) {
            (resident.phase, resident.demand.bytes) = (Phase::Ready, bytes);
            (resident.used, resident.turn) = (now, turn);
        }
    }

    /// As [`Ledger::ready`], with a first use, so that nobody evicts it before.
    pub(super) fn ready_in_use(&mut self, id: Id, bytes: u64, now: Duration) -> Option<u64> {
        self.ready(id, bytes, now);
        self.lease(id, None)
    }

    /// Says which model it is.
    pub(super) fn belongs_to(&mut self, id: Id, model: WeakModel) {
        if let Some(resident) = self.residents.get_mut(&id) {
            resident.handle = Some(model);
        }
    }

    /// Gives what was set aside back.
    pub(super) fn remove(&mut self, id: Id) {
        self.residents.remove(&id);
    }

    /// Begins a use. `None` if the model takes no more requests. Until [`Ledger::release`] it is not evicted.
    pub(super) fn lease(&mut self, id: Id, stop: Option<Arc<Stop>>) -> Option<u64> {
        let number = self.number();
        let resident = self.residents.get_mut(&id).filter(|resident| resident.phase == Phase::Ready)?;
        resident.leases.insert(number, stop);
        Some(number)
    }

    /// Ends a use.
    pub(super) fn release(&mut self, id: Id, lease: u64, now: Duration) {
        let turn = self.turn();
        if let Some(resident) = self.residents.get_mut(&id)
            && resident.leases.remove(&lease).is_some()
        {
            (resident.used, resident.turn) = (now, turn);
        }
    }

    /// Pins a model, or takes one pin away.
    pub(super) fn pin(&mut self, id: Id, more: bool) {
        if let Some(resident) = self.residents.get_mut(&id) {
            resident.pins = if more { resident.pins + 1 } else { resident.pins.saturating_sub(1) };
        }
    }

    /// Says how long a model stays when nobody uses it.
    pub(super) fn keep(&mut self, id: Id, keeps: Option<Duration>) {
        if let Some(resident) = self.residents.get_mut(&id) {
            resident.keeps = keeps;
        }
    }

    /// Lets a model take no more requests, whether anybody uses it or not.
    pub(super) fn leave(&mut self, id: Id) {
        if let Some(resident) = self.residents.get_mut(&id) {
            resident.phase = Phase::Leaving;
        }
    }

    /// Says that a model could not be unloaded.
    pub(super) fn stick(&mut self, id: Id) {
        if let Some(resident) = self.residents.get_mut(&id) {
            resident.phase = Phase::Stuck;
        }
    }

    /// Says what a model that is leaving held when it began to. Of several answers the largest holds: the others are of one
    /// that has begun already.
    pub(super) fn leaves_with(&mut self, id: Id, bytes: u64) {
        if let Some(resident) = self.residents.get_mut(&id) {
            resident.leaves_with = resident.leaves_with.max(bytes);
        }
    }

    /// As [`Ledger::leave`], if it is idle. Whether it was.
    pub(super) fn leave_if_idle(&mut self, id: Id) -> bool {
        let idle = self.residents.get_mut(&id).filter(|resident| resident.is_idle());
        idle.map(|resident| resident.phase = Phase::Leaving).is_some()
    }

    /// Those that may go, the one first that nobody has used for longest.
    pub(super) fn idle(&self) -> Vec<Id> {
        let mut idle: Vec<_> = self.residents().filter(|(_, resident)| resident.is_idle()).collect();
        idle.sort_by_key(|(_, resident)| (resident.used, resident.turn));
        idle.into_iter().map(|(id, _)| id).collect()
    }

    /// Those that are leaving: somebody may have begun to unload them, and given up.
    pub(super) fn leaving(&self) -> Vec<Id> {
        self.residents().filter(|(_, resident)| resident.phase == Phase::Leaving).map(|(id, _)| id).collect()
    }

    /// Those that nobody has used for as long as they were to stay.
    pub(super) fn expired(&self, now: Duration) -> Vec<Id> {
        let ends = |resident: &Resident| resident.used.checked_add(resident.keeps?);
        let is_over = |id: &Id| ends(&self.residents[id]).is_some_and(|end| end <= now);
        self.idle().into_iter().filter(is_over).collect()
    }

    /// When the next is over that is idle now.
    pub(super) fn expires_at(&self) -> Option<Duration> {
        let idle = self.residents.values().filter(|resident| resident.is_idle());
        idle.filter_map(|resident| resident.used.checked_add(resident.keeps?)).min()
    }

    /// Every generation that can be stopped and is not yet, with its model.
    pub(super) fn stoppable(&self) -> Vec<(String, Arc<Stop>)> {
        let is_running = |stop: &&Arc<Stop>| !stop.by_pressure.load(Ordering::Acquire) && !stop.cancel.is_cancelled();
        let of = |resident: &Resident| {
            let stops = resident.leases.values().flatten().filter(is_running).cloned();
            stops.map(|stop| (resident.demand.model.clone(), stop)).collect::<Vec<_>>()
        };
        self.residents.values().flat_map(of).collect()
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn turn(&mut self) -> u64 {
        self.turn += 1;
        self.turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn demand(model: &str) -> Demand {
        Demand { model: model.into(), device: "cpu".into(), on_host: true, bytes: 10 }
    }

    /// A ledger with loaded models, each used at its second.
    fn ledger<const N: usize>(used: [u64; N]) -> (Ledger, [Id; N]) {
        let mut ledger = Ledger::default();
        let ids = used.map(|second| {
            let id = ledger.insert(demand("m"), at(0));
            ledger.ready(id, 7, at(second));
            id
        });
        (ledger, ids)
    }

    #[test]
    fn idle_models_come_in_the_order_of_their_last_use() {
        let (mut ledger, [a, b, c, d]) = ledger([3, 1, 1, 2]);
        assert_eq!(ledger.idle(), [b, c, d, a]);
        let lease = ledger.lease(b, None).unwrap();
        ledger.pin(d, true);
        assert_eq!(ledger.idle(), [c, a]);
        ledger.release(b, lease, at(3));
        ledger.pin(d, false);
        assert_eq!(ledger.idle(), [c, d, a, b]);
        assert!(ledger.leave_if_idle(c));
        assert!(!ledger.leave_if_idle(c) && ledger.lease(c, None).is_none());
        assert_eq!(ledger.idle(), [d, a, b]);
    }

    #[test]
    fn what_loads_is_neither_idle_nor_leased() {
        let mut ledger = Ledger::default();
        let id = ledger.insert(demand("m"), at(0));
        assert!(ledger.idle().is_empty() && ledger.lease(id, None).is_none() && !ledger.leave_if_idle(id));
        assert_eq!(ledger.get(id).unwrap().demand.bytes, 10);
        ledger.ready(id, 7, at(1));
        assert_eq!(ledger.get(id).unwrap().demand.bytes, 7);
        ledger.remove(id);
        assert_eq!(ledger.residents().count(), 0);
    }

    #[test]
    fn a_model_expires_after_its_last_use_unless_it_is_in_use_or_stays() {
        let (mut ledger, [a, b, c]) = ledger([1, 2, 3]);
        ledger.keep(a, Some(Duration::MAX));
        assert_eq!((ledger.expires_at(), ledger.expired(Duration::MAX)), (None, vec![]));
        ledger.keep(a, Some(at(10)));
        ledger.keep(b, Some(at(5)));
        assert_eq!((ledger.expires_at(), ledger.expired(at(6))), (Some(at(7)), vec![]));
        assert_eq!(ledger.expired(at(7)), [b]);
        assert_eq!(ledger.expired(at(11)), [a, b]);
        let lease = ledger.lease(b, None).unwrap();
        assert_eq!((ledger.expires_at(), ledger.expired(at(99))), (Some(at(11)), vec![a]));
        ledger.release(b, lease, at(20));
        assert_eq!(ledger.expired(at(24)), [a]);
        assert!(ledger.get(c).unwrap().keeps.is_none());
    }

    #[test]
    fn a_lease_ends_once_and_generations_are_stopped_once() {
        let (mut ledger, [a]) = ledger([1]);
        let stop = Arc::new(Stop { cancel: CancellationToken::new(), by_pressure: AtomicBool::new(false) });
        let generation = ledger.lease(a, Some(stop.clone())).unwrap();
        let call = ledger.lease(a, None).unwrap();
        let stoppable = ledger.stoppable();
        assert_eq!(stoppable.len(), 1);
        stoppable[0].1.stop();
        assert_eq!(ledger.stoppable().len(), 0);
        assert!(stop.cancel.is_cancelled() && stop.by_pressure.load(Ordering::Acquire));
        ledger.release(a, generation, at(5));
        ledger.release(a, generation, at(9));
        assert_eq!(ledger.get(a).unwrap().used, at(5));
        assert!(!ledger.get(a).unwrap().is_idle());
        ledger.release(a, call, at(6));
        assert!(ledger.get(a).unwrap().is_idle());
    }
}
