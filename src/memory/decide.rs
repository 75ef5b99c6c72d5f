//! Whether a load is let in: by what was promised, what was measured, and who could go.

use std::collections::HashMap;

use llm_local_core::DecimalBytes;

use super::{
    WhenShort,
    ledger::{Demand, Id, Ledger, Phase, Resident},
};

/// Whose memory is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scope {
    /// The machine's, for all devices that take it.
    Host,
    /// That of one device.
    Device(String),
}

/// What bounds the models of a scope.
#[derive(Debug, Clone)]
pub(super) struct Bound {
    pub(super) scope: Scope,
    /// Bytes that they may be promised in all.
    pub(super) limit: u64,
    /// Bytes that are free now, by measurement.
    pub(super) free: u64,
    /// Bytes of these that a load leaves free.
    pub(super) headroom: u64,
    /// What sets the limit, for people.
    pub(super) by: String,
}

/// What is decided by.
pub(super) struct Rules<'a> {
    pub(super) bounds: &'a [Bound],
    /// Bytes that each model holds now; nothing of those that are being loaded.
    pub(super) held: &'a HashMap<Id, u64>,
    pub(super) max_models: Option<usize>,
    pub(super) when_in_use: WhenShort,
}

/// What is decided.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It fits.
    Fits,
    /// This one is to be unloaded first, or its unloading waited for; then it is measured and decided again.
    Unload(Id),
    /// Something in use has to end first.
    Wait,
    /// There is no way.
    Short {
        /// Bytes that there would be.
        available: u64,
        /// What bounds them, and what would help.
        hint: String,
    },
}

impl Bound {
    fn holds(&self, resident: &Resident) -> bool {
        match &self.scope {
            Scope::Host => resident.demand.on_host,
            Scope::Device(id) => resident.demand.device == *id,
        }
    }
}

