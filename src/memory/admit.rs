//! Letting a load in: it is decided by measurement, and where it does not fit, idle models go first.

use std::sync::Arc;

use llm_local_core::{DeviceInfo, Error, InferenceBackend, Result};

use super::{
    EvictionReason, Memory, MemoryEvent, Reservation, WhenShort,
    decide::{Rules, Verdict},
    ledger::Demand,
    measure::is_on_host,
    pressure::PressureLevel,
    reclaim::Evicted,
};

/// What is known of the memory that a load could have.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Room {
    /// Bytes that apply to the device, for the table of contexts.
    pub(crate) usable: Option<u64>,
    /// Bytes that there are once all idle models are gone.
    pub(crate) bytes: Option<u64>,
}

impl Memory {
    /// What a load on `device` of `backend` could have.
    pub(crate) fn room(&self, backend: &dyn InferenceBackend, device: &DeviceInfo) -> Room {
        let measured = self.measure(backend, device);
        let held = self.held();
        let rules = self.rules(&measured.bounds, &held);
        Room { usable: measured.usable, bytes: rules.room(&self.ledger()) }
    }

    /// Sets `bytes` aside for `model` on `device` of `backend`, once there are so many: idle models go until there are, and in
    /// critical pressure it waits, as the policy says.
    ///
    /// # Errors
    /// [`Error::InsufficientMemory`]; nothing has changed then but what was idle.
    pub(crate) async fn admit(
        self: &Arc<Self>,
        model: &str,
        (backend, device): (&dyn InferenceBackend, &DeviceInfo),
        bytes: u64,
    ) -> Result<Arc<Reservation>> {
        let demand = Demand { model: model.to_owned(), device: device.id.clone(), on_host: is_on_host(device), bytes };
        loop {
            // Before anything is looked at: what changes from now on is seen.
            let mut changes = self.changes();
            if self.level() == PressureLevel::Critical {
                if self.policy().when_critical == WhenShort::Fail {
                    let available = self.room(backend, device).bytes.unwrap_or(0).min(bytes.saturating_sub(1));
                    let error = Error::insufficient_memory(bytes, available);
                    return Err(error.with_memory_hint("memory is critically short now; try later"));
                }
                tracing::debug!(target: "llm_local::memory", model, "waits until memory is not critically short");
                // The sender is in `self`.
                let _ = changes.changed().await;
                continue;
            }
            let measured = self.measure(backend, device);
            let held = self.held();
            let verdict = {
                let mut ledger = self.ledger();
                let verdict = self.rules(&measured.bounds, &held).decide(&demand, &ledger);
                if verdict == Verdict::Fits {
                    let id = ledger.insert(demand, self.now());
                    drop(ledger);
                    if let Some(budget) = measured.bounds.iter().map(|bound| bound.limit).min()
                        && let Err(error) = backend.set_memory_budget(&device.id, budget)
                    {
                        tracing::warn!(target: "llm_local::memory", %error, device = device.id, "a backend was not told its budget");
                    }
                    self.tell(MemoryEvent::Admitted { model: model.to_owned(), bytes });
                    return Ok(Arc::new(Reservation::new(self.clone(), id)));
                }
                verdict
            };
            match verdict {
                Verdict::Fits => {}
                Verdict::Unload(id) => {
                    if self.evict(id, EvictionReason::RoomFor { model: model.to_owned() }).await == Evicted::Leaving {
                        let _ = changes.changed().await;
                    }
                }
                Verdict::Wait => {
                    tracing::debug!(target: "llm_local::memory", model, bytes, "waits for memory that is in use");
                    let _ = changes.changed().await;
                }
                Verdict::Short { available, hint } => {
                    return Err(Error::insufficient_memory(bytes, available).with_memory_hint(hint));
                }
            }
        }
    }

    fn rules<'a>(
        &self,
        bounds: &'a [super::decide::Bound],
        held: &'a std::collections::HashMap<super::ledger::Id, u64>,
    ) -> Rules<'a> {
        let policy = self.policy();
        Rules { bounds, held, max_models: policy.max_models, when_in_use: policy.when_in_use }
    }
}
