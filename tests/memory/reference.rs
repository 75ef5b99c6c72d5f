//! What the memory policy should do, written down once more and far simpler: it is told what happened, in its order, and says
//! what must not have.

use std::{collections::BTreeMap, time::Duration};

use llm_local::memory::{EvictionReason, MemoryEvent};
use llm_local_testkit::fakes::Happening;

use crate::world::{Entry, Size};

/// A model that has memory, or was promised some.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tenant {
    pub(crate) phase: Phase,
    /// The number of the use at which it was let in, which tells it from one before.
    pub(crate) since: u64,
    pub(crate) promised: u64,
    /// Generations that run, by their numbers.
    pub(crate) generations: Vec<usize>,
    pub(crate) pins: usize,
    /// The number of its last use, and its time.
    pub(crate) used: (u64, Duration),
    pub(crate) keeps: Option<Duration>,
    /// Why the engine unloads it by itself, if it does.
    evicted: Option<Cause>,
    /// Bytes that it held when it began to leave.
    left_with: u64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Phase {
    Loading,
    /// It is loaded, and nobody has it yet.
    Fresh,
    Ready,
    Leaving,
}

/// What the engine was asked to do when something happened.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Cause {
    /// A load of a model, for which idle ones may go.
    Load,
    /// Idle models are to go.
    Relief,
    /// Models are to go that were idle for long enough.
    Expiry,
    /// This model is to go, whoever uses it.
    Unload(String),
    /// Nothing for which a model may go.
    Nothing,
}

/// The machine as it should be.
pub(crate) struct Reference {
    pub(crate) sizes: BTreeMap<String, Size>,
    pub(crate) total: u64,
    pub(crate) budget: u64,
    pub(crate) headroom: u64,
    pub(crate) max_models: Option<usize>,
    pub(crate) others: u64,
    pub(crate) tenants: BTreeMap<String, Tenant>,
    /// The contexts that loads were begun with.
    pub(crate) contexts: BTreeMap<String, usize>,
    uses: u64,
    /// Models that the engine has unloaded by itself, and why, whose memory is back, and of which nobody was told yet. It is told
    /// by whoever waited for it, whatever for, and the model may be loaded again by then.
    untold: Vec<(String, Cause)>,
    pub(crate) refused: usize,
    pub(crate) evictions: usize,
}

impl Reference {
    pub(crate) fn new(sizes: &[(&str, Size)], (total, budget, headroom): (u64, u64, u64), max: Option<usize>) -> Self {
        Self {
            sizes: sizes.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect(),
            total,
            budget,
            headroom,
            max_models: max,
            others: 0,
            tenants: BTreeMap::new(),
            contexts: BTreeMap::new(),
            uses: 0,
            untold: Vec::new(),
            refused: 0,
            evictions: 0,
        }
    }

    pub(crate) fn promised(&self) -> u64 {
        self.tenants.values().map(|tenant| tenant.promised).sum()
    }

    /// Bytes that a model holds of the machine.
    fn held(&self, model: &str, tenant: &Tenant) -> u64 {
        let size = self.sizes[model];
        let kv_cache = if tenant.generations.is_empty() { 0 } else { size.token * self.contexts[model] as u64 };
        if tenant.phase == Phase::Loading { 0 } else { size.weights + kv_cache }
    }

    fn all_held(&self) -> u64 {
        self.tenants.iter().map(|(model, tenant)| self.held(model, tenant)).sum()
    }

    /// Whether `need` bytes could be promised beside what is, with one model more.
    fn fits(&self, need: u64) -> bool {
        let free = self.total.saturating_sub(self.others + self.all_held()).saturating_sub(self.headroom);
        // What leaves is taken for what it held when it began to.
        let outstanding = self.tenants.iter().map(|(model, tenant)| match tenant.phase {
            Phase::Leaving => tenant.promised.saturating_sub(tenant.left_with),
            _ => tenant.promised.saturating_sub(self.held(model, tenant)),
        });
        self.promised() + need <= self.budget
            && outstanding.sum::<u64>() + need <= free
            && self.max_models.is_none_or(|most| self.tenants.len() < most)
    }

    fn idle(&self) -> Vec<&str> {
        let is_idle =
            |tenant: &Tenant| tenant.phase == Phase::Ready && tenant.generations.is_empty() && tenant.pins == 0;
        let mut idle: Vec<_> = self.tenants.iter().filter(|(_, tenant)| is_idle(tenant)).collect();
        idle.sort_by_key(|(_, tenant)| tenant.used.0);
        idle.into_iter().map(|(model, _)| model.as_str()).collect()
    }

