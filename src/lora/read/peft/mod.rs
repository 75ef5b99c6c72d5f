//! PEFT adapters: `adapter_config.json` and `adapter_model.safetensors`, or another safetensors file alone.
//!
//! | module | what it holds |
//! |---|---|
//! | `config`, `fields`, `declared`, `patterns` | what the config says; targets; ranks and alphas by module |
//! | `kinds`, `features` | what is refused: PEFT's other kinds, and what cannot be merged |
//! | `keys` | names of tensors |
//! | `contents` | what the tensors of a file are, told from its header |
//! | `groups`, `pair`, `parameters` | low-rank pairs, and which bare parameter one belongs to |
//! | `saved`, `rows` | tensors saved in full, and trained rows of embeddings |
//! | `values` | values, turned to the one internal form |
//!
//! Source of the rules: PEFT `src/peft/tuners/lora/config.py`, `layer.py` and `src/peft/utils/save_and_load.py`, of the
//! version 0.21.2.

mod config;
mod contents;
mod declared;
mod features;
mod fields;
mod groups;
mod keys;
mod kinds;
mod pair;
mod parameters;
mod patterns;
mod rows;
mod saved;
mod values;

#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, path::Path};

use llm_local_core::{
    Allowance, Error, LoraAdapter, Result, TensorEntry, TensorSource,
    lora::{DeclaredTargets, ModuleSelector},
    model::Layout,
};
use llm_local_weights::SafetensorsSource;
use serde_json::{Map, Value};

use self::{config::PeftConfig, contents::Contents, pair::Pair, values::Values};
pub(in crate::lora) use self::{keys::PREFIX, parameters::in_order_of_registration};
use super::{CONFIG, digest::digest, files::AdapterFiles, plan::check_effect};
use crate::lora::{
    outline::{AdapterOutline, ReplacementOutline, RowsOutline},
    targets,
};

/// The file that PEFT saves the tensors in.
pub(super) const WEIGHTS: &str = "adapter_model.safetensors";

/// A PEFT adapter by its config, and the file that has its tensors.
pub(crate) struct Declared<'a> {
    files: AdapterFiles<'a>,
    config: PeftConfig,
    weights: &'a str,
}

impl<'a> Declared<'a> {
    /// The adapter with this config; `bytes` are those the config was read from, which have the order of its fields. What is
    /// not known of it must be in `allow`.
    pub(super) fn new(
        files: AdapterFiles<'a>,
        config: &Map<String, Value>,
        bytes: &[u8],
        allow: &BTreeSet<Allowance>,
    ) -> Result<Self> {
        let config =
            PeftConfig::new(config, bytes, allow).map_err(|reason| files.error(format!("{CONFIG}: {reason}")))?;
        let weights = files.weights(WEIGHTS)?;
        Ok(Self { files, config, weights })
    }

    /// The name of the file that has its tensors.
    pub(crate) fn weights(&self) -> &'a str {
        self.weights
    }

    /// The adapter without its values, by the header of its weights.
    ///
    /// # Errors
    /// As [`super::read`], as far as the header tells.
    pub(crate) fn outline(&self, entries: &[TensorEntry]) -> Result<AdapterOutline> {
        self.outlined(entries).map_err(|reason| self.in_weights(reason))
    }

    fn outlined(&self, entries: &[TensorEntry]) -> Result<AdapterOutline, String> {
        let contents = Contents::new(entries, &self.config)?;
        let stored = |entry: &TensorEntry| entry.stored_bytes().unwrap_or(usize::MAX);
        let saved = contents.replacements.values().copied().chain(contents.rows.values().map(|rows| rows.entry));
        let bytes = contents.pairs.iter().map(Pair::bytes).chain(saved.map(stored)).fold(0, usize::saturating_add);
        let replacements = contents.replacements.iter();
        let rows = contents.rows.iter();
        Ok(AdapterOutline {
            reference: self.files.reference.to_string(),
            format: super::PEFT.to_owned(),
            base: self.config.base.clone(),
            notes: Vec::new(),
            unknown_fields: self.config.unknown_fields.clone(),
            row_order: Layout::HuggingFace,
            modules: contents.pairs.iter().map(Pair::outline).collect(),
            replacements: replacements
                .map(|(name, entry)| ReplacementOutline { name: name.clone(), shape: entry.shape.clone() })
                .collect(),
            rows: rows
                .map(|(name, rows)| RowsOutline {
                    name: name.clone(),
                    rows: rows.order.iter().map(|(row, _)| *row).collect(),
                    columns: rows.entry.shape[1],
                })
                .collect(),
            targets: Some(self.targets(&contents)?),
            features: contents.features,
            bytes: bytes as u64,
        })
    }

    /// The adapter, from the file at `path` that has its tensors; `said` are the bytes of its config. What is wrong with the
    /// values must be in `allow`.
    pub(super) fn read(&self, said: &[u8], path: &Path, allow: &BTreeSet<Allowance>) -> Result<LoraAdapter> {
        let reference = self.files.reference;
        let source = SafetensorsSource::open(path).map_err(|e| e.into_adapter(reference))?;
        let mut adapter = self.adapter(&source, allow).map_err(|reason| self.in_weights(reason))?;
        adapter.digest = digest(said, path).map_err(|e| e.into_adapter(reference))?;
        Ok(adapter)
    }

    /// The adapter, without its digest.
    fn adapter(&self, source: &SafetensorsSource, allow: &BTreeSet<Allowance>) -> Result<LoraAdapter, String> {
        let contents = Contents::new(source.entries(), &self.config)?;
        let values = Values(source);
        let modules = contents.pairs.iter().map(|pair| values.pair(pair)).collect::<Result<Vec<_>, _>>()?;
        let replacements = contents.replacements.iter().map(|(name, entry)| values.replacement(name, entry));
        let replacements = replacements.collect::<Result<Vec<_>, _>>()?;
        let rows = contents.rows.iter().map(|(name, rows)| values.rows(name, rows)).collect::<Result<Vec<_>, _>>()?;
        if replacements.is_empty() && rows.is_empty() {
            check_effect(&modules, allow)?;
        }
        let targets = self.targets(&contents)?;
        Ok(LoraAdapter::new(self.files.reference.to_string(), "", modules)
            .with_format(super::PEFT)
            .with_replacements(replacements)
            .with_rows(rows)
            .with_features(contents.features)
            .with_targets(targets)
            .with_base(self.config.base.clone())
            .with_unknown_fields(self.config.unknown_fields.clone()))
    }

    /// What the config declares, and what PEFT ties to that: with `ensure_weight_tying` a pair of the embedding is saved a
    /// second time as that of the head, which no field names.
    fn targets(&self, contents: &Contents<'_>) -> Result<DeclaredTargets, String> {
        let mut declared = self.config.targets.clone();
        if !self.config.ensure_weight_tying {
            return Ok(declared);
        }
        let pairs = contents.pairs.iter().filter(|pair| !pair.is_parameter && contents::is_vocabulary(&pair.name));
        for Pair { name, .. } in pairs {
            if targets::selects(&declared.modules, name)? == Some(false) {
                match &mut declared.modules {
                    ModuleSelector::Names(names) => names.push(name.clone()),
                    ModuleSelector::Pattern(pattern) => *pattern = format!("(?:{pattern})|{}", targets::literal(name)),
                    _ => {}
                }
            }
        }
        Ok(declared)
    }

    fn in_weights(&self, reason: String) -> Error {
        self.files.error(format!("{}: {reason}", self.weights))
    }
}
