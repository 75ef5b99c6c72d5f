//! Keys and values of one sequence.

mod form;
mod layer;

pub(crate) use {
    form::{KvForm, kv_supported},
    layer::{Kept, LayerCache},
};

use llm_local_core::model::DecoderConfig;
use mlx_rs::{Array, Device, DeviceType, Dtype, error::Result};

/// The keys and values of one sequence, layer by layer. A clone has the same arrays until one of both is written to.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    pub(crate) layers: Vec<LayerCache>,
    /// Tokens computed.
    pub(crate) tokens: usize,
    /// Tokens that the sequence is expected to have, so that room for them is made at once.
    pub(crate) expected: usize,
    /// Whether it is computed with the rotary frequencies of long sequences.
    pub(crate) long: bool,
}

/// What all layers have in common.
#[derive(Debug, Clone)]
pub(crate) struct Dimensions {
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) context_length: usize,
    /// What activations are in.
    pub(crate) activations: Dtype,
    /// What keys and values are kept as.
    pub(crate) kv: KvForm,
    /// Whether MLX has kernels of its own for norms, rotation and attention here, which it composes of smaller
    /// operations elsewhere.
    pub(crate) kernels: bool,
}

impl Dimensions {
    /// Those of a decoder that `c` describes, on the device that MLX computes on by default.
    pub(crate) fn new(c: &DecoderConfig, context_length: usize, activations: Dtype, kv: KvForm) -> Result<Self> {
        Ok(Self {
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            context_length,
            activations,
            kv,
            kernels: matches!(Device::try_default()?.get_type()?, DeviceType::Gpu),
        })
    }
}

impl Cache {
    /// Forgets all but the first `tokens` tokens. `false`, with nothing changed, if a window has left behind what the
    /// next token sees.
    pub(crate) fn truncate(&mut self, tokens: usize) -> bool {
        if tokens >= self.tokens {
            return tokens == self.tokens;
        }
        if !self.layers.iter().all(|layer| layer.reaches(tokens)) {
            return false;
        }
        self.layers.iter_mut().for_each(|layer| layer.truncate(tokens));
        self.tokens = tokens;
        self.expected = 0;
        true
    }

    /// Bytes allocated.
    pub(crate) fn bytes(&self) -> u64 {
        self.layers.iter().map(LayerCache::bytes).sum()
    }

    /// All that it holds.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.layers.iter().flat_map(LayerCache::arrays)
    }
}

#[cfg(test)]
mod tests;
