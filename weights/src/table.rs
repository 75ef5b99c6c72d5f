//! The tensors of mapped files: what safetensors and GGUF have in common once their headers are read.

use std::{collections::HashMap, ops::Range, path::Path};

use llm_local_core::{Encoding, Error, FloatType, Result, TensorData, TensorEntry};

use crate::{convert::convert, map::Map};

/// Tensors by name, each a range of one of the files.
#[derive(Debug, Default)]
pub(crate) struct TensorTable {
    files: Vec<Map>,
    entries: Vec<TensorEntry>,
    /// Of each entry, the file and the bytes in it.
    spans: Vec<(usize, Range<usize>)>,
    by_name: HashMap<String, usize>,
}

impl TensorTable {
    /// Adds a file with its tensors, whose ranges lie inside it. No name may have been added before: those who read the
    /// headers have checked that.
    pub(crate) fn add(&mut self, file: Map, tensors: Vec<(TensorEntry, Range<usize>)>) {
        for (entry, range) in tensors {
            self.by_name.insert(entry.name.clone(), self.entries.len());
            self.entries.push(entry);
            self.spans.push((self.files.len(), range));
        }
        self.files.push(file);
    }

    pub(crate) fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    /// The entries, to be described in another way. Names stay.
    pub(crate) fn entries_mut(&mut self) -> &mut [TensorEntry] {
        &mut self.entries
    }

    pub(crate) fn entry(&self, name: &str) -> Option<&TensorEntry> {
        self.by_name.get(name).map(|&at| &self.entries[at])
    }

    /// The files, in the order added.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(Map::path)
    }

    pub(crate) fn read(&self, name: &str, want: Option<FloatType>) -> Result<TensorData<'_>> {
        let Some(&at) = self.by_name.get(name) else {
            let files: Vec<_> = self.paths().map(|p| p.display().to_string()).collect();
            return Err(Error::load(
                files.join(", "),
                format!("there is no tensor `{name}` among its {}", self.entries.len()),
            ));
        };
        let (file, range) = &self.spans[at];
        let file = &self.files[*file];
        let bytes = file.get(range.clone()).ok_or_else(|| {
            Error::load(file.path().display(), format!("the bytes of the tensor `{name}` lie outside the file"))
        })?;
        let encoding = self.entries[at].encoding;
        let unsupported = |wanted: FloatType| {
            Error::unsupported(
                format!("reading the tensor `{name}` of {} as {wanted}", file.path().display()),
                format!(
                    "it is stored as {encoding}, and only floats are converted, to f32, f16 or bf16; read it as stored"
                ),
            )
        };
        match (encoding, want) {
            (_, None) => Ok(TensorData::Borrowed(bytes)),
            (Encoding::Float(stored), Some(wanted)) if stored == wanted => Ok(TensorData::Borrowed(bytes)),
            (Encoding::Float(stored), Some(wanted)) => {
                convert(bytes, stored, wanted).ok_or_else(|| unsupported(wanted))
            }
            (_, Some(wanted)) => Err(unsupported(wanted)),
        }
    }
}
