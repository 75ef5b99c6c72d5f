//! Formats that adapters are stored in.

use std::{collections::BTreeMap, path::PathBuf};

use serde_json::{Map, Value};

use super::LoraAdapter;
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
    /// not left out.
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
}

impl<'a> AdapterFiles<'a> {
    /// The files of `reference`.
    pub fn new(
        reference: &'a ArtifactRef,
        files: &'a BTreeMap<String, PathBuf>,
        config: Option<&'a Map<String, Value>>,
    ) -> Self {
        Self { reference, files, config }
    }
}
