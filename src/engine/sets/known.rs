//! The adapters that were made for a loaded model.

use std::sync::{Arc, Weak};

use llm_local_core::{LoraAdapter, UsedAdapter};

/// The adapters that were made for a loaded model and that somebody still holds.
#[derive(Default)]
pub(super) struct Known(Vec<(Weak<LoraAdapter>, UsedAdapter)>);

impl Known {
    /// Takes `adapter` up, which `used` is. The same adapter of the same version is one: the one that somebody holds.
    pub(super) fn take_up(&mut self, adapter: Arc<LoraAdapter>, used: UsedAdapter) -> Arc<LoraAdapter> {
        self.0.retain(|(held, _)| held.strong_count() > 0);
        let is_same = |held: &LoraAdapter, of: &UsedAdapter| {
            held.digest == adapter.digest
                && (&of.reference, &of.revision, &of.version) == (&used.reference, &used.revision, &used.version)
        };
        let same = self.0.iter().find_map(|(held, of)| held.upgrade().filter(|held| is_same(held, of)));
        same.unwrap_or_else(|| {
            self.0.push((Arc::downgrade(&adapter), used));
            adapter
        })
    }

    /// What statistics say of `adapter` with `weight`, if it is one of these.
    pub(super) fn used(&self, adapter: &Arc<LoraAdapter>, weight: f32) -> Option<UsedAdapter> {
        // As long as there is a weak one, no other adapter gets this address.
        let (_, used) = self.0.iter().find(|(held, _)| held.as_ptr() == Arc::as_ptr(adapter))?;
        let mut used = used.clone();
        used.weight = weight;
        Some(used)
    }
}
