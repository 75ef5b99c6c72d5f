//! The tensors of mapped files: what safetensors and GGUF have in common once their headers are read.

use std::{
    collections::{HashMap, hash_map},
    ops::Range,
    path::Path,
};

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
    /// Adds a file with its tensors, whose ranges lie inside it.
    pub(crate) fn add(&mut self, file: Map, tensors: Vec<(TensorEntry, Range<usize>)>) -> Result<()> {
        for (entry, range) in tensors {
            match self.by_name.entry(entry.name.clone()) {
                hash_map::Entry::Occupied(first) => {
                    // The file itself may be the first, in which case it is not in the list yet.
                    let first = self.files.get(self.spans[*first.get()].0).unwrap_or(&file);
                    return Err(Error::load(
                        file.path().display(),
                        format!(
                            "the tensor `{}` stands in {} too; each name may stand once, so get the checkpoint again",
                            entry.name,
                            first.path().display()
                        ),
                    ));
                }
                hash_map::Entry::Vacant(place) => place.insert(self.entries.len()),
            };
            self.entries.push(entry);
            self.spans.push((self.files.len(), range));
        }
        self.files.push(file);
        Ok(())
    }

    pub(crate) fn entries(&self) -> &[TensorEntry] {
        &self.entries
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
