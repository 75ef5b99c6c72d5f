//! A decoder-only transformer, described as data.

use super::{Layout, Rope, names};
use crate::{Error, Result};

/// A decoder-only transformer, described as data: what `supports`, estimates, adapters and decoders read.
///
/// Read from config.json by [`DecoderConfig::from_config`] and from GGUF metadata by [`DecoderConfig::from_gguf`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DecoderConfig {
    /// Which family of tensor names and of blocks it has.
    pub architecture: Architecture,
    /// Number of token ids, and rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads per layer.
    pub heads: usize,
    /// Key and value heads per layer; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// The feed-forward block's activation.
    pub activation: Activation,
    /// Rotary position embeddings.
    pub rope: Rope,
    /// The longest context the model was made for, in tokens.
    pub max_positions: usize,
    /// Keys further back than this are not seen, on the layers it names.
    pub sliding_window: Option<SlidingWindow>,
    /// Which projections of the attention have a bias.
    pub attention_bias: AttentionBias,
    /// Whether the feed-forward projections have a bias.
    pub mlp_bias: bool,
    /// Whether the output head is the embedding.
    pub tied_embeddings: bool,
    /// Experts per feed-forward block; 0 for a dense one.
    pub experts: usize,
}

/// A family of decoders: their tensor names and the order of their blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Architecture {
    /// Llama 1 to 3.x and what copies them.
    Llama,
}

impl Architecture {
    /// `model_type` in config.json, `general.architecture` in GGUF.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
        }
    }
}

/// The activation of a gated feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// The exact GELU, by erf.
    Gelu,
    /// GELU's tanh approximation.
    GeluTanh,
    /// max(x, 0).
    Relu,
}

impl Activation {
    /// Its name, as `hidden_act` in config.json has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_pytorch_tanh",
            Self::Relu => "relu",
        }
    }
}

/// Biases of the attention's projections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct AttentionBias {
    /// Query, key and value have one.
    pub qkv: bool,
    /// The output projection has one.
    pub output: bool,
}

impl AttentionBias {
    /// Biases on query, key and value, and on the output projection.
    pub fn new(qkv: bool, output: bool) -> Self {
        Self { qkv, output }
    }

    /// Whether any projection has one.
    pub fn any(self) -> bool {
        self.qkv || self.output
    }
}

/// Attention that looks back only so far.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlidingWindow {
    /// Keys that a query sees, itself included.
    pub size: usize,
    /// For each layer, whether the window holds there.
    pub layers: Vec<bool>,
}

impl SlidingWindow {
    /// A window of `size` keys on the layers that `layers` marks.
    pub fn new(size: usize, layers: Vec<bool>) -> Self {
        Self { size, layers }
    }
}

impl DecoderConfig {
    /// Bytes of keys and values per token of context, over all layers, with elements of `element_bytes`.
    pub fn kv_bytes_per_token(&self, element_bytes: usize) -> u64 {
        [2, self.layers, self.kv_heads, self.head_dim, element_bytes]
            .iter()
            .fold(1u64, |n, &d| n.saturating_mul(d as u64))
    }

    /// The weights that a checkpoint of this decoder holds in `layout`, layer by layer, with their shapes (out, in).
    /// Biases are not listed; the head is, unless it is tied.
    pub fn base_tensors(&self, layout: Layout) -> Vec<(String, Vec<usize>)> {
        names::base_tensors(self, layout)
    }

    /// Checks what no decoder can be: sizes of zero or beyond reason, heads that do not divide, values that are no
    /// numbers. `field` gives the name that the checkpoint has for a field.
    pub(super) fn validate(&self, id: &str, field: &dyn Fn(&'static str) -> String) -> Result<()> {
        let fail = |name, reason: String| Err(Error::unsupported_format(id, format!("{} {reason}", field(name))));
        // Far above any model, and low enough that the product of any two fits.
        const LARGEST: usize = 1 << 31;
        for (name, value, largest) in [
            ("vocab_size", self.vocab_size, LARGEST),
            ("hidden_size", self.hidden_size, LARGEST),
            ("intermediate_size", self.intermediate_size, LARGEST),
            ("layers", self.layers, 1 << 16),
            ("heads", self.heads, 1 << 16),
            ("kv_heads", self.kv_heads, 1 << 16),
            ("head_dim", self.head_dim, 1 << 16),
            ("max_positions", self.max_positions, LARGEST),
        ] {
            if value == 0 || value > largest {
                return fail(name, format!("is {value}; expected 1 to {largest}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return fail("kv_heads", format!("is {}, which does not divide the {} heads", self.kv_heads, self.heads));
        }
        let dims = self.rope.dims;
        if dims == 0 || !dims.is_multiple_of(2) || dims > self.head_dim {
            return fail(
                "rope.dims",
                format!("makes {dims} rotated dimensions of {}; expected an even number", self.head_dim),
            );
        }
        if !(self.rope.theta.is_finite() && self.rope.theta > 0.0) {
            return fail("rope.theta", format!("is {}; expected a number above 0", self.rope.theta));
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return fail("norm_eps", format!("is {}; expected a number between 0 and 1", self.norm_eps));
        }
        match &self.sliding_window {
            Some(window) if window.size == 0 => fail("sliding_window", "is 0; expected at least 1, or none".into()),
            _ => Ok(()),
        }
    }
}
