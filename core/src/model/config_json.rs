//! [`DecoderConfig`] from `config.json` of a Hugging Face folder, in the forms of transformers 4 and 5. What each
//! architecture has of its own is in [`super::family`].

use serde_json::Value;

use super::{
    Activation, Architecture, AttentionBias, ConfigFields, DecoderConfig, MlxQuantization, Rope, RopeScaling,
    config_fields::shown,
    family::{Family, Neutral, PARTICULAR},
    json_fields::Fields,
    layers_json::sliding_window,
    rope_json::ropes,
};
use crate::{Error, Result};

impl DecoderConfig {
    /// Reads `config.json` of a Hugging Face folder: the forms of transformers 4 (`rope_theta`, `rope_scaling`) and
    /// of transformers 5 (`rope_parameters`, `layer_types`). Defaults are those of transformers, but the sizes, the
    /// epsilon of the norms and the longest context must be there.
    ///
    /// # Errors
    /// [`crate::Error::UnsupportedModelFormat`] that names the field, what it has and what was expected: an
    /// architecture that is none of [`Architecture::ALL`], a field that is missing, of the wrong type or out of range,
    /// fields that disagree, values that would change the computation in a way that is not described here, and fields
    /// that are not understood ([`ConfigFields::refuse_unread`]).
    pub fn from_config(id: &str, config: &Value) -> Result<Self> {
        let Value::Object(map) = config else {
            let reason = format!("config.json: the file is {}; expected an object", shown(config));
            return Err(Error::unsupported_format(id, reason));
        };
        let top = ConfigFields::new(map);
        let fields = Fields::new(id, map, &top);
        let architecture = architecture(fields)?;
        let family = architecture.family();
        // How weights are stored is said of each tensor by its encoding.
        MlxQuantization::read(|name| fields.get(name)).map_err(|reason| fields.error(reason))?;
        refuse_foreign(fields, architecture)?;

        let size =
            |name: &str| -> Result<usize> { fields.required(name, fields.usize(name)?, "a whole number above 0") };
        let (hidden_size, heads, layers) =
            (size("hidden_size")?, size("num_attention_heads")?, size("num_hidden_layers")?);
        let max_positions = size("max_position_embeddings")?;
        let head_dim = match usize_or_default(fields, family, "head_dim")? {
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
        let (rope, local_rope) = ropes(fields, architecture, head_dim, max_positions)?;
        let number = |name: &str| positive_or_default(fields, family, name);
        let decoder = Self {
            architecture,
            vocab_size: size("vocab_size")?,
            hidden_size,
            intermediate_size: size("intermediate_size")?,
            layers,
            heads,
            kv_heads: usize_or_default(fields, family, "num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            norm_eps: fields.required("rms_norm_eps", fields.f64("rms_norm_eps")?, "a number, usually 1e-5 or 1e-6")?,
            norms: family.norms,
            norm_offset: family.norm_offset,
            qk_norm: family.qk_norm,
            activation: activation(fields, family)?,
            max_positions: stretched(&rope, max_positions),
            rope,
            local_rope,
            sliding_window: sliding_window(fields, architecture, layers)?,
            attention_bias: AttentionBias::new(bias || family.qkv_bias, bias),
            mlp_bias: fields.bool("mlp_bias")?.unwrap_or(false),
            attention_scale: match (number("attention_multiplier")?, number("query_pre_attn_scalar")?) {
                (Some(scale), _) => scale,
                (None, Some(scalar)) => scalar.sqrt().recip(),
                (None, None) => (head_dim as f64).sqrt().recip(),
            },
            attention_soft_cap: number("attn_logit_softcapping")?,
            embedding_scale: if family.scales_embedding {
                (hidden_size as f64).sqrt()
            } else {
                number("embedding_multiplier")?.unwrap_or(1.0)
            },
            residual_scale: number("residual_multiplier")?.unwrap_or(1.0),
            // Logits are divided by it.
            logit_scale: number("logits_scaling")?.map_or(1.0, f64::recip),
            logit_soft_cap: number("final_logit_softcapping")?,
            fused_projections: family.fused_projections,
            tied_embeddings: fields.bool("tie_word_embeddings")?.unwrap_or(family.tied),
            experts: experts(fields)?,
        };
        top.refuse_unread(&format!("the architecture {}", architecture.name()), family.class)
            .map_err(|reason| fields.error(reason))?;
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
        "local_rope.dims" => "head_dim",
        "local_rope.theta" => "rope_local_base_freq",
        "norm_eps" => "rms_norm_eps",
        "attention_soft_cap" => "attn_logit_softcapping",
        "logit_soft_cap" => "final_logit_softcapping",
        "embedding_scale" => "embedding_multiplier",
        "residual_scale" => "residual_multiplier",
        "logit_scale" => "logits_scaling",
        same => same,
    }
}

/// What the field has, or what it stands for where it is not written down; `None` where it is `null`.
pub(super) fn usize_or_default(fields: Fields<'_>, family: &Family, name: &str) -> Result<Option<usize>> {
    match family.default(name) {
        Some(number) if !fields.is_written(name) => Ok(Some(number as usize)),
        _ => fields.usize(name),
    }
}

/// [`usize_or_default`] for a number above 0.
fn positive_or_default(fields: Fields<'_>, family: &Family, name: &str) -> Result<Option<f64>> {
    match family.default(name) {
        Some(number) if !fields.is_written(name) => Ok(Some(number)),
        _ => fields.positive(name),
    }
}

fn architecture(fields: Fields<'_>) -> Result<Architecture> {
    let classes = fields.strings("architectures")?.unwrap_or_default();
    let found = match fields.str("model_type")? {
        Some(name) => Architecture::ALL.into_iter().find(|a| a.name() == name),
        None => Architecture::ALL.into_iter().find(|a| classes.contains(&a.family().class)),
    };
    let Some(architecture) = found else {
        let names = Architecture::ALL.map(Architecture::name).join(", ");
        let hint = match fields.str("model_type")? {
            Some("gemma3") => {
                "; gemma3 is text with vision, and only its text is: use a checkpoint of gemma3_text, or a GGUF file"
            }
            _ => "",
        };
        return Err(fields.wrong("model_type", &format!("a supported architecture: {names}{hint}")));
    };
    let class = architecture.family().class;
    match classes.iter().find(|found| **found != class) {
        Some(_) => Err(fields.wrong("architectures", &format!("{class}, as model_type {} has", architecture.name()))),
        None => Ok(architecture),
    }
}

/// Gemma has `hidden_activation` and others `hidden_act`. Both are read, so that neither is ignored.
fn activation(fields: Fields<'_>, family: &Family) -> Result<Activation> {
    let read = |name: &str| {
        let Some(found) = fields.str(name)? else { return Ok(None) };
        Ok(Some(match found {
            "silu" | "swish" => Activation::Silu,
            // Gemma's first configs say so and mean the approximation (transformers, `GemmaConfig`).
            "gelu" if name == "hidden_act" && family.activation == Activation::GeluTanh => Activation::GeluTanh,
            "gelu" => Activation::Gelu,
            "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            _ => return Err(fields.wrong(name, "silu, gelu, gelu_pytorch_tanh or relu")),
        }))
    };
    match (read("hidden_act")?, read("hidden_activation")?) {
        (Some(act), Some(activation)) if act != activation => Err(fields
            .wrong("hidden_activation", &format!("{}, as hidden_act says; remove the one that is wrong", act.name()))),
        (act, activation) => Ok(activation.or(act).unwrap_or(family.activation)),
    }
}

/// Experts per block, by whichever name a file has for them.
fn experts(fields: Fields<'_>) -> Result<usize> {
    let mut experts = 0;
    for name in ["num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"] {
        experts = experts.max(fields.usize(name)?.filter(|n| *n > 1).unwrap_or(0));
    }
    Ok(experts)
}

/// The longest context that the rotation was made for. Configs that were given YaRN later, as the cards of Qwen 2.5 and 3
/// tell their readers to, keep `max_position_embeddings` at the context of pre-training.
fn stretched(rope: &Rope, max_positions: usize) -> usize {
    match rope.scaling {
        RopeScaling::Yarn { factor, original_max_positions, .. } => {
            max_positions.max((factor * original_max_positions as f64) as usize)
        }
        _ => max_positions,
    }
}

/// Fields that change the computation of some architectures, in one that does not have them.
fn refuse_foreign(fields: Fields<'_>, architecture: Architecture) -> Result<()> {
    for (name, neutral) in PARTICULAR.iter().filter(|(name, _)| !architecture.family().has(name)) {
        let (is_neutral, expected) = match neutral {
            Neutral::Absent => (fields.get(name).is_none(), "no such field".to_owned()),
            Neutral::Bool(value) => {
                (fields.bool(name)?.is_none_or(|b| b == *value), format!("{value}, or no such field"))
            }
            Neutral::One => (fields.f64(name)?.is_none_or(|x| x == 1.0), "1, or no such field".to_owned()),
        };
        if !is_neutral {
            return Err(fields.wrong(name, &format!("{expected}, for the architecture {}", architecture.name())));
        }
    }
    Ok(())
}
