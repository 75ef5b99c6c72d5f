//! Tensors without a config, of which the caller says format and scale.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use llm_local_core::{Allowance, LoraAdapter, Result, TensorEntry, TensorSource, lora::BareFormat};
use llm_local_weights::SafetensorsSource;
use serde_json::{Map, Value, json};

use super::{WITHOUT_CONFIG, files::AdapterFiles, mlx, options::ReadOptions, peft};
use crate::lora::{outline::AdapterOutline, targets};

/// The one safetensors file of an adapter, with what is said of it.
pub(crate) struct Declared<'a> {
    files: AdapterFiles<'a>,
    weights: &'a str,
    format: BareFormat,
    scale: f64,
    allow: BTreeSet<Allowance>,
}

impl<'a> Declared<'a> {
    /// The one safetensors file in `files`, as `options` say.
    pub(super) fn new(files: AdapterFiles<'a>, options: &ReadOptions) -> Result<Self> {
        let own = options.format.map(|format| match format {
            BareFormat::Peft => peft::WEIGHTS,
            BareFormat::MlxLm => mlx::WEIGHTS,
        });
        let weights = files.bare(own)?;
        let (Some(format), Some(scale)) = (options.format, options.scale) else {
            let missing = if options.scale.is_none() { "scale" } else { "format" };
            return Err(files.error(format!(
                "`{weights}` comes without a config, and no {missing} is given for it; give both: {WITHOUT_CONFIG}"
            )));
        };
        if !scale.is_finite() || scale == 0.0 {
            return Err(files.error(format!("its scale is given as {scale}; expected a finite number other than 0")));
        }
        Ok(Self { files, weights, format, scale, allow: options.allow.clone() })
    }

    /// The name of its file.
    pub(super) fn weights(&self) -> &'a str {
        self.weights
    }

    /// The adapter without its values, by the header of its file.
    pub(super) fn outline(&self, entries: &[TensorEntry]) -> Result<AdapterOutline> {
        match self.format {
            BareFormat::MlxLm => self.mlx().outline(entries),
            BareFormat::Peft => {
                let mut outline = self.peft(entries)?.outline(entries)?;
                outline.modules.iter_mut().for_each(|module| module.scale = self.scale);
                outline.targets = None;
                Ok(outline)
            }
        }
    }

    /// The adapter, from its file at `path`.
    pub(super) fn read(&self, path: &Path) -> Result<LoraAdapter> {
        let said = format!("{} {:?}", self.format.as_str(), self.scale);
        match self.format {
            BareFormat::MlxLm => self.mlx().read(said.as_bytes(), path, &self.allow),
            BareFormat::Peft => {
                let source = SafetensorsSource::open(path).map_err(|e| e.into_adapter(self.files.reference))?;
                let mut adapter = self.peft(source.entries())?.read(said.as_bytes(), path, &self.allow)?;
                // Alpha over rank is the scale up to rounding only; and nothing was declared.
                adapter.modules.iter_mut().for_each(|module| module.scale = self.scale);
                adapter.targets = None;
                Ok(adapter)
            }
        }
    }

    fn mlx(&self) -> mlx::Declared<'a> {
        mlx::Declared::bare(self.files.clone(), self.weights, self.scale)
    }

    fn peft(&self, entries: &[TensorEntry]) -> Result<peft::Declared<'a>> {
        let config = peft_config(entries, self.scale);
        let bytes = Value::Object(config.clone()).to_string();
        peft::Declared::new(self.files.clone(), &config, bytes.as_bytes(), &self.allow)
    }
}

/// The config that PEFT would have saved with `entries`, as far as they tell it.
fn peft_config(entries: &[TensorEntry], scale: f64) -> Map<String, Value> {
    let mut ranks: BTreeMap<&str, usize> = BTreeMap::new();
    for entry in entries {
        let path = entry.name.strip_prefix(peft::PREFIX).unwrap_or(&entry.name);
        let module = path.find(".lora_A").or_else(|| path.find(".lora_embedding_A")).map(|at| &path[..at]);
        if let (Some(module), Some(rank)) = (module, entry.shape.first()) {
            ranks.insert(module, *rank);
        }
    }
    let rank = ranks.values().next().copied().unwrap_or(1);
    let other = || ranks.iter().filter(|(_, other)| **other != rank);
    let rank_pattern: Map<_, _> = other().map(|(module, rank)| (targets::literal(module), json!(rank))).collect();
    let alpha_pattern: Map<_, _> =
        other().map(|(module, rank)| (targets::literal(module), json!(scale * *rank as f64))).collect();
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
