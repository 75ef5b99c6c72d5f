//! Adapters that apply together.

use std::sync::Arc;

use super::LoraAdapter;

/// Adapters that apply together, each with what its delta is multiplied by.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct AdapterSet {
    /// Adapter and weight.
    pub adapters: Vec<(Arc<LoraAdapter>, f32)>,
}

impl AdapterSet {
    /// No adapters: the base alone.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an adapter.
    pub fn with(mut self, adapter: Arc<LoraAdapter>, weight: f32) -> Self {
        self.adapters.push((adapter, weight));
        self
    }

    /// What tells this set from others: the digest and weight of each adapter, in order; empty for the base alone. A KV
    /// cache belongs to one digest.
    pub fn digest(&self) -> String {
        let one = |(adapter, weight): &(Arc<LoraAdapter>, f32)| format!("{}*{weight}", adapter.digest);
        self.adapters.iter().map(one).collect::<Vec<_>>().join("+")
    }

    /// Whether it is the base alone.
    pub fn is_empty(&self) -> bool {
        self.adapters.is_empty()
    }
}
