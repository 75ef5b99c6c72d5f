//! mlx-lm's format.
//!
//! | module | what it holds |
//! |---|---|
//! | `experts` | experts that have pairs one by one, stacked |
//! | `keys` | which modules mlx-lm puts pairs in |
//! | `pairs` | tensors of pairs |
//!
//! Source of the rules: mlx-lm `tuner/lora.py`, `tuner/dora.py` and `tuner/utils.py` (`load_adapters`,
//! `linear_to_lora_layers`).

mod experts;
mod keys;
mod pairs;

use std::borrow::Cow;

pub(super) use experts::stacked;

use llm_local_core::{
    LoraAdapter, LoraModule,
    lora::{AdapterFeature, ReplacementTensor},
};
use serde_json::{Map, Value, json};

use super::{
    files::{Container, Files, Tensor},
    order::Base,
    scale::{folded, most_common},
};
use crate::lora::{message::some_of, targets::BaseModules};

/// `adapter`, whose experts are [`stacked`], as mlx-lm saves it. The error names the module and what mlx-lm cannot express.
pub(super) fn files<'a>(adapter: &'a LoraAdapter, base: &Base<'_>) -> Result<Files<'a>, String> {
    let mut config = Map::new();
    let mut notes = Vec::new();
    config.insert("model".into(), json!(adapter.base.name));
    if let Some(revision) = &adapter.base.revision {
        notes.push(format!("the base's revision {revision:?} is left out, for which mlx-lm has no field"));
    }
    let tensors = if adapter.modules.is_empty() && adapter.rows.is_empty() {
        config.insert("fine_tune_type".into(), json!("full"));
        full(adapter)
    } else {
        check(adapter, base)?;
        let dora = all_or_none(&adapter.modules)?;
        config.insert("fine_tune_type".into(), json!(if dora { "dora" } else { "lora" }));
        let scales: Vec<_> = adapter.modules.iter().map(|module| module.scale).collect();
        let scale = most_common(&scales).unwrap_or(1.0);
        let ranks = adapter.modules.iter().map(|module| module.rank);
        let rank = ranks.clone().max().unwrap_or(1);
        if ranks.clone().any(|other| other != rank) {
            let lower: Vec<_> = adapter.modules.iter().filter(|m| m.rank != rank).map(|m| m.name.as_str()).collect();
            notes.push(format!("mlx-lm has one rank, so {} are padded with zeros to {rank}", some_of(&lower)));
        }
        let keys = keys::Keys::of(adapter, base);
        notes.extend(keys.note);
        config.insert("num_layers".into(), json!(keys.last_layers));
        config.insert(
            "lora_parameters".into(),
            json!({"rank": rank, "scale": scale, "dropout": 0.0, "keys": keys.names}),
        );
        let (factors, note) = folded(&adapter.modules, |module| module.scale / scale, "mlx-lm")?;
        notes.extend(note);
        let pairs = adapter.modules.iter().zip(factors);
        pairs.flat_map(|(module, b)| pairs::tensors(module, b, rank)).collect()
    };
    Ok(Files {
        config: Some(format!("{:#}", Value::Object(config))),
        weights: "adapters.safetensors",
        container: Container::Safetensors(&[]),
        tensors,
        notes,
    })
}

fn full<'a>(adapter: &'a LoraAdapter) -> Vec<Tensor<'a>> {
    let tensor = |t: &'a ReplacementTensor| Tensor::new(&t.name, &t.shape, Cow::Borrowed(&t.values));
    adapter.replacements.iter().map(tensor).collect()
}

/// Whether mlx-lm has all that the adapter uses.
fn check(adapter: &LoraAdapter, base: &Base<'_>) -> Result<(), String> {
    if let Some(replaced) = adapter.replacements.first() {
        let beside = replaced.name.strip_suffix(".weight").is_some_and(|module| adapter.module(module).is_some());
        let hint = if beside {
            "; PEFT saves it beside a trained embedding, also where it is the base's own: save it with \
             save_embedding_layers=False then"
        } else {
            ""
        };
        let feature = if replaced.name.ends_with(".bias") { "bias" } else { "modules_to_save" };
        return Err(format!(
            "it replaces `{}` ({feature}), which mlx-lm does not have beside pairs{hint}",
            replaced.name
        ));
    }
    if let Some(rows) = adapter.rows.first() {
        return Err(format!(
            "it replaces rows of `{}` (trainable_token_indices), which mlx-lm does not have",
            rows.name
        ));
    }
    if adapter.features.contains(&AdapterFeature::WeightTying) {
        return Err(
            "it trains what is tied to the embedding with it (ensure_weight_tying), which mlx-lm cannot say".into()
        );
    }
    adapter.modules.iter().try_for_each(|module| {
        let refused = |feature: &str, what: &str| {
            Err(format!("`{}` {what} ({feature}), which mlx-lm does not have", module.name))
        };
        let is_embedding = BaseModules::is_embedding(&module.name);
        match module {
            LoraModule { bias: Some(_), .. } => refused("lora_bias", "has a bias of B"),
            LoraModule { is_parameter: true, .. } => refused("target_parameters", "is a bare parameter"),
            LoraModule { transposed: true, .. } if is_embedding => {
                refused("DoRA", "is an embedding with a magnitude by columns")
            }
            LoraModule { transposed: true, .. } => refused("fan_in_fan_out", "is stored as (in, out)"),
            LoraModule { experts: Some(_), magnitude: Some(_), .. } => refused("DoRA", "has experts with magnitudes"),
            LoraModule { name, .. }
                if BaseModules::is_head(name) && matches!(base, Some(Ok(base)) if base.decoder.tied_embeddings) =>
            {
                Err(format!("`{name}` is tied to the embedding in the base, and mlx-lm has no such module then"))
            }
            _ => Ok(()),
        }
    })
}

/// Whether all modules have a magnitude; the error is that only some have.
fn all_or_none(modules: &[LoraModule]) -> Result<bool, String> {
    let with = modules.iter().find(|module| module.magnitude.is_some());
    let without = modules.iter().find(|module| module.magnitude.is_none());
    match (with, without) {
        (Some(with), Some(without)) => Err(format!(
            "`{}` has a magnitude (DoRA) and `{}` has none, and mlx-lm has them for all modules or for none",
            with.name, without.name
        )),
        (with, _) => Ok(with.is_some()),
    }
}
