//! [`DecoderConfig`] from the metadata of a GGUF file. Keys and defaults as in llama.cpp's `llama-arch.cpp` and
//! `llama-model.cpp`.

use super::{
    Activation, Architecture, AttentionBias, DecoderConfig, GgufMetadata, GgufValue, NormPlacement, Rope, RopeScaling,
    SlidingWindow,
};
use crate::{Error, Result, TensorEntry};

impl DecoderConfig {
    /// Reads the metadata of a GGUF file, and what only its tensors tell: the vocabulary, biases, whether there is a
    /// head of its own, and divisors of rotary frequencies.
    ///
    /// # Errors
    /// [`Error::UnsupportedModelFormat`] that names the key, what it has and what was expected, as
    /// [`DecoderConfig::from_config`].
    pub fn from_gguf(id: &str, metadata: &GgufMetadata, tensors: &[TensorEntry]) -> Result<Self> {
        let keys = Keys { id, metadata };
        let architecture = match keys.string("general.architecture")? {
            Some("llama") => Architecture::Llama,
            _ => return Err(keys.wrong("general.architecture", "a supported architecture: llama")),
        };
        keys.refuse_foreign()?;
        let has = |suffix: &str| tensors.iter().any(|t| t.name.ends_with(suffix));

        let (hidden_size, heads) = (keys.size("llama.embedding_length")?, keys.size("llama.attention.head_count")?);
        let layers = keys.size("llama.block_count")?;
        let head_dim = head_dim(&keys, hidden_size, heads)?;
        let decoder = Self {
            architecture,
            vocab_size: vocab_size(&keys, tensors)?,
            hidden_size,
            intermediate_size: keys.size("llama.feed_forward_length")?,
            layers,
            heads,
            kv_heads: keys.usize("llama.attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            norm_eps: keys.f64("llama.attention.layer_norm_rms_epsilon")?.ok_or_else(|| {
                keys.wrong("llama.attention.layer_norm_rms_epsilon", "a number, usually 1e-5 or 1e-6")
            })?,
            norms: NormPlacement::Before,
            norm_offset: 0.0,
            qk_norm: None,
            activation: Activation::Silu,
            local_rope: None,
            rope: rope(&keys, head_dim, tensors)?,
            max_positions: keys.size("llama.context_length")?,
            sliding_window: keys
                .usize("llama.attention.sliding_window")?
                .map(|n| SlidingWindow::new(n, vec![true; layers.min(1 << 16)])),
            attention_bias: AttentionBias::new(
                has(".attn_q.bias") || has(".attn_k.bias") || has(".attn_v.bias"),
                has(".attn_output.bias"),
            ),
            mlp_bias: has(".ffn_gate.bias") || has(".ffn_up.bias") || has(".ffn_down.bias"),
            attention_scale: 1.0 / (head_dim as f64).sqrt(),
            attention_soft_cap: None,
            embedding_scale: 1.0,
            residual_scale: 1.0,
            logit_scale: 1.0,
            logit_soft_cap: None,
            fused_projections: false,
            tied_embeddings: !tensors.iter().any(|t| t.name == "output.weight"),
            experts: keys.usize("llama.expert_count")?.unwrap_or(0),
        };
        decoder.validate(id, &|name| key_name(name).to_owned())?;
        Ok(decoder)
    }
}

/// The key behind a field of [`DecoderConfig`].
fn key_name(name: &'static str) -> &'static str {
    match name {
        "vocab_size" => "token_embd.weight",
        "hidden_size" => "llama.embedding_length",
        "intermediate_size" => "llama.feed_forward_length",
        "layers" => "llama.block_count",
        "heads" => "llama.attention.head_count",
        "kv_heads" => "llama.attention.head_count_kv",
        "head_dim" => "llama.attention.key_length",
        "max_positions" => "llama.context_length",
        "rope.dims" => "llama.rope.dimension_count",
        "rope.theta" => "llama.rope.freq_base",
        "norm_eps" => "llama.attention.layer_norm_rms_epsilon",
        "sliding_window" => "llama.attention.sliding_window",
        other => other,
    }
}

/// Typed access to metadata, with errors that name the key and show what was found.
struct Keys<'a> {
    id: &'a str,
    metadata: &'a GgufMetadata,
}

impl<'a> Keys<'a> {
    fn wrong(&self, key: &str, expected: &str) -> Error {
        let found = match self.metadata.get(key) {
            None => "missing".to_owned(),
            Some(GgufValue::Int(n)) => n.to_string(),
            Some(GgufValue::Float(x)) => x.to_string(),
            Some(GgufValue::Bool(b)) => b.to_string(),
            Some(GgufValue::String(s)) => format!("{s:?}"),
            Some(GgufValue::Ints(v)) => format!("an array of {} integers", v.len()),
            Some(GgufValue::Floats(v)) => format!("an array of {} floats", v.len()),
            Some(GgufValue::Bools(v)) => format!("an array of {} booleans", v.len()),
            Some(GgufValue::Strings(v)) => format!("an array of {} texts", v.len()),
        };
        Error::unsupported_format(self.id, format!("{key} is {found}; expected {expected}"))
    }

    /// What `read` gives for `key`: `None` only if the key is not there.
    fn read<T>(&self, key: &str, value: Option<T>, expected: &str) -> Result<Option<T>> {
        match value {
            None if self.metadata.get(key).is_some() => Err(self.wrong(key, expected)),
            value => Ok(value),
        }
    }

