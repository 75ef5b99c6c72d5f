//! What sets each architecture apart, as data: what its layers have, and which fields its config.json has. Defaults are
//! those of the class in transformers 5 (`configuration_*.py`); what is always so is in its `modeling_*.py`.

use super::{Activation, Architecture, NormPlacement, QkNorm};

/// One architecture. Another is another constant and its name in [`Architecture`].
#[derive(Debug)]
pub(super) struct Family {
    /// The class in `architectures` of config.json.
    pub(super) class: &'static str,
    pub(super) norms: NormPlacement,
    /// What safetensors' norm weights lack: [`super::DecoderConfig::norm_offset`].
    pub(super) norm_offset: f64,
    pub(super) qk_norm: Option<QkNorm>,
    pub(super) activation: Activation,
    pub(super) fused_projections: bool,
    /// Query, key and value have a bias, whatever config.json says.
    pub(super) qkv_bias: bool,
    /// Embeddings are multiplied by the square root of the hidden size.
    pub(super) scales_embedding: bool,
    pub(super) window: Window,
    /// `tie_word_embeddings` if no field says otherwise.
    pub(super) tied: bool,
    /// `rope_theta` if no field says otherwise.
    pub(super) theta: f64,
    /// The same for layers where the window holds, if they rotate by another table.
    pub(super) local_theta: Option<f64>,
    /// Which of [`PARTICULAR`] it has, and whether `partial_rotary_factor`, without a default.
    pub(super) fields: &'static [&'static str],
    /// Numbers that an absent field stands for.
    pub(super) defaults: &'static [(&'static str, f64)],
}

/// On which layers the sliding window holds, if `layer_types` does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Window {
    Nowhere,
    /// Wherever there is a `sliding_window`.
    Everywhere,
    /// With `use_sliding_window`, from layer `max_window_layers` on.
    UpperLayers,
    /// Everywhere but on each `n`th layer, counted from 1; `n` is `sliding_window_pattern` where that is a field.
    AllButEvery(usize),
}

/// What leaves the computation as it is, for an architecture that does not have the field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Neutral {
    Absent,
    Bool(bool),
    One,
}

/// Fields that change the computation in some architectures, here or elsewhere, and what others write down for not having
/// them. What is neither here nor read is refused ([`super::ConfigFields::refuse_unread`]).
pub(super) const PARTICULAR: &[(&str, Neutral)] = &[
    ("attention_bias", Neutral::Bool(false)),
    ("mlp_bias", Neutral::Bool(false)),
    ("lm_head_bias", Neutral::Bool(false)),
    ("sliding_window", Neutral::Absent),
    ("use_sliding_window", Neutral::Bool(false)),
    ("sliding_window_pattern", Neutral::Absent),
    ("_sliding_window_pattern", Neutral::Absent),
    ("parallel_attn", Neutral::Bool(false)),
    ("query_pre_attn_scalar", Neutral::Absent),
    ("attn_logit_softcapping", Neutral::Absent),
    ("final_logit_softcapping", Neutral::Absent),
    ("embedding_multiplier", Neutral::One),
    ("attention_multiplier", Neutral::Absent),
    ("residual_multiplier", Neutral::One),
    ("logits_scaling", Neutral::One),
    ("alibi", Neutral::Bool(false)),
    // Of Phi-4 mini, whose own code has a factor and a layer pattern that no checkpoint uses.
    ("full_attn_mod", Neutral::One),
    ("interpolate_factor", Neutral::One),
    ("rope_local_base_freq", Neutral::Absent),
];

const LLAMA: Family = Family {
    class: "LlamaForCausalLM",
    norms: NormPlacement::Before,
    norm_offset: 0.0,
    qk_norm: None,
    activation: Activation::Silu,
    fused_projections: false,
    qkv_bias: false,
    scales_embedding: false,
    window: Window::Nowhere,
    tied: false,
    theta: 10_000.0,
    local_theta: None,
    fields: &["attention_bias", "mlp_bias"],
    defaults: &[],
};

const MISTRAL: Family = Family {
    class: "MistralForCausalLM",
    window: Window::Everywhere,
    fields: &[],
    defaults: &[("num_key_value_heads", 8.0), ("sliding_window", 4096.0)],
    ..LLAMA
};

