//! What a PEFT config may ask for beyond plain and rank-stabilized LoRA. All of it is refused by name: an adapter
//! applied without a feature that it was trained with gives a model that nobody trained.

use serde_json::{Map, Value};

/// Fields that the reader takes values from.
const READ: &[&str] = &[
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "base_model_name_or_path",
    "revision",
    "init_lora_weights",
    "bias",
];

/// Fields that change nothing about what the finished adapter does: training, bookkeeping, and parameters of features
/// that other fields switch on.
const INERT: &[&str] = &[
    "task_type",
    "auto_mapping",
    "inference_mode",
    "peft_version",
    "lora_dropout",
    "megatron_core",
    "qalora_group_size",
    "eva_config",
    "runtime_config",
];

/// Fields that ask for a feature that is not supported, and what it is.
const FEATURES: &[(&str, &str)] = &[
    ("use_dora", "DoRA"),
    ("rank_pattern", "ranks that differ by module"),
    ("alpha_pattern", "alphas that differ by module"),
    ("modules_to_save", "modules saved in full"),
    ("lora_bias", "a bias of lora_B"),
    ("fan_in_fan_out", "base weights stored as (in, out)"),
    ("target_parameters", "LoRA on bare parameters"),
    ("trainable_token_indices", "trained rows of the embedding"),
    ("ensure_weight_tying", "adapters on tied weights"),
    ("layer_replication", "replicated base layers"),
    ("alora_invocation_tokens", "activated LoRA (aLoRA)"),
    ("use_qalora", "QA-LoRA"),
    ("use_bdlora", "block-diagonal LoRA (BD-LoRA)"),
    ("arrow_config", "Arrow routing"),
    ("kasa_config", "KaSA, which changes the base"),
    ("velora_config", "VeLoRA"),
    ("monteclora_config", "MonteCLoRA"),
    ("megatron_config", "Megatron's parallel layers"),
    ("loftq_config", "LoftQ, which assumes a changed base"),
    ("corda_config", "CorDA, which assumes a changed base"),
    ("lora_ga_config", "LoRA-GA, which assumes a changed base"),
];

/// Kinds of `init_lora_weights` that replace the base's weights while they set up the adapter.
const BASE_ALTERING: &[&str] = &["pissa", "olora", "corda", "loftq", "lora_ga"];

/// Kinds of `init_lora_weights` that only choose where training starts.
const BASE_KEEPING: &[&str] = &["gaussian", "eva", "orthogonal"];

/// Whether `config` asks for nothing that is not supported or not known.
pub(super) fn check(config: &Map<String, Value>) -> Result<(), String> {
    for (key, value) in config {
        if let Some((_, feature)) = FEATURES.iter().find(|(name, _)| name == key) {
            if is_set(value) {
                return Err(format!(
                    "`{key}` is {}: it asks for {feature}, and llm-local does not support that yet",
                    shown(value)
                ));
            }
        } else if !READ.contains(&key.as_str()) && !INERT.contains(&key.as_str()) && is_set(value) {
            return Err(format!(
                "the unknown field `{key}` is {}: what it changes is not known; remove it if it changes nothing",
                shown(value)
            ));
        }
    }
    check_bias(config.get("bias"))?;
    check_init(config.get("init_lora_weights"))
}

/// Whether a value is anything but null, false or empty.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    }
}

fn check_bias(bias: Option<&Value>) -> Result<(), String> {
    match bias {
        None | Some(Value::Null) => Ok(()),
        Some(Value::String(kind)) if kind == "none" => Ok(()),
        Some(other) => {
            Err(format!("`bias` is {}: trained biases are not supported yet; expected \"none\"", shown(other)))
        }
    }
}

fn check_init(init: Option<&Value>) -> Result<(), String> {
    match init {
        None | Some(Value::Null | Value::Bool(_)) => Ok(()),
        Some(Value::String(kind)) if BASE_KEEPING.contains(&kind.to_ascii_lowercase().as_str()) => Ok(()),
        Some(Value::String(kind)) if BASE_ALTERING.iter().any(|k| kind.to_ascii_lowercase().starts_with(k)) => {
            Err(format!(
                "`init_lora_weights` is \"{kind}\": that changes the base's weights before training, so the adapter is \
                 wrong on the plain base; convert it when saving (PEFT: path_initial_model_for_weight_conversion)"
            ))
        }
        Some(other) => Err(format!(
            "`init_lora_weights` is {}: this kind is not supported; expected true, false, {}",
            shown(other),
            BASE_KEEPING.iter().map(|k| format!("\"{k}\"")).collect::<Vec<_>>().join(", ")
        )),
    }
}

/// A value as JSON, cut short.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