    fn usize(&self, key: &str) -> Result<Option<usize>> {
        self.read(key, self.metadata.usize(key), "one whole number, not negative")
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.usize(key)?.ok_or_else(|| self.wrong(key, "a whole number above 0"))
    }

    fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.read(key, self.metadata.f64(key), "a number")
    }

    fn string(&self, key: &str) -> Result<Option<&'a str>> {
        self.read(key, self.metadata.string(key), "text")
    }

    /// Keys that change the computation and are not described by [`DecoderConfig`].
    fn refuse_foreign(&self) -> Result<()> {
        for name in [
            "attention.scale",
            "attention.clamp_kqv",
            "attention.max_alibi_bias",
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "logit_scale",
            "embedding_scale",
            "residual_scale",
        ] {
            let key = format!("llama.{name}");
            if self.metadata.get(&key).is_some() {
                return Err(self.wrong(&key, "no such key for this architecture"));
            }
        }
        match self.metadata.bool("llama.attention.causal") {
            Some(false) => Err(self.wrong("llama.attention.causal", "true")),
            _ => Ok(()),
        }
    }
}

fn head_dim(keys: &Keys<'_>, hidden_size: usize, heads: usize) -> Result<usize> {
    let key = keys.usize("llama.attention.key_length")?;
    let value = keys.usize("llama.attention.value_length")?;
    match (key, value) {
        (Some(k), Some(v)) if k != v => {
            Err(keys.wrong("llama.attention.value_length", &format!("{k}, as llama.attention.key_length has")))
        }
        (Some(dim), _) | (None, Some(dim)) => Ok(dim),
        (None, None) if heads > 0 && hidden_size.is_multiple_of(heads) => Ok(hidden_size / heads),
        (None, None) => Err(keys.wrong(
            "llama.attention.key_length",
            &format!("a number, since {heads} attention heads do not divide the hidden size {hidden_size}"),
        )),
    }
}

fn vocab_size(keys: &Keys<'_>, tensors: &[TensorEntry]) -> Result<usize> {
    let embedding = tensors.iter().find(|t| t.name == "token_embd.weight");
    let rows = embedding
        .and_then(|t| t.shape.first().copied())
        .ok_or_else(|| Error::unsupported_format(keys.id, "the tensor token_embd.weight is missing or has no shape"))?;
    match keys.usize("llama.vocab_size")? {
        Some(n) if n != rows => Err(keys.wrong("llama.vocab_size", &format!("{rows}, the rows of token_embd.weight"))),
        _ => Ok(rows),
    }
}

fn rope(keys: &Keys<'_>, head_dim: usize, tensors: &[TensorEntry]) -> Result<Rope> {
    let theta = keys.f64("llama.rope.freq_base")?.unwrap_or(10_000.0);
    let dims = keys.usize("llama.rope.dimension_count")?.unwrap_or(head_dim);
    let by_metadata = scaling(keys)?;
    let divisors = tensors.iter().find(|t| {
        ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"].contains(&t.name.as_str())
    });
    let scaling = match divisors {
        Some(t) if by_metadata != RopeScaling::None => {
            return Err(
                keys.wrong("llama.rope.scaling.type", &format!("none, since the tensor {} is there too", t.name))
            );
        }
        Some(t) => RopeScaling::Divisors { tensor: t.name.clone() },
        None => by_metadata,
    };
    Ok(Rope::new(theta, dims).with_scaling(scaling))
}

fn scaling(keys: &Keys<'_>) -> Result<RopeScaling> {
    const PREFIX: &str = "llama.rope.scaling.";
    const KNOWN: &[&str] =
        &["type", "factor", "original_context_length", "finetuned", "attn_factor", "yarn_beta_fast", "yarn_beta_slow"];
    let foreign = keys.metadata.iter().find(|(k, _)| k.strip_prefix(PREFIX).is_some_and(|name| !KNOWN.contains(&name)));
    if let Some((key, _)) = foreign {
        return Err(keys.wrong(key, "no such key"));
    }
    let positive = |key: &str| match keys.f64(key)? {
        Some(x) if !(x.is_finite() && x > 0.0) => Err(keys.wrong(key, "a number above 0")),
        x => Ok(x),
    };
    let factor = match positive("llama.rope.scaling.factor")? {
        None => positive("llama.rope.scale_linear")?, // the name in the first GGUF files
        factor => factor,
    };
    // Without a type, llama.cpp takes a factor as linear.
    match keys.string("llama.rope.scaling.type")?.unwrap_or("linear") {
        "none" => Ok(RopeScaling::None),
        "linear" => match factor {
            None | Some(1.0) => Ok(RopeScaling::None),
            Some(factor) => Ok(RopeScaling::Linear { factor }),
        },
        "yarn" => Ok(RopeScaling::Yarn {
            factor: factor.ok_or_else(|| keys.wrong("llama.rope.scaling.factor", "a number above 0"))?,
            original_max_positions: keys.size("llama.rope.scaling.original_context_length")?,
            beta_fast: positive("llama.rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
            beta_slow: positive("llama.rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
            attention_factor: positive("llama.rope.scaling.attn_factor")?,
            mscale: None,
            mscale_all_dim: None,
            truncate: true,
        }),
        _ => Err(keys.wrong("llama.rope.scaling.type", "none, linear or yarn")),
    }
}
