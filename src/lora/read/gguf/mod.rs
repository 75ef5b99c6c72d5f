//! GGUF adapters, of llama.cpp: one file, whose metadata is its config.
//!
//! Source of the rules: llama.cpp `src/llama-adapter.cpp`, `src/llama-graph.cpp` (`build_inp_embd`) and
//! `convert_lora_to_gguf.py`. Where llama.cpp skips what it cannot apply, that is an error here.

mod metadata;
mod plan;

#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, path::Path};

use llm_local_core::{Allowance, Error, GgufMetadata, LoraAdapter, Result, TensorEntry, TensorSource};
use llm_local_weights::GgufSource;

use self::metadata::GgufConfig;
pub(crate) use self::metadata::base as gguf_base;
pub(super) use self::metadata::is_adapter;
use super::{GGUF, digest::digest, files::AdapterFiles, plan::Plan};
use crate::lora::outline::AdapterOutline;

/// An adapter by its file, of which nothing is read yet.
pub(crate) struct Declared<'a> {
    files: AdapterFiles<'a>,
    weights: &'a str,
    allow: BTreeSet<Allowance>,
}

impl<'a> Declared<'a> {
    /// The adapter in the file `weights`; what is wrong with it must be in `allow`.
    pub(super) fn new(files: AdapterFiles<'a>, weights: &'a str, allow: &BTreeSet<Allowance>) -> Self {
        Self { files, weights, allow: allow.clone() }
    }

    /// The name of its file.
    pub(super) fn weights(&self) -> &'a str {
        self.weights
    }

    /// The adapter without its values, by its header.
    pub(super) fn outline(&self, metadata: &GgufMetadata, entries: &[TensorEntry]) -> Result<AdapterOutline> {
        let config = self.config(metadata)?;
        Ok(self.plan(&config, entries)?.outline(self.files.reference, GGUF, &config.base))
    }

    /// The adapter in the file at `path`.
    pub(super) fn read(&self, path: &Path) -> Result<LoraAdapter> {
        let reference = self.files.reference;
        let source = GgufSource::open(path).map_err(|e| e.into_adapter(reference))?;
        let config = self.config(source.metadata())?;
        let digest = || digest(&[], path).map_err(|e| e.to_string());
        let plan = self.plan(&config, source.entries())?;
        let adapter = plan.read(&source, reference, &self.allow, digest).map_err(|reason| self.within(reason))?;
        Ok(adapter.with_format(GGUF).with_base(config.base))
    }

    fn config(&self, metadata: &GgufMetadata) -> Result<GgufConfig> {
        GgufConfig::new(metadata, &self.allow).map_err(|reason| self.within(reason))
    }

    fn plan<'e>(&self, config: &GgufConfig, entries: &'e [TensorEntry]) -> Result<Plan<'e>> {
        plan::of(entries, config).map_err(|reason| self.within(reason))
    }

    fn within(&self, reason: String) -> Error {
        self.files.error(format!("{}: {reason}", self.weights))
    }
}