    pub(crate) fn is_ready(&self, model: &str) -> bool {
        self.tenants.get(model).is_some_and(|tenant| matches!(tenant.phase, Phase::Ready | Phase::Fresh))
    }

    /// Says that the model is used now.
    pub(crate) fn used(&mut self, model: &str, now: Duration) {
        self.uses += 1;
        if let Some(tenant) = self.tenants.get_mut(model) {
            tenant.used = (self.uses, now);
            if tenant.phase == Phase::Fresh {
                tenant.phase = Phase::Ready;
            }
        }
    }

    /// Takes what happened, while the engine did what `cause` says for `model`, at `now`.
    pub(crate) fn takes(&mut self, entries: &[Entry], cause: &Cause, now: Duration) {
        for entry in entries {
            self.take(entry, cause, now);
        }
    }

    fn take(&mut self, entry: &Entry, cause: &Cause, now: Duration) {
        match entry {
            Entry::Event(MemoryEvent::Admitted { model, bytes }) => {
                assert!(self.fits(*bytes), "`{model}` was let in with {bytes} bytes, but they are not there");
                assert!(!self.tenants.contains_key(model), "`{model}` was let in twice");
                self.uses += 1;
                let tenant = Tenant {
                    phase: Phase::Loading,
                    since: self.uses,
                    promised: *bytes,
                    generations: Vec::new(),
                    pins: 0,
                    used: (self.uses, now),
                    keeps: None,
                    evicted: None,
                    left_with: 0,
                };
                self.tenants.insert(model.clone(), tenant);
            }
            Entry::Event(MemoryEvent::Refused { .. }) => self.refused += 1,
            Entry::Event(MemoryEvent::Evicted { model, reason, .. }) => {
                let why = match reason {
                    EvictionReason::RoomFor { .. } => Cause::Load,
                    EvictionReason::Idle => Cause::Expiry,
                    EvictionReason::Pressure(_) => Cause::Relief,
                    other => panic!("{other:?}"),
                };
                let untold = self.untold.iter().position(|(untold, cause)| untold == model && *cause == why);
                let untold = untold.unwrap_or_else(|| panic!("`{model}` is said to have gone: {reason}"));
                self.untold.swap_remove(untold);
            }
            Entry::Event(_) => {}
            Entry::Backend(Happening::LoadBegan(model)) => {
                let tenant = self.tenants.get(model).unwrap_or_else(|| panic!("`{model}` was not let in"));
                assert_eq!(tenant.phase, Phase::Loading, "{model}");
            }
            Entry::Backend(Happening::Loaded(model)) => {
                self.uses += 1;
                let running = self.sizes[model].estimate(self.contexts[model]).running();
                let tenant = self.tenants.get_mut(model).unwrap();
                tenant.used = (self.uses, now);
                (tenant.phase, tenant.promised) = (Phase::Fresh, running);
            }
            Entry::Backend(Happening::LoadFailed(model) | Happening::Unloaded(model)) => {
                let gone = self.tenants.remove(model);
                let gone = gone.unwrap_or_else(|| panic!("{entry:?}, but nothing was promised to it"));
                self.untold.extend(gone.evicted.map(|cause| (model.clone(), cause)));
            }
            Entry::Backend(Happening::UnloadBegan(model)) => self.leaves(model, cause, now),
            Entry::Backend(other) => panic!("{other:?}"),
        }
    }

    /// The model begins to go.
    fn leaves(&mut self, model: &str, cause: &Cause, now: Duration) {
        let idle = self.idle();
        match cause {
            Cause::Unload(asked) => assert_eq!(asked, model, "another model goes"),

            Cause::Nothing => panic!("`{model}` goes, and there is no reason for it"),
            Cause::Load | Cause::Relief => {
                assert_eq!(idle.first(), Some(&model), "of {idle:?}, which are idle, another one goes");
                self.evictions += 1;
            }
            Cause::Expiry => {
                let tenant = &self.tenants[model];
                assert!(idle.contains(&model), "`{model}` goes, and is in use: {tenant:?}");
                assert!(tenant.keeps.is_some_and(|keeps| tenant.used.1 + keeps <= now), "{tenant:?} at {now:?}");
                self.evictions += 1;
            }
        }
        let left_with = self.held(model, &self.tenants[model]);
        let tenant = self.tenants.get_mut(model).unwrap();
        (tenant.phase, tenant.left_with) = (Phase::Leaving, left_with);
        tenant.evicted =
            Some(cause.clone()).filter(|cause| matches!(cause, Cause::Load | Cause::Relief | Cause::Expiry));
    }
}
