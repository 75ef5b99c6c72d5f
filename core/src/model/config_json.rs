//! [`DecoderConfig`] from `config.json` of a Hugging Face folder, in the forms of transformers 4 and 5.

use serde_json::Value;

use super::{
    Activation, Architecture, AttentionBias, DecoderConfig, NormPlacement, SlidingWindow,
    json_fields::{Fields, shown},
    rope_json::rope,
};
use crate::Result;

impl DecoderConfig {
    /// Reads `config.json` of a Hugging Face folder: the forms of transformers 4 (`rope_theta`, `rope_scaling`) and
    /// of transformers 5 (`rope_parameters`). Defaults are those of transformers.
    ///
    /// # Errors
    /// [`crate::Error::UnsupportedModelFormat`] that names the field, what it has and what was expected: another
    /// architecture than Llama, a field that is missing, of the wrong type or out of range, fields that disagree, and
    /// values that would change the computation in a way that is not described here.
    pub fn from_config(id: &str, config: &Value) -> Result<Self> {
        let fields = Fields::new(id, "", config)?;
        let architecture = architecture(fields)?;
        refuse_quantized(fields)?;
        refuse_foreign(fields)?;

        let size =
            |name: &str| -> Result<usize> { fields.required(name, fields.usize(name)?, "a whole number above 0") };
        let (hidden_size, heads, layers) =
            (size("hidden_size")?, size("num_attention_heads")?, size("num_hidden_layers")?);
        let max_positions = size("max_position_embeddings")?;
        let head_dim = match fields.usize("head_dim")? {
            Some(dim) => dim,
            None if heads > 0 && hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None => {
                return Err(fields.wrong(
                    "head_dim",
                    &format!("a number, since {heads} attention heads do not divide the hidden size {hidden_size}"),
                ));
            }
        };
        let bias = fields.bool("attention_bias")?.unwrap_or(false);
        let decoder = Self {
            architecture,
            vocab_size: size("vocab_size")?,
            hidden_size,
            intermediate_size: size("intermediate_size")?,
            layers,
            heads,
            kv_heads: fields.usize("num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            norm_eps: fields.required("rms_norm_eps", fields.f64("rms_norm_eps")?, "a number, usually 1e-5 or 1e-6")?,
            norms: NormPlacement::Before,
            norm_offset: 0.0,
            qk_norm: None,
            activation: activation(fields)?,
            rope: rope(fields, head_dim, max_positions)?,
            local_rope: None,
            max_positions,
            sliding_window: fields
                .usize("sliding_window")?
                .map(|n| SlidingWindow::new(n, vec![true; layers.min(1 << 16)])),
            attention_bias: AttentionBias::new(bias, bias),
            mlp_bias: fields.bool("mlp_bias")?.unwrap_or(false),
            attention_scale: 1.0 / (head_dim as f64).sqrt(),
            attention_soft_cap: None,
            embedding_scale: 1.0,
            residual_scale: 1.0,
            logit_scale: 1.0,
            logit_soft_cap: None,
            fused_projections: false,
            tied_embeddings: fields.bool("tie_word_embeddings")?.unwrap_or(false),
            experts: experts(fields)?,
        };
        decoder.validate(id, &|name| format!("config.json: {}", field_name(name)))?;
        Ok(decoder)
    }
}

/// The field of config.json behind a field of [`DecoderConfig`].
fn field_name(name: &'static str) -> &'static str {
    match name {
        "layers" => "num_hidden_layers",
        "heads" => "num_attention_heads",
        "kv_heads" => "num_key_value_heads",
        "max_positions" => "max_position_embeddings",
        "rope.dims" => "head_dim and partial_rotary_factor",
        "rope.theta" => "rope_theta",
        "norm_eps" => "rms_norm_eps",
        same => same,
    }
}

fn architecture(fields: Fields<'_>) -> Result<Architecture> {
    const SUPPORTED: &str = "llama (LlamaForCausalLM)";
    let classes = fields.strings("architectures")?.unwrap_or_default();
    match fields.str("model_type")? {
        Some("llama") => {}
        None if !classes.is_empty() => {}
        _ => return Err(fields.wrong("model_type", &format!("a supported architecture: {SUPPORTED}"))),
    }
    match classes.iter().find(|class| **class != "LlamaForCausalLM") {
        Some(_) => Err(fields.wrong("architectures", &format!("a supported architecture: {SUPPORTED}"))),
        None => Ok(Architecture::Llama),
    }
}

fn activation(fields: Fields<'_>) -> Result<Activation> {
    match fields.str("hidden_act")?.unwrap_or("silu") {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu" => Ok(Activation::Gelu),
        "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        _ => Err(fields.wrong("hidden_act", "silu, gelu, gelu_pytorch_tanh or relu")),
    }
}

/// Experts per block, by whichever name a file has for them.
fn experts(fields: Fields<'_>) -> Result<usize> {
    for name in ["num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"] {
        if let Some(n) = fields.usize(name)?.filter(|n| *n > 1) {
            return Ok(n);
        }
    }
    Ok(0)
}

/// Weights that a quantizer packed, in whichever of the two fields it says so. mlx-lm writes both, and names itself in
/// neither; others name themselves in `quant_method`.
fn refuse_quantized(fields: Fields<'_>) -> Result<()> {
    for name in ["quantization_config", "quantization"] {
        let Some(found) = fields.get(name) else { continue };
        let by = match found.get("quant_method").and_then(Value::as_str) {
            Some(method) => method,
            None if name == "quantization" || found.get("group_size").is_some() => "MLX",
            None => "a method that it does not name",
        };
        return Err(fields.error(format!(
            "the weights are quantized by {by} ({name} is {}), which is not supported; use the model's dense safetensors checkpoint (bf16, f16 or f32), or a GGUF file of it",
            shown(found)
        )));
    }
    Ok(())
}

/// Fields that change the computation and are not described by [`DecoderConfig`], with the one value that does not.
fn refuse_foreign(fields: Fields<'_>) -> Result<()> {
    // transformers once split matrix products by it; other readers do not know it.
    if fields.usize("pretraining_tp")?.is_some_and(|n| n > 1) {
        return Err(fields.wrong("pretraining_tp", "1"));
    }
    if let Some(types) = fields.strings("layer_types")?
        && types.iter().any(|t| *t != "full_attention")
    {
        return Err(fields.wrong("layer_types", "full_attention on every layer"));
    }
    for name in ["embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling", "logit_scale"]
    {
        if fields.f64(name)?.is_some_and(|x| x != 1.0) {
            return Err(fields.wrong(name, "1, or no such field"));
        }
    }
    for name in ["use_qk_norm", "qk_norm", "alibi", "parallel_attn", "use_sliding_window"] {
        if fields.bool(name)?.unwrap_or(false) {
            return Err(fields.wrong(name, "false, or no such field"));
        }
    }
    for name in [
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "query_pre_attn_scalar",
        "attention_chunk_size",
        "rope_local_base_freq",
        "no_rope_layers",
    ] {
        if fields.get(name).is_some() {
            return Err(fields.wrong(name, "no such field for this architecture"));
        }
    }
    Ok(())
}