impl Rules<'_> {
    /// What is to become of `demand`.
    pub(super) fn decide(&self, demand: &Demand, ledger: &Ledger) -> Verdict {
        let need = demand.bytes;
        // What a load has read already is not free any more, and counted as outstanding too: `but_loading` leaves that out.
        let left_of = |bound: &Bound, but_loading: bool| {
            let of = ledger.residents().filter(|(_, resident)| bound.holds(resident));
            let (promised, outstanding) = of.fold((0, 0), |(promised, outstanding), (id, resident)| {
                let is_counted = !but_loading || resident.phase != Phase::Loading;
                let more = if is_counted { self.outstanding(id, resident) } else { 0 };
                (sum(promised, resident.demand.bytes), sum(outstanding, more))
            });
            let taken = sum(outstanding, bound.headroom);
            bound.limit.saturating_sub(promised).min(bound.free.saturating_sub(taken))
        };
        let available = |bound: &Bound| left_of(bound, false);
        let short: Vec<_> = self.bounds.iter().filter(|bound| available(bound) < need).collect();
        let is_full = self.max_models.is_some_and(|most| ledger.residents().count() >= most);
        if short.is_empty() && !is_full {
            return Verdict::Fits;
        }
        // Once these loads have ended, all of theirs is measured.
        if !is_full && short.iter().all(|bound| left_of(bound, true) >= need) {
            return Verdict::Wait;
        }
        // Where memory is short, one that has some of it leaves a place too.
        let concerns = |resident: &Resident| short.is_empty() || short.iter().any(|bound| bound.holds(resident));
        // Those that cannot go: nothing is unloaded if what is left of the promises would not do even then.
        let stays = |resident: &Resident| resident.phase != Phase::Leaving && !resident.is_idle();
        let left = |bound: &&Bound| {
            let of = ledger.residents().filter(|(_, resident)| bound.holds(resident));
            let (mut promised, mut outstanding, mut back) = (0, 0, 0);
            for (id, resident) in of {
                if stays(resident) {
                    promised = sum(promised, resident.demand.bytes);
                    outstanding = sum(outstanding, self.outstanding(id, resident));
                } else {
                    // At most: what a model says that it holds may be less than what it gives back.
                    back = sum(back, self.held_by(id, resident).max(resident.demand.bytes));
                }
            }
            let taken = sum(outstanding, bound.headroom);
            bound.limit.saturating_sub(promised).min(sum(bound.free, back).saturating_sub(taken))
        };
        let staying = ledger.residents().filter(|(_, resident)| stays(resident)).count();
        let is_of_use =
            short.iter().all(|bound| left(bound) >= need) && self.max_models.is_none_or(|most| staying < most);
        if is_of_use {
            let leaving =
                ledger.residents().find(|(_, resident)| resident.phase == Phase::Leaving && concerns(resident));
            let idle = || ledger.idle().into_iter().find(|id| ledger.get(*id).is_some_and(concerns));
            if let Some(id) = leaving.map(|(id, _)| id).or_else(idle) {
                return Verdict::Unload(id);
            }
        }
        // Pins end when the application says so, and not by themselves.
        let ends = |resident: &Resident| resident.phase == Phase::Loading || !resident.leases.is_empty();
        let in_use: Vec<_> = ledger.residents().filter(|(_, r)| stays(r) && concerns(r) && ends(r)).collect();
        let fits_alone = short.iter().all(|bound| bound.limit >= need);
        if fits_alone && !in_use.is_empty() && self.when_in_use == WhenShort::Wait {
            return Verdict::Wait;
        }
        let tightest = short.iter().copied().min_by_key(|bound| available(bound));
        Verdict::Short {
            available: tightest.map_or(0, available),
            hint: self.hint(demand, ledger, tightest, &in_use.iter().map(|(_, r)| *r).collect::<Vec<_>>()),
        }
    }

    /// Bytes that a load on these bounds could have once all that may go is gone. `None` where nothing is known.
    pub(super) fn room(&self, ledger: &Ledger) -> Option<u64> {
        let stays = |resident: &Resident| {
            let ends = resident.phase == Phase::Loading || !resident.leases.is_empty();
            let goes = resident.phase == Phase::Leaving || resident.is_idle();
            let is_waited_for = ends && resident.pins == 0 && self.when_in_use == WhenShort::Wait;
            !(goes || is_waited_for)
        };
        let of = |bound: &Bound| {
            let (mut promised, mut outstanding, mut back) = (0, 0, 0);
            for (id, resident) in ledger.residents().filter(|(_, resident)| bound.holds(resident)) {
                if stays(resident) {
                    promised = sum(promised, resident.demand.bytes);
                    // What is being loaded may have taken all of its promise already: an admission waits until that is known.
                    let is_known = resident.phase != Phase::Loading;
                    outstanding = sum(outstanding, if is_known { self.outstanding(id, resident) } else { 0 });
                } else {
                    back = sum(back, self.held_by(id, resident));
                }
            }
            let taken = sum(outstanding, bound.headroom);
            bound.limit.saturating_sub(promised).min(sum(bound.free, back).saturating_sub(taken))
        };
        self.bounds.iter().map(of).min()
    }

    /// Bytes that were promised, and are not taken yet.
    fn outstanding(&self, id: Id, resident: &Resident) -> u64 {
        resident.demand.bytes.saturating_sub(self.held_by(id, resident))
    }

    /// Bytes that a model holds, or has not given back yet.
    fn held_by(&self, id: Id, resident: &Resident) -> u64 {
        self.held.get(&id).copied().unwrap_or(0).max(resident.leaves_with)
    }

    fn hint(&self, demand: &Demand, ledger: &Ledger, tightest: Option<&Bound>, in_use: &[&Resident]) -> String {
        let mut parts = Vec::new();
        match tightest {
            Some(bound) if bound.limit < demand.bytes => {
                parts.push(format!("{} may be used: {}", DecimalBytes(bound.limit), bound.by))
            }
            Some(bound) => parts.push(bound.by.clone()),
            None => {
                let most = self.max_models.unwrap_or(usize::MAX);
                parts.push(format!("{} models are loaded, and the policy allows {most}", ledger.residents().count()));
            }
        }
        let names = |of: &[&Resident]| {
            let names: Vec<_> = of.iter().map(|resident| format!("`{}`", resident.demand.model)).collect();
            names.join(", ")
        };
        if !in_use.is_empty() {
            parts.push(format!("in use: {}", names(in_use)));
        }
        let pinned: Vec<_> = ledger.residents().map(|(_, r)| r).filter(|r| r.pins > 0 && r.leases.is_empty()).collect();
        if !pinned.is_empty() {
            parts.push(format!("pinned: {}", names(&pinned)));
        }
        parts.join("; ")
    }
}

fn sum(a: u64, b: u64) -> u64 {
    a.saturating_add(b)
}

#[cfg(test)]
mod tests;
