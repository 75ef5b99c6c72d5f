//! mlx-lm adapters: `adapter_config.json` and `adapters.safetensors`, or another safetensors file alone; and those of
//! mlx-vlm, of its own format and of mlx-lm's.
//!
//! Source of the rules: mlx-lm `tuner/lora.py`, `tuner/dora.py`, `tuner/utils.py` and `lora.py`; mlx-vlm
//! `trainer/lora.py` (0.1) and `trainer/peft/` (0.7). `y = base(x) + scale * ((x @ lora_a) @ lora_b)`, with the scale as it
//! stands in the config.

mod config;
mod keys;
mod plan;

#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, path::Path};

use llm_local_core::{Allowance, Error, LoraAdapter, Result, TensorEntry, TensorSource};
use llm_local_weights::SafetensorsSource;
use serde_json::{Map, Value};

use self::config::MlxConfig;
pub(in crate::lora) use self::keys::DECODER;
use super::{CONFIG, MLX_LM, MLX_VLM, digest::digest, files::AdapterFiles, options::ReadOptions, plan::Plan};
use crate::lora::outline::AdapterOutline;

/// The file that mlx-lm saves the tensors in. Beside it may lie checkpoints (`0000100_adapters.safetensors`).
pub(super) const WEIGHTS: &str = "adapters.safetensors";

/// An adapter by its config, and the file that has its tensors.
pub(crate) struct Declared<'a> {
    files: AdapterFiles<'a>,
    config: MlxConfig,
    weights: &'a str,
    format: &'static str,
}

impl<'a> Declared<'a> {
    /// That of an mlx-lm config, with what the caller says of it.
    pub(super) fn mlx_lm(files: AdapterFiles<'a>, config: &Map<String, Value>, options: &ReadOptions) -> Result<Self> {
        let config = MlxConfig::mlx_lm(config, options);
        Self::beside(files, config, MLX_LM)
    }

    /// That of a config of mlx-vlm's own format, with what the caller says of it.
    pub(super) fn mlx_vlm(files: AdapterFiles<'a>, config: &Map<String, Value>, options: &ReadOptions) -> Result<Self> {
        let config = MlxConfig::mlx_vlm(config, options);
        Self::beside(files, config, MLX_VLM)
    }

    fn beside(files: AdapterFiles<'a>, config: Result<MlxConfig, String>, format: &'static str) -> Result<Self> {
        let config = config.map_err(|reason| files.error(format!("{CONFIG}: {reason}")))?;
        let weights = files.weights(WEIGHTS)?;
        Ok(Self { files, config, weights, format })
    }

    /// That of the tensors in the file `weights` without a config.
    pub(super) fn bare(files: AdapterFiles<'a>, weights: &'a str, scale: f64) -> Self {
        Self { files, config: MlxConfig::bare(scale), weights, format: MLX_LM }
    }

    /// The name of the file that has its tensors.
    pub(super) fn weights(&self) -> &'a str {
        self.weights
    }

    /// The adapter without its values, by the header of its weights.
    pub(super) fn outline(&self, entries: &[TensorEntry]) -> Result<AdapterOutline> {
        Ok(self.plan(entries)?.outline(self.files.reference, self.format, &self.config.base))
    }

    /// The adapter, from the file at `path` that has its tensors; `said` are the bytes of its config. What is wrong with the
    /// values must be in `allow`.
    pub(super) fn read(&self, said: &[u8], path: &Path, allow: &BTreeSet<Allowance>) -> Result<LoraAdapter> {
        let reference = self.files.reference;
        let source = SafetensorsSource::open(path).map_err(|e| e.into_adapter(reference))?;
        let digest = || digest(said, path).map_err(|e| e.to_string());
        let plan = self.plan(source.entries())?;
        let adapter = plan.read(&source, reference, allow, digest).map_err(|reason| self.in_weights(reason))?;
        Ok(adapter.with_format(self.format).with_base(self.config.base.clone()))
    }

    fn plan<'e>(&self, entries: &'e [TensorEntry]) -> Result<Plan<'e>> {
        plan::of(entries, &self.config).map_err(|reason| self.in_weights(reason))
    }

    fn in_weights(&self, reason: String) -> Error {
        self.files.error(format!("{}: {reason}", self.weights))
    }
}
