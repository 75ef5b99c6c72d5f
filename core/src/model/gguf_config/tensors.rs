//! What only the tensors of a GGUF file tell, and whether they are those of its description.

use std::collections::{HashMap, HashSet};

use super::{family::GgufFamily, rope::ROPE_TENSORS};
use crate::{
    Error, Result, TensorEntry,
    model::{BaseTensor, DecoderConfig, Layout, ModuleRole},
};

/// The tensors of one file, by name.
pub(super) struct Tensors<'a> {
    id: &'a str,
    by_name: HashMap<&'a str, &'a TensorEntry>,
}

impl<'a> Tensors<'a> {
    pub(super) fn new(id: &'a str, tensors: &'a [TensorEntry]) -> Self {
        Self { id, by_name: tensors.iter().map(|t| (t.name.as_str(), t)).collect() }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// Whether any name ends so.
    pub(super) fn any(&self, suffixes: &[&str]) -> bool {
        self.by_name.keys().any(|name| suffixes.iter().any(|suffix| name.ends_with(suffix)))
    }

    pub(super) fn rows(&self, name: &str) -> Result<usize> {
        let rows = self.by_name.get(name).and_then(|t| t.shape.first().copied());
        rows.ok_or_else(|| self.error(format!("the tensor {name} is missing or has no shape")))
    }

    pub(super) fn error(&self, reason: String) -> Error {
        Error::unsupported_format(self.id, reason)
    }

    /// Refuses tensors that the described decoder would ignore, and lacks of those that the description was read from.
    /// The others are looked for where they are loaded.
    pub(super) fn check(&self, gguf: &GgufFamily, decoder: &DecoderConfig) -> Result<()> {
        if decoder.experts > 0 {
            return Ok(());
        }
        let expected = decoder.base_tensors(Layout::Gguf);
        let is_told = |t: &&BaseTensor| t.bias || matches!(t.role, ModuleRole::QueryNorm | ModuleRole::KeyNorm);
        if let Some(t) = expected.iter().filter(is_told).find(|t| !self.has(&t.name)) {
            let why =
                if t.bias { "as others of its kind are there".to_owned() } else { format!("as {} has it", gguf.name) };
            return Err(self.error(format!("the tensor {} is missing; expected it, {why}", t.name)));
        }
        let known: HashSet<&str> = expected.iter().map(|t| t.name.as_str()).chain(ROPE_TENSORS).collect();
        match self.by_name.keys().filter(|name| !known.contains(*name)).min() {
            Some(name) => Err(self.error(format!(
                "the tensor {name} is no part of the architecture {} with {} layers, and would be ignored; expected a file without it",
                gguf.name, decoder.layers
            ))),
            None => Ok(()),
        }
    }
}
