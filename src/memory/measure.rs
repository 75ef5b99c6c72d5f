//! How much memory models may have: what the probe and the backends report, and what the policy makes of it.

use llm_local_core::{DecimalBytes, DeviceInfo, DeviceKind, InferenceBackend};

use super::{
    Budget, Memory,
    decide::{Bound, Scope},
    ledger::Ledger,
};

/// What is known of the memory of a device.
#[derive(Debug, Clone, Default)]
pub(super) struct Measured {
    pub(super) bounds: Vec<Bound>,
    /// Bytes that apply to the device: physical memory, or its own, or what it is limited to.
    pub(super) usable: Option<u64>,
}

/// Whether `device` takes the machine's memory.
pub(crate) fn is_on_host(device: &DeviceInfo) -> bool {
    matches!(device.kind, DeviceKind::Cpu | DeviceKind::Metal)
}

impl Memory {
    /// Measures what `device` of `backend` may take. What cannot be told bounds nothing, and is logged.
    pub(super) fn measure(&self, backend: &dyn InferenceBackend, device: &DeviceInfo) -> Measured {
        let own = backend.device_memory(&device.id).unwrap_or_else(|error| {
            tracing::warn!(%error, device = device.id, "the memory of a device cannot be told, and is not bounded");
            None
        });
        let policy = self.policy();
        let headroom = |usable: u64| (usable as f64 * policy.headroom) as u64;
        let of_device = policy.device_budgets.get(&device.id);
        let mut measured = Measured::default();
        // What is neither the machine's nor of a known size is of a kind that this library does not know.
        if is_on_host(device) {
            match self.probe().read() {
                Ok(memory) => {
                    let (usable, free) = (memory.usable(), memory.free());
                    let of = memory.limit.as_ref().filter(|limit| limit.bytes <= memory.total);
                    let of = of.map_or_else(|| "of physical memory".to_owned(), |limit| format!("of {}", limit.by));
                    let bound = |scope, budget: Budget, of_whom: &str| Bound {
                        scope,
                        limit: budget.of(usable),
                        free,
                        headroom: headroom(usable),
                        by: format!(
                            "{of_whom} is {} of {} {of}, and {} are free now",
                            DecimalBytes(budget.of(usable)),
                            DecimalBytes(usable),
                            DecimalBytes(memory.free())
                        ),
                    };
                    measured.bounds.push(bound(Scope::Host, policy.budget, "the budget for models"));
                    if let Some(budget) = of_device.filter(|_| own.is_none()) {
                        let scope = Scope::Device(device.id.clone());
                        measured.bounds.push(bound(scope, *budget, &format!("the budget for `{}`", device.id)));
                    }
                    measured.usable = Some(usable);
                }
                Err(error) => {
                    tracing::warn!(%error, "the memory of this machine cannot be told, and is not bounded");
                }
            }
        }
        if own.is_none()
            && !is_on_host(device)
            && let Some(Budget::Bytes(limit)) = of_device
        {
            // Nobody knows how much there is, but bytes bind all the same.
            let by = format!("the budget for `{}` is {}", device.id, DecimalBytes(*limit));
            let scope = Scope::Device(device.id.clone());
            measured.bounds.push(Bound { scope, limit: *limit, free: u64::MAX, headroom: 0, by });
        }
        if let Some(own) = own {
            let budget = of_device.copied().unwrap_or(policy.budget);
            measured.bounds.push(Bound {
                scope: Scope::Device(device.id.clone()),
                limit: budget.of(own.total),
                free: own.available,
                headroom: headroom(own.total),
                by: format!(
                    "the budget for `{}` is {} of {} of the device, and {} are free now",
                    device.id,
                    DecimalBytes(budget.of(own.total)),
                    DecimalBytes(own.total),
                    DecimalBytes(own.available)
                ),
            });
            measured.usable = Some(measured.usable.map_or(own.total, |usable| usable.min(own.total)));
        }
        measured
    }

    /// Bytes of the machine's memory that are free now; `None` where that cannot be told.
    pub(crate) fn free(&self) -> Option<u64> {
        self.probe().read().map(|memory| memory.free()).ok()
    }

    /// Bytes that each model holds by its own account; nothing of those that are being loaded.
    pub(super) fn held(&self) -> std::collections::HashMap<super::ledger::Id, u64> {
        // Asked without the lock: a backend answers.
        let handles: Vec<_> = {
            let ledger = self.ledger();
            let all = ledger.residents().filter_map(|(id, resident)| Some((id, resident.handle.clone()?)));
            all.collect()
        };
        let held = handles.into_iter().filter_map(|(id, handle)| {
            let model = handle.any()?;
            Some((id, model.memory().total().saturating_add(model.residence().text())))
        });
        held.collect()
    }
}

/// How many models there are on a device, and what they were promised.
pub(super) fn promised(ledger: &Ledger, device: &str) -> (usize, u64) {
    let of = ledger.residents().filter(|(_, resident)| resident.demand.device == device);
    of.fold((0, 0), |(count, bytes), (_, resident)| (count + 1, bytes + resident.demand.bytes))
}