const QWEN2: Family = Family {
    class: "Qwen2ForCausalLM",
    qkv_bias: true,
    window: Window::UpperLayers,
    fields: &["use_sliding_window"],
    defaults: &[("num_key_value_heads", 32.0), ("sliding_window", 4096.0), ("max_window_layers", 28.0)],
    ..LLAMA
};

const QWEN3: Family = Family {
    class: "Qwen3ForCausalLM",
    qk_norm: Some(QkNorm::PerHead),
    qkv_bias: false,
    fields: &["attention_bias", "use_sliding_window"],
    defaults: &[
        ("num_key_value_heads", 32.0),
        ("head_dim", 128.0),
        ("sliding_window", 4096.0),
        ("max_window_layers", 28.0),
    ],
    ..QWEN2
};

const GEMMA: Family = Family {
    class: "GemmaForCausalLM",
    norm_offset: 1.0,
    activation: Activation::GeluTanh,
    scales_embedding: true,
    tied: true,
    fields: &["attention_bias"],
    defaults: &[("num_key_value_heads", 16.0), ("head_dim", 256.0)],
    ..LLAMA
};

const GEMMA2: Family = Family {
    class: "Gemma2ForCausalLM",
    norms: NormPlacement::Around,
    window: Window::AllButEvery(2),
    defaults: &[
        ("num_key_value_heads", 4.0),
        ("head_dim", 256.0),
        ("sliding_window", 4096.0),
        ("query_pre_attn_scalar", 256.0),
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 30.0),
    ],
    ..GEMMA
};

// It has `attn_logit_softcapping` too, but transformers does not apply it: a value there is refused.
const GEMMA3: Family = Family {
    class: "Gemma3ForCausalLM",
    qk_norm: Some(QkNorm::PerHead),
    window: Window::AllButEvery(6),
    theta: 1_000_000.0,
    local_theta: Some(10_000.0),
    fields: &[
        "attention_bias",
        "final_logit_softcapping",
        "rope_local_base_freq",
        "sliding_window_pattern",
        "_sliding_window_pattern",
    ],
    defaults: &[
        ("num_key_value_heads", 4.0),
        ("head_dim", 256.0),
        ("sliding_window", 4096.0),
        ("query_pre_attn_scalar", 256.0),
    ],
    ..GEMMA2
};

const PHI3: Family = Family {
    class: "Phi3ForCausalLM",
    fused_projections: true,
    window: Window::Everywhere,
    fields: &["sliding_window", "partial_rotary_factor"],
    defaults: &[("original_max_position_embeddings", 4096.0)],
    ..LLAMA
};

const GRANITE: Family = Family {
    class: "GraniteForCausalLM",
    fields: &["attention_bias", "mlp_bias", "embedding_multiplier", "residual_multiplier", "logits_scaling"],
    defaults: &[("attention_multiplier", 1.0)],
    ..LLAMA
};

const OLMO2: Family = Family {
    class: "Olmo2ForCausalLM",
    norms: NormPlacement::After,
    qk_norm: Some(QkNorm::WholeProjection),
    fields: &["attention_bias"],
    ..LLAMA
};

impl Architecture {
    pub(super) fn family(self) -> &'static Family {
        match self {
            Self::Llama => &LLAMA,
            Self::Mistral => &MISTRAL,
            Self::Qwen2 => &QWEN2,
            Self::Qwen3 => &QWEN3,
            Self::Gemma => &GEMMA,
            Self::Gemma2 => &GEMMA2,
            Self::Gemma3 => &GEMMA3,
            Self::Phi3 => &PHI3,
            Self::Granite => &GRANITE,
            Self::Olmo2 => &OLMO2,
        }
    }
}

impl Family {
    /// Whether `name`, which is not a field of all, is a field of it.
    pub(super) fn has(&self, name: &str) -> bool {
        self.fields.contains(&name) || self.default(name).is_some()
    }

    /// The number that `name` stands for where it is absent.
    pub(super) fn default(&self, name: &str) -> Option<f64> {
        self.defaults.iter().find(|(field, _)| *field == name).map(|(_, number)| *number)
    }
}
