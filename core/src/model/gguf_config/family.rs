//! What sets each architecture apart in GGUF files, as data, beside what it has in any layout ([`super::super::family`]).

use super::{GgufMetadata, keys::shown};
use crate::{Error, Result, model::Architecture};

/// One architecture. Another is another constant in [`GgufFamily::ALL`].
#[derive(Debug)]
pub(super) struct GgufFamily {
    /// `general.architecture`, and what its keys begin with.
    pub(super) name: &'static str,
    pub(super) architecture: Architecture,
    /// Keys that it has beside [`COMMON`].
    pub(super) keys: &'static [&'static str],
    /// Numbers that an absent key stands for.
    pub(super) defaults: &'static [(&'static str, f64)],
    /// Numbers that must be there.
    pub(super) required: &'static [&'static str],
    /// `attention.sliding_window` where it is absent.
    pub(super) default_window: Option<usize>,
    /// The period of its windows, if no key says otherwise: 0 for all layers, else all but every last one.
    pub(super) window_period: Option<usize>,
    pub(super) local_rope: LocalRope,
    /// The model of so many layers scales its scores by the hidden size per head instead of by the head's width, which
    /// no key says (27B of Gemma).
    pub(super) layers_scaled_by_width: Option<usize>,
    /// Without `rope.scaling.finetuned`, it does not rotate at all.
    pub(super) rotation_is_optional: bool,
}

/// How layers rotate where the window holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum LocalRope {
    /// With the scaling of the others, and their base unless `rope.freq_base_swa` says otherwise.
    Scaled,
    /// Without scaling, and with this base, or that of the others, unless `rope.freq_base_swa` says otherwise.
    Unscaled(Option<f64>),
}

/// Keys of every architecture, without its name before them: those that are read, and those that say nothing about the
/// computation of these decoders.
pub(super) const COMMON: &[&str] = &[
    "context_length",
    "embedding_length",
    "embedding_length_out",
    "block_count",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.key_length_swa",
    "attention.value_length",
    "attention.value_length_swa",
    "attention.layer_norm_rms_epsilon",
    "attention.layer_norm_epsilon", // of norms that none of them has
    "attention.causal",
    "rope.dimension_count",
    "rope.dimension_count_swa",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "tensor_data_layout",
    "pooling_type",
];

const LLAMA: GgufFamily = GgufFamily {
    name: "llama",
    architecture: Architecture::Llama,
    // Mistral is converted as llama, and its window is on all layers.
    keys: &["attention.sliding_window", "attention.sliding_window_pattern"],
    defaults: &[],
    required: &[],
    default_window: None,
    window_period: Some(0),
    local_rope: LocalRope::Scaled,
    layers_scaled_by_width: None,
    rotation_is_optional: false,
};

// On which layers a window holds depends on `max_window_layers`, for which there is no key.
const QWEN2: GgufFamily = GgufFamily { name: "qwen2", architecture: Architecture::Qwen2, window_period: None, ..LLAMA };

const QWEN3: GgufFamily = GgufFamily { name: "qwen3", architecture: Architecture::Qwen3, ..QWEN2 };

const GEMMA: GgufFamily = GgufFamily { name: "gemma", architecture: Architecture::Gemma, keys: &[], ..LLAMA };

const GEMMA2: GgufFamily = GgufFamily {
    name: "gemma2",
    architecture: Architecture::Gemma2,
    keys: &[
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "rope.freq_base_swa",
        "attn_logit_softcapping",
        "final_logit_softcapping",
    ],
    defaults: &[("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)],
    default_window: Some(4096),
    window_period: Some(2),
    layers_scaled_by_width: Some(46),
    ..LLAMA
};

const GEMMA3: GgufFamily = GgufFamily {
    name: "gemma3",
    architecture: Architecture::Gemma3,
    keys: &[
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "rope.freq_base_swa",
        "final_logit_softcapping",
    ],
    defaults: &[],
    default_window: None,
    window_period: Some(6),
    local_rope: LocalRope::Unscaled(Some(10_000.0)),
    layers_scaled_by_width: Some(62),
    ..GEMMA2
};

const PHI3: GgufFamily = GgufFamily { name: "phi3", architecture: Architecture::Phi3, ..LLAMA };

const GRANITE: GgufFamily = GgufFamily {
    name: "granite",
    architecture: Architecture::Granite,
    keys: &["attention.scale", "embedding_scale", "residual_scale", "logit_scale"],
    required: &["logit_scale"],
    rotation_is_optional: true,
    ..LLAMA
};

// OLMo 3 is converted as olmo2; it has the windows.
const OLMO2: GgufFamily = GgufFamily {
    name: "olmo2",
    architecture: Architecture::Olmo2,
    keys: &["attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base_swa"],
    window_period: Some(4),
    local_rope: LocalRope::Unscaled(None),
    ..LLAMA
};

impl Architecture {
    /// That of GGUF files, models and adapters, whose `general.architecture` is `name`. Several can have one name (Mistral
    /// is converted as `llama`): their tensors are then named alike too.
    ///
    /// # Errors
    /// The names that are known.
    pub fn of_gguf(name: &str) -> std::result::Result<Self, String> {
        let family = GgufFamily::ALL.into_iter().find(|family| family.name == name);
        family.map(|family| family.architecture).ok_or_else(GgufFamily::names)
    }

    /// `general.architecture` of GGUF files of it.
    pub fn gguf_name(self) -> &'static str {
        // llama.cpp converts Mistral as that.
        let own = if self == Self::Mistral { Self::Llama } else { self };
        GgufFamily::ALL.into_iter().find(|family| family.architecture == own).map_or(own.name(), |family| family.name)
    }
}

impl GgufFamily {
    const ALL: [&Self; 9] = [&LLAMA, &QWEN2, &QWEN3, &GEMMA, &GEMMA2, &GEMMA3, &PHI3, &GRANITE, &OLMO2];

    /// That of the file.
    pub(super) fn of(id: &str, metadata: &GgufMetadata) -> Result<&'static Self> {
        let key = "general.architecture";
        let found = metadata.string(key).and_then(|name| Self::ALL.into_iter().find(|family| family.name == name));
        found.ok_or_else(|| {
            let names = Self::names();
            let found = shown(metadata.get(key));
            Error::unsupported_format(id, format!("{key} is {found}; expected a supported architecture: {names}"))
        })
    }

    fn names() -> String {
        Self::ALL.map(|family| family.name).join(", ")
    }

    /// The full name of a key.
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.name)
    }

    /// Whether `name` is a key of it.
    pub(super) fn has(&self, name: &str) -> bool {
        self.keys.contains(&name)
    }

    /// The number that `name` stands for where it is absent.
    pub(super) fn default(&self, name: &str) -> Option<f64> {
        self.defaults.iter().find(|(key, _)| *key == name).map(|(_, number)| *number)
    }
}
