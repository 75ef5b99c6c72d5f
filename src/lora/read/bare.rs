//! Tensors without a config, of which the caller says format and scale.

use std::{collections::BTreeMap, path::Path};

use llm_local_core::{LoraAdapter, Result, TensorEntry, TensorSource, lora::BareFormat};
use llm_local_weights::SafetensorsSource;
use serde_json::{Map, Value, json};

use super::{files::AdapterFiles, mlx, options::ReadOptions, peft};

/// Reads the one safetensors file in `files`, at `path`, by what `options` say of it.
pub(super) fn read(files: AdapterFiles<'_>, weights: &str, path: &Path, options: ReadOptions) -> Result<LoraAdapter> {
    let (Some(format), Some(scale)) = (options.format, options.scale) else {
        let missing = if options.scale.is_none() { "scale" } else { "format" };
        return Err(files.error(format!(
            "`{weights}` comes without a config, and no {missing} is given for it; give both (`ReadOptions`)"
        )));
    };
    if !scale.is_finite() || scale == 0.0 {
        return Err(files.error(format!("its scale is given as {scale}; expected a finite number other than 0")));
    }
    let said = format!("{} {scale:?}", format.as_str());
    match format {
        BareFormat::MlxLm => mlx::Declared::bare(files, weights, scale).read(said.as_bytes(), path),
        BareFormat::Peft => {
            let source = SafetensorsSource::open(path).map_err(|e| e.into_adapter(files.reference))?;
            let config = peft_config(source.entries(), scale);
            let bytes = Value::Object(config.clone()).to_string();
            let mut adapter = peft::Declared::new(files, &config, bytes.as_bytes())?.read(said.as_bytes(), path)?;
            // Alpha over rank is the scale up to rounding only; and nothing was declared.
            adapter.modules.iter_mut().for_each(|module| module.scale = scale);
            adapter.targets = None;
            Ok(adapter)
        }
    }
}

/// The config that PEFT would have saved with `entries`, as far as they tell it.
fn peft_config(entries: &[TensorEntry], scale: f64) -> Map<String, Value> {
    let mut ranks: BTreeMap<&str, usize> = BTreeMap::new();
    for entry in entries {
        let path = entry.name.strip_prefix("base_model.model.").unwrap_or(&entry.name);
        let module = path.find(".lora_A").or_else(|| path.find(".lora_embedding_A")).map(|at| &path[..at]);
        if let (Some(module), Some(rank)) = (module, entry.shape.first()) {
            ranks.insert(module, *rank);
        }
    }
    let rank = ranks.values().next().copied().unwrap_or(1);
    let other = || ranks.iter().filter(|(_, other)| **other != rank);
    let exactly = |module: &str| module.replace('.', r"\.");
    let rank_pattern: Map<_, _> = other().map(|(module, rank)| (exactly(module), json!(rank))).collect();
    let alpha_pattern: Map<_, _> =
        other().map(|(module, rank)| (exactly(module), json!(scale * *rank as f64))).collect();
    let has = |part: &str| entries.iter().any(|entry| entry.name.contains(part));
    let config = [
        ("peft_type", json!("LORA")),
        ("r", json!(rank)),
        ("lora_alpha", json!(scale * rank as f64)),
        ("target_modules", json!(ranks.keys().collect::<Vec<_>>())),
        ("rank_pattern", Value::Object(rank_pattern)),
        ("alpha_pattern", Value::Object(alpha_pattern)),
        ("use_dora", json!(has(".lora_magnitude_vector"))),
        ("lora_bias", json!(entries.iter().any(|e| e.name.contains(".lora_B") && e.name.ends_with(".bias")))),
    ];
    let mut config: Map<_, _> = config.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    if ranks.is_empty() {
        // A file without pairs is refused for what it holds.
        config.remove("target_modules");
    }
    config
}
