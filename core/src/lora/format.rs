//! Formats that adapters are stored in.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use serde_json::{Map, Value};

use super::{Allowance, LoraAdapter};
use crate::{ArtifactRef, Result};

/// Reads adapters of one format.
pub trait AdapterFormat: Send + Sync {
    /// Its name: `peft`, `mlx-lm`, `gguf`, ...
    fn name(&self) -> &str;

    /// Whether `files` are an adapter of this format: by the fields of its config or by how a file begins, never by the
    /// shapes of tensors.
    ///
    /// # Errors
    /// [`crate::Error::Io`] for a file that cannot be read.
    fn recognizes(&self, files: &AdapterFiles<'_>) -> Result<bool>;

    /// Reads `files`, which it recognizes, into the one internal form. Whatever it does not know how to apply is an error,
    /// not left out; fields that are not known and [allowed](AdapterFiles::allow) go into
    /// [`LoraAdapter::unknown_fields`].
    ///
    /// # Errors
    /// [`crate::Error::AdapterMergeFailed`] that names the file, field or tensor, what was expected and what was found.
    fn read(&self, files: &AdapterFiles<'_>) -> Result<LoraAdapter>;
}

const _: fn(&dyn AdapterFormat) = |_| {};

/// The files of an adapter, as a format gets them.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct AdapterFiles<'a> {
    /// The ref it came from, for messages.
    pub reference: &'a ArtifactRef,
    /// Where its files are, by their names.
    pub files: &'a BTreeMap<String, PathBuf>,
    /// Its `adapter_config.json`, if it has one.
    pub config: Option<&'a Map<String, Value>>,
    /// What an application lets pass of it.
    pub allow: &'a BTreeSet<Allowance>,
}

impl<'a> AdapterFiles<'a> {
    /// The files of `reference`, of which nothing is let pass.
    pub fn new(
        reference: &'a ArtifactRef,
        files: &'a BTreeMap<String, PathBuf>,
        config: Option<&'a Map<String, Value>>,
    ) -> Self {
        const NOTHING: &BTreeSet<Allowance> = &BTreeSet::new();
        Self { reference, files, config, allow: NOTHING }
    }

    /// Sets what is let pass.
    pub fn with_allow(mut self, allow: &'a BTreeSet<Allowance>) -> Self {
        self.allow = allow;
        self
    }
}
