//! Taking memory back: from idle models one by one, and from all where it is critically short.

use std::time::Duration;

use futures_util::future::join_all;
use llm_local_core::TrimLevel;

use super::{
    EvictionReason, Memory, MemoryEvent,
    ledger::{Id, Phase},
    pressure::{Pressure, PressureLevel},
};

/// What became of a model that was to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Evicted {
    /// Its memory is back.
    Gone,
    /// Its last handle was dropped, and its backend gives the memory back by itself.
    Leaving,
    /// It stays: somebody uses it by now, or its backend could not unload it.
    Stays,
}

impl Memory {
    /// Unloads a model that is idle, or waits for one that is being unloaded already.
    pub(super) async fn evict(&self, id: Id, reason: EvictionReason) -> Evicted {
        let (began, handle) = {
            let mut ledger = self.ledger();
            let began = ledger.leave_if_idle(id);
            match ledger.get(id) {
                None => return Evicted::Gone,
                Some(resident) if resident.phase == Phase::Leaving => (began, resident.handle.clone()),
                Some(_) => return Evicted::Stays,
            }
        };
        let Some(model) = handle.and_then(|handle| handle.any()) else { return Evicted::Leaving };
        if began {
            model.residence().evict(reason, model.memory().total());
        }
        // Who completes it tells of it: this may be dropped before.
        match model.unload().await {
            Ok(()) => Evicted::Gone,
            Err(_) => Evicted::Stays,
        }
    }

    /// Does what is to be done about `pressure`, if anything is. Returns when it is done.
    pub(super) async fn react(&self, pressure: Pressure) {
        let Pressure { level, source, reason, .. } = pressure;
        let (before, now, due) = {
            let mut state = self.pressure();
            let before = state.now();
            let due = state.report(level, self.now());
            (before, state.now(), due)
        };
        if now > before {
            self.tell(MemoryEvent::Pressure { level: now, source: Some(source), reason });
            self.changed();
        }
        if let Some(level) = due {
            self.relieve(level).await;
            self.pressure().done(self.now());
        }
    }

    /// Gives back what is to go at `level`.
    pub(super) async fn relieve(&self, level: PressureLevel) {
        match level {
            PressureLevel::Normal => {}
            PressureLevel::Warn => {
                // The probe is asked behind the first one: whoever warns knows better whether memory is short.
                while let Some(id) = self.first_idle() {
                    if self.evict(id, EvictionReason::Pressure(level)).await == Evicted::Gone && self.has_enough() {
                        break;
                    }
                }
                // Last, because one that computes answers behind its step.
                self.shrink(TrimLevel::Caches, level).await;
            }
            PressureLevel::Critical => {
                if self.policy().stop_generations {
                    let all = self.ledger().stoppable();
                    for (model, stop) in all {
                        stop.stop();
                        self.tell(MemoryEvent::GenerationStopped { model });
                    }
                }
                self.evict_idle(level).await;
                self.shrink(TrimLevel::Sessions, level).await;
            }
        }
    }

    /// Unloads all that are idle, at once, and sees those off that are leaving.
    pub(super) async fn evict_idle(&self, level: PressureLevel) {
        let all = {
            let ledger = self.ledger();
            [ledger.idle(), ledger.leaving()].concat()
        };
        join_all(all.into_iter().map(|id| self.evict(id, EvictionReason::Pressure(level)))).await;
    }

    /// Unloads all that are idle on `device`, which had not enough memory for `model`.
    pub(crate) async fn make_room(&self, model: &str, device: &str) {
        let idle: Vec<_> = {
            let ledger = self.ledger();
            let is_there = |id: &Id| ledger.get(*id).is_some_and(|resident| resident.demand.device == device);
            ledger.idle().into_iter().filter(is_there).collect()
        };
        let reason = || EvictionReason::RoomFor { model: model.to_owned() };
        join_all(idle.into_iter().map(|id| self.evict(id, reason()))).await;
    }

    /// Unloads those that nobody has used for as long as they were to stay.
    pub(super) async fn evict_expired(&self) {
        let expired = self.ledger().expired(self.now());
        join_all(expired.into_iter().map(|id| self.evict(id, EvictionReason::Idle))).await;
    }

    /// Lets the pressure fall if nobody has reported it for long enough.
    pub(super) fn calm_down(&self) {
        let fell = self.pressure().fall(self.now());
        if let Some(level) = fell {
            let reason = "nobody has reported more for a while".to_owned();
            self.tell(MemoryEvent::Pressure { level, source: None, reason });
            self.changed();
        }
    }

    /// When the pressure may fall, or a model has been idle for long enough.
    pub(super) fn next_due(&self) -> Option<Duration> {
        let falls = self.pressure().falls_at();
        [falls, self.ledger().expires_at()].into_iter().flatten().min()
    }

    fn first_idle(&self) -> Option<Id> {
        self.ledger().idle().first().copied()
    }

    /// Whether so much is free that a warning is done with. Where that cannot be told, it is not.
    fn has_enough(&self) -> bool {
        let memory = self.probe().read();
        memory.is_ok_and(|memory| memory.shortest().share() >= self.policy().enough)
    }

    /// Has all models that stay give back what they can rebuild.
    async fn shrink(&self, trim: TrimLevel, level: PressureLevel) {
        let handles: Vec<_> = {
            let ledger = self.ledger();
            let stay = ledger.residents().filter(|(_, resident)| resident.phase == Phase::Ready);
            stay.filter_map(|(_, resident)| resident.handle.clone()).collect()
        };
        let models = handles.into_iter().filter_map(|handle| handle.any());
        join_all(models.map(|model| async move {
            let id = model.plan().id.clone();
            match model.trim(trim).await {
                Ok(0) => {}
                Ok(bytes) => self.tell(MemoryEvent::Trimmed { model: id, bytes, level }),
                // One that is unloaded meanwhile has nothing left to give.
                Err(error) => tracing::debug!(target: "llm_local::memory", model = id, %error, "not trimmed"),
            }
        }))
        .await;
    }
}
