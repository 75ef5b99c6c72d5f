//! A decoder-only transformer, described as data.

use super::{BaseTensor, Layout, ModuleRole, Rope, names};
use crate::{Error, Result};

/// A decoder-only transformer, described as data: what `supports`, estimates, adapters and decoders read.
///
/// Read from config.json by [`DecoderConfig::from_config`] and from GGUF metadata by [`DecoderConfig::from_gguf`].
/// One layer computes, with `n` for a norm that [`DecoderConfig::norms`] places there and else for nothing:
///
/// ```text
/// x += residual_scale · n(attention(n(x)))
/// x += residual_scale · n(down(activation(gate(n(x))) · up(n(x))))
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DecoderConfig {
    /// Which family of tensor names it has.
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
    /// Where the norms of a layer stand.
    pub norms: NormPlacement,
    /// Epsilon of the norms. All are RMS norms (arXiv:1910.07467).
    pub norm_eps: f64,
    /// What is added to a norm's weight as stored: 1 for Gemma in safetensors, else 0.
    pub norm_offset: f64,
    /// Norms of queries and keys, before they are rotated.
    pub qk_norm: Option<QkNorm>,
    /// The feed-forward block's activation.
    pub activation: Activation,
    /// Rotary position embeddings.
    pub rope: Rope,
    /// Those of the layers where the sliding window holds, if they have others.
    pub local_rope: Option<Rope>,
    /// The longest context the model was made for, in tokens.
    pub max_positions: usize,
    /// Keys further back than this are not seen, on the layers it names.
    pub sliding_window: Option<SlidingWindow>,
    /// Which projections of the attention have a bias.
    pub attention_bias: AttentionBias,
    /// Whether the feed-forward projections have a bias.
    pub mlp_bias: bool,
    /// What scores are multiplied by; `1 / sqrt(head_dim)` unless the architecture says otherwise.
    pub attention_scale: f64,
    /// Scores `s` become `cap · tanh(s / cap)`, after the scale and before the mask (arXiv:2408.00118).
    pub attention_soft_cap: Option<f64>,
    /// What embeddings are multiplied by on their way in (not in a tied head).
    pub embedding_scale: f64,
    /// What the output of a block is multiplied by before it is added to the residual stream.
    pub residual_scale: f64,
    /// What logits are multiplied by.
    pub logit_scale: f64,
    /// Logits `x` become `cap · tanh(x / cap)`, after the scale.
    pub logit_soft_cap: Option<f64>,
    /// Whether query, key and value are one projection, with their rows in this order, and gate and up are another.
    pub fused_projections: bool,
    /// Whether the output head is the embedding.
    pub tied_embeddings: bool,
    /// Experts per feed-forward block; 0 for a dense one.
    pub experts: usize,
}

/// A family of decoders: how their checkpoints name tensors, and which fields their configs have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Architecture {
    /// Llama 1 to 3.x and what copies them.
    Llama,
    /// Mistral.
    Mistral,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3, dense.
    Qwen3,
    /// Gemma 1.
    Gemma,
    /// Gemma 2.
    Gemma2,
    /// Gemma 3, text alone.
    Gemma3,
    /// Phi-3 and 3.5, mini and medium.
    Phi3,
    /// Granite 3, dense.
    Granite,
    /// OLMo 2.
    Olmo2,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::Gemma,
        Self::Gemma2,
        Self::Gemma3,
        Self::Phi3,
        Self::Granite,
        Self::Olmo2,
    ];

    /// `model_type` in config.json.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma => "gemma",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3_text",
            Self::Phi3 => "phi3",
            Self::Granite => "granite",
            Self::Olmo2 => "olmo2",
        }
    }

    /// What a norm's weight lacks in `layout`: 1 for Gemma in the Hugging Face layout ([`DecoderConfig::norm_offset`]); in
    /// GGUF files it is in the weight.
    pub fn norm_offset(self, layout: Layout) -> f64 {
        match layout {
            Layout::HuggingFace => self.family().norm_offset,
            Layout::Gguf => 0.0,
        }
    }

    /// Whether rows of its query and key projections are permuted in GGUF files: head by head, dimension `i` and
    /// `i + head_dim / 2` of the Hugging Face layout stand side by side (llama.cpp, `convert_hf_to_gguf.py`, `permute`).
    pub fn permutes_query_key_in_gguf(self) -> bool {
        matches!(self, Self::Llama | Self::Mistral | Self::Granite)
    }
}

/// Where the norms of a layer stand, beside those of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NormPlacement {
    /// Before attention and before the feed-forward block (Llama and most others).
    Before,
    /// After each block, before its output is added to the residual stream, and not before it (OLMo 2).
    After,
    /// Before and after each block (Gemma 2 and 3).
    Around,
}

impl NormPlacement {
    /// Whether a norm stands before each block.
    pub fn before(self) -> bool {
        matches!(self, Self::Before | Self::Around)
    }

    /// Whether a norm stands after each block.
    pub fn after(self) -> bool {
        matches!(self, Self::After | Self::Around)
    }
}

/// Norms of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum QkNorm {
    /// Each head by itself, with one weight of shape (head_dim) for all heads.
    PerHead,
    /// The whole projection, with a weight as wide as it is.
    WholeProjection,
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

    /// Whether the sliding window holds on layer `layer`.
    pub fn is_windowed(&self, layer: usize) -> bool {
        self.sliding_window.as_ref().is_some_and(|w| w.layers.get(layer).copied().unwrap_or(false))
    }

    /// The tensors that a checkpoint of this decoder holds in `layout`: the embedding, then layer by layer, then the
    /// final norm, then the head unless it is tied.
    pub fn base_tensors(&self, layout: Layout) -> Vec<BaseTensor> {
        names::base_tensors(self, layout)
    }

    /// The name of the module `role` in `layout`, of layer `layer` where it is one of a layer; `None` if this decoder
    /// has no such module.
    pub fn module(&self, role: ModuleRole, layer: usize, layout: Layout) -> Option<String> {
        names::module(self, role, layer, layout)
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
            // Every tensor of every layer is listed by name, and the number may come from a small file.
            ("layers", self.layers, 1 << 12),
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
        self.rope.validate(self.head_dim).or_else(|(name, reason)| fail(name, reason))?;
        if let Some(rope) = &self.local_rope {
            let local = |name| if name == "rope.dims" { "local_rope.dims" } else { "local_rope.theta" };
            rope.validate(self.head_dim).or_else(|(name, reason)| fail(local(name), reason))?;
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return fail("norm_eps", format!("is {}; expected a number between 0 and 1", self.norm_eps));
        }
        for (name, value) in [
            ("attention_scale", Some(self.attention_scale)),
            ("attention_soft_cap", self.attention_soft_cap),
            ("embedding_scale", Some(self.embedding_scale)),
            ("residual_scale", Some(self.residual_scale)),
            ("logit_scale", Some(self.logit_scale)),
            ("logit_soft_cap", self.logit_soft_cap),
        ] {
            if let Some(value) = value.filter(|value| !(value.is_finite() && *value > 0.0)) {
                return fail(name, format!("is {value}; expected a number above 0"));
            }
        }
        match &self.sliding_window {
            Some(window) if window.size == 0 || window.size > LARGEST => {
                fail("sliding_window", format!("is {}; expected 1 to {LARGEST}, or none", window.size))
            }
            Some(window) if window.layers.len() != self.layers => fail(
                "sliding_window",
                format!("is for {} layers; expected all {} of them", window.layers.len(), self.layers),
            ),
            _ => Ok(()),
        }
    }
}
