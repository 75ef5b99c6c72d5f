//! What a PEFT config may ask for that cannot be merged. All of it is refused by name: an adapter applied without a
//! feature that it was trained with gives a model that nobody trained.

use serde_json::{Map, Value};

use crate::lora::read::value::{is_set, shown, unknown_field};

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
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "lora_bias",
    "fan_in_fan_out",
    "target_parameters",
    "trainable_token_indices",
    "ensure_weight_tying",
    "peft_version",
    "task_type",
];

/// Fields that change nothing about what the finished adapter does: training, bookkeeping, and parameters of features
/// that other fields switch on.
const INERT: &[&str] = &[
    "auto_mapping",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "qalora_group_size",
    "eva_config",
    "runtime_config",
];

/// Fields that ask for what cannot be merged, what that is, and why.
const FEATURES: &[(&str, &str, &str)] = &[
    ("layer_replication", "replicated base layers", "it makes another model of the base"),
    ("alora_invocation_tokens", "activated LoRA (aLoRA)", "it applies only to what comes after certain tokens"),
    ("use_qalora", "QA-LoRA", "it sums up groups of inputs before A"),
    ("use_bdlora", "block-diagonal LoRA (BD-LoRA)", "its factors are stored as blocks"),
    ("arrow_config", "Arrow routing", "it chooses among adapters anew for each token"),
    ("kasa_config", "KaSA", "it changes the base"),
    ("velora_config", "VeLoRA", "it stores more than its pairs"),
    ("monteclora_config", "MonteCLoRA", "it adds trained noise to A"),
    ("megatron_config", "Megatron's parallel layers", "their weights are stored in parts"),
    ("loftq_config", "LoftQ", "it assumes a changed base"),
    ("corda_config", "CorDA", "it assumes a changed base"),
    ("lora_ga_config", "LoRA-GA", "it assumes a changed base"),
];

/// Kinds of `init_lora_weights` that replace the base's weights while they set up the adapter.
const BASE_ALTERING: &[&str] = &["pissa", "olora", "corda", "loftq", "lora_ga"];

/// Kinds of `init_lora_weights` that only choose where training starts.
const BASE_KEEPING: &[&str] = &["gaussian", "eva", "orthogonal", "mica"];

/// Whether `config` asks for nothing that is not supported; and what of it is not known, a sentence each.
pub(super) fn check(config: &Map<String, Value>) -> Result<Vec<String>, String> {
    let mut unknown = Vec::new();
    for (key, value) in config {
        if let Some((_, feature, why)) = FEATURES.iter().find(|(name, ..)| name == key) {
            if is_set(value) {
                return Err(format!(
                    "`{key}` is {}: it asks for {feature}, which cannot be merged: {why}",
                    shown(value)
                ));
            }
        } else if !READ.contains(&key.as_str()) && !INERT.contains(&key.as_str()) && is_set(value) {
            unknown.push(unknown_field(key, value));
        }
    }
    check_init(config.get("init_lora_weights"))?;
    Ok(unknown)
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
