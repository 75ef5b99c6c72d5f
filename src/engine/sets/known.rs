//! The adapters that were made for a loaded model.

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak},
};

use llm_local_core::{Allowance, LoraAdapter, UsedAdapter};

/// The adapters that were made for a loaded model and that somebody still holds.
#[derive(Default)]
pub(super) struct Known(Vec<Made>);

/// An adapter, what statistics say of it, and what is let pass of it.
type Made = (Weak<LoraAdapter>, UsedAdapter, BTreeSet<Allowance>);

impl Known {
    /// Takes `adapter` up, which `used` is, with what is let pass of it. The same adapter of the same version is one: the one
    /// that somebody holds.
    pub(super) fn take_up(
        &mut self,
        adapter: Arc<LoraAdapter>,
        used: UsedAdapter,
        allow: BTreeSet<Allowance>,
    ) -> Arc<LoraAdapter> {
        self.0.retain(|(held, ..)| held.strong_count() > 0);
        let is_same = |held: &LoraAdapter, of: &UsedAdapter, allowed: &BTreeSet<Allowance>| {
            held.digest == adapter.digest
                && (&of.reference, &of.revision, &of.version) == (&used.reference, &used.revision, &used.version)
                && *allowed == allow
        };
        let same =
            self.0.iter().find_map(|(held, of, allowed)| held.upgrade().filter(|held| is_same(held, of, allowed)));
        same.unwrap_or_else(|| {
            self.0.push((Arc::downgrade(&adapter), used, allow));
            adapter
        })
    }

    /// What statistics say of `adapter` with `weight`, and what is let pass of it, if it is one of these.
    pub(super) fn used(&self, adapter: &Arc<LoraAdapter>, weight: f32) -> Option<(UsedAdapter, &BTreeSet<Allowance>)> {
        // As long as there is a weak one, no other adapter gets this address.
        let (_, used, allow) = self.0.iter().find(|(held, ..)| held.as_ptr() == Arc::as_ptr(adapter))?;
        let mut used = used.clone();
        used.weight = weight;
        Some((used, allow))
    }
}
