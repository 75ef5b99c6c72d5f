//! PEFT's format.
//!
//! | module | what it holds |
//! |---|---|
//! | `pairs` | tensors of pairs, and the flags that all pairs have or none |
//! | `parameters` | pairs of bare parameters, which PEFT nests |
//! | `ranks` | `r`, `lora_alpha`, and their patterns |
//! | `declared` | `target_modules` and what confines it |
//! | `saved` | tensors saved in full, and trained rows |
//!
//! Source of the spellings: PEFT `src/peft/utils/save_and_load.py` and `src/peft/tuners/lora/config.py`, of the version
//! 0.21.2.

mod declared;
mod pairs;
mod parameters;
mod ranks;
mod saved;

use llm_local_core::{LoraAdapter, lora::AdapterFeature};
use serde_json::{Map, Value, json};

use super::files::{Container, Files};
use crate::lora::{message::some_of, read::PEFT_PREFIX as PREFIX};

/// `adapter` as PEFT saves it. The error names the module and what PEFT cannot express.
pub(super) fn files(adapter: &LoraAdapter) -> Result<Files<'_>, String> {
    if adapter.modules.is_empty() {
        return Err("it has no pairs, without which PEFT has no LoRA (modules_to_save alone)".into());
    }
    let has = |feature| adapter.features.contains(&feature);
    let rank_stabilized = has(AdapterFeature::RankStabilized);
    let flags = pairs::Flags::of(&adapter.modules)?;
    let mut tensors = pairs::tensors(&adapter.modules)?;
    let saved = saved::Saved::of(adapter)?;
    tensors.extend(saved.tensors);
    let mut config = Map::new();
    let mut set = |key: &str, value: Value| config.insert(key.to_owned(), value);
    set("peft_type", json!("LORA"));
    set("task_type", json!("CAUSAL_LM"));
    set("inference_mode", json!(true));
    set("base_model_name_or_path", json!(adapter.base.name));
    set("revision", json!(adapter.base.revision));
    set("lora_dropout", json!(0.0));
    set("init_lora_weights", json!(true));
    set("peft_version", json!(flags.version));
    set("use_rslora", json!(rank_stabilized));
    set("use_dora", json!(flags.dora));
    set("lora_bias", json!(flags.lora_bias));
    set("fan_in_fan_out", json!(flags.fan_in_fan_out));
    set("ensure_weight_tying", json!(has(AdapterFeature::WeightTying)));
    set("bias", json!(saved.bias));
    set("modules_to_save", saved.modules);
    set("trainable_token_indices", saved.tokens);
    let ranks = ranks::Ranks::of(&adapter.modules, rank_stabilized);
    set("r", json!(ranks.rank));
    set("lora_alpha", ranks::number(ranks.alpha));
    set("rank_pattern", Value::Object(ranks.rank_pattern));
    set("alpha_pattern", Value::Object(ranks.alpha_pattern));
    config.extend(declared::fields(adapter));
    let mut notes = Vec::new();
    if !ranks.rounded.is_empty() {
        notes.push(format!(
            "no alpha gives exactly the scale of {}: it is the nearest that a 64-bit float gives",
            some_of(&ranks.rounded)
        ));
    }
    Ok(Files {
        config: Some(format!("{:#}", Value::Object(config))),
        weights: "adapter_model.safetensors",
        container: Container::Safetensors(&[("format", "pt")]),
        tensors,
        notes,
    })
}
