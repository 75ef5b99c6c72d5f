//! [`DecoderConfig`] from the metadata of a GGUF file. Keys and defaults are those of llama.cpp (`llama-arch.cpp`,
//! `llama-model.cpp` and `models/*.cpp`); where it ignores what its converter wrote down about the model (a window of
//! Phi-3, details of YaRN), the model counts.

mod family;
mod keys;
mod rope;
mod tensors;

use family::GgufFamily;
use keys::{Keys, required};
use rope::ropes;
use tensors::Tensors;

use super::{AttentionBias, DecoderConfig, GgufMetadata, GgufValue, SlidingWindow};
use crate::{Result, TensorEntry};

impl DecoderConfig {
    /// Reads the metadata of a GGUF file, and what only its tensors tell: the vocabulary, biases, whether there is a
    /// head of its own, and divisors of rotary frequencies.
    ///
    /// # Errors
    /// [`crate::Error::UnsupportedModelFormat`] that names the key or the tensor, what it has and what was expected, as
    /// [`DecoderConfig::from_config`]: also keys of the architecture that are not understood, unless they are 0 or
    /// false, and tensors that are no part of such a decoder.
    pub fn from_gguf(id: &str, metadata: &GgufMetadata, tensors: &[TensorEntry]) -> Result<Self> {
        let gguf = GgufFamily::of(id, metadata)?;
        let keys = Keys { id, metadata, gguf };
        keys.refuse_unknown()?;
        let (family, tensors) = (gguf.architecture.family(), Tensors::new(id, tensors));

        let (hidden_size, heads, layers) =
            (keys.size("embedding_length")?, keys.size("attention.head_count")?, keys.size("block_count")?);
        let head_dim = head_dim(&keys, hidden_size, heads)?;
        let max_positions = keys.size("context_length")?;
        let sliding_window = sliding_window(&keys, layers)?;
        let (rope, local_rope) = ropes(&keys, &tensors, head_dim, max_positions, sliding_window.is_some())?;
        let eps = "attention.layer_norm_rms_epsilon";
        let decoder = Self {
            architecture: gguf.architecture,
            vocab_size: vocab_size(&keys, &tensors)?,
            hidden_size,
            intermediate_size: keys.size("feed_forward_length")?,
            layers,
            heads,
            kv_heads: keys.usize("attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            norms: family.norms,
            norm_eps: required(&keys, eps, keys.f64(eps)?, "a number, usually 1e-5 or 1e-6")?,
            // The converter adds what safetensors lack.
            norm_offset: 0.0,
            qk_norm: family.qk_norm,
            activation: family.activation,
            rope,
            local_rope,
            max_positions,
            sliding_window,
            attention_bias: AttentionBias::new(
                tensors.any(&[".attn_q.bias", ".attn_k.bias", ".attn_v.bias", ".attn_qkv.bias"]),
                tensors.any(&[".attn_output.bias"]),
            ),
            mlp_bias: tensors.any(&[".ffn_gate.bias", ".ffn_up.bias", ".ffn_down.bias"]),
            attention_scale: match keys.setting("attention.scale")? {
                Some(scale) => scale,
                None if gguf.layers_scaled_by_width == Some(layers) => ((hidden_size / heads) as f64).sqrt().recip(),
                None => (head_dim as f64).sqrt().recip(),
            },
            attention_soft_cap: keys.setting("attn_logit_softcapping")?,
            embedding_scale: match keys.setting("embedding_scale")? {
                Some(scale) => scale,
                None if family.scales_embedding => (hidden_size as f64).sqrt(),
                None => 1.0,
            },
            residual_scale: keys.setting("residual_scale")?.unwrap_or(1.0),
            // Logits are divided by it.
            logit_scale: keys.setting("logit_scale")?.map_or(1.0, f64::recip),
            logit_soft_cap: keys.setting("final_logit_softcapping")?,
            fused_projections: family.fused_projections,
            tied_embeddings: !tensors.has("output.weight"),
            experts: keys.usize("expert_count")?.unwrap_or(0),
        };
        keys.must_be("embedding_length_out", hidden_size)?;
        decoder.validate(id, &|name| key_name(gguf, name))?;
        tensors.check(gguf, &decoder)?;
        Ok(decoder)
    }
}

/// The key, or the tensor, behind a field of [`DecoderConfig`].
fn key_name(gguf: &GgufFamily, name: &'static str) -> String {
    let key = match name {
        "vocab_size" => return "token_embd.weight".into(),
        "hidden_size" => "embedding_length",
        "intermediate_size" => "feed_forward_length",
        "layers" => "block_count",
        "heads" => "attention.head_count",
        "kv_heads" => "attention.head_count_kv",
        "head_dim" => "attention.key_length",
        "max_positions" => "context_length",
        "rope.dims" => "rope.dimension_count",
        "rope.theta" => "rope.freq_base",
        "local_rope.dims" => "rope.dimension_count_swa",
        "local_rope.theta" => "rope.freq_base_swa",
        "norm_eps" => "attention.layer_norm_rms_epsilon",
        "sliding_window" => "attention.sliding_window",
        "attention_scale" => "attention.scale",
        "attention_soft_cap" => "attn_logit_softcapping",
        "logit_soft_cap" => "final_logit_softcapping",
        same => same,
    };
    gguf.key(key)
}

fn head_dim(keys: &Keys<'_>, hidden_size: usize, heads: usize) -> Result<usize> {
    let dim = match (keys.usize("attention.key_length")?, keys.usize("attention.value_length")?) {
        (Some(k), Some(v)) if k != v => {
            return Err(keys.wrong("attention.value_length", &format!("{k}, as attention.key_length has")));
        }
        (Some(dim), _) | (None, Some(dim)) => dim,
        (None, None) if heads > 0 && hidden_size.is_multiple_of(heads) => hidden_size / heads,
        (None, None) => {
            let expected =
                format!("a number, since {heads} attention heads do not divide the hidden size {hidden_size}");
            return Err(keys.wrong("attention.key_length", &expected));
        }
    };
    keys.must_be("attention.key_length_swa", dim)?;
    keys.must_be("attention.value_length_swa", dim)?;
    Ok(dim)
}

fn vocab_size(keys: &Keys<'_>, tensors: &Tensors<'_>) -> Result<usize> {
    let rows = tensors.rows("token_embd.weight")?;
    keys.must_be("vocab_size", rows)?;
    Ok(rows)
}

/// A window of 0 is none. On which layers it holds is in the pattern: a value per layer, or a period (0 for all layers,
/// else all but every last one), or that of the architecture.
fn sliding_window(keys: &Keys<'_>, layers: usize) -> Result<Option<SlidingWindow>> {
    const PATTERN: &str = "attention.sliding_window_pattern";
    let found = keys.usize("attention.sliding_window")?;
    let Some(size) = found.or(keys.gguf.default_window).filter(|size| *size > 0) else { return Ok(None) };
    let windowed: Vec<bool> = match keys.get(PATTERN) {
        Some(GgufValue::Bools(layers)) => layers.clone(),
        Some(GgufValue::Ints(layers)) if layers.iter().all(|n| [0, 1].contains(n)) => {
            layers.iter().map(|n| *n == 1).collect()
        }
        Some(GgufValue::Ints(_)) => return Err(keys.wrong(PATTERN, "0 or 1 for each layer")),
        _ => {
            let Some(period) = keys.usize(PATTERN)?.or(keys.gguf.window_period) else {
                let expected = "the layers where attention.sliding_window holds, or no window";
                return Err(keys.wrong(PATTERN, expected));
            };
            // More layers are refused later, when all sizes are known.
            (0..layers.min(1 << 16)).map(|layer| period == 0 || layer % period < period - 1).collect()
        }
    };
    if windowed.len() != layers.min(1 << 16) {
        return Err(keys.wrong(PATTERN, &format!("one value for each of the {layers} layers")));
    }
    Ok(windowed.contains(&true).then(|| SlidingWindow::new(size, windowed)))
}
