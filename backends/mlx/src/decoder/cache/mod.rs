//! Keys and values of one sequence.

mod form;

pub(crate) use form::{KvForm, kv_supported};

use llm_local_core::model::DecoderConfig;
use mlx_rs::{Device, DeviceType, Dtype, error::Result};

/// The keys and values of one sequence, layer by layer.
#[derive(Debug)]
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
