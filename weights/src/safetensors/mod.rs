//! Safetensors files: single, or shards with an index.

mod files;
mod header;
mod index;
#[cfg(test)]
mod tests;

pub use files::SafetensorsFiles;
pub use index::ShardIndex;

use std::{collections::HashSet, path::Path};

use llm_local_core::{Error, FloatType, Result, TensorData, TensorEntry, TensorSource};

use crate::{map::Map, table::TensorTable};

/// Tensors of one safetensors file, or of several, memory-mapped. Tensors stand in the order of their data.
#[derive(Debug)]
pub struct SafetensorsSource(TensorTable);

impl SafetensorsSource {
    /// Opens the file at `path`, whatever its name: a model, or an adapter.
    ///
    /// # Errors
    /// [`Error::NotFound`] and [`Error::Io`] if it cannot be opened; [`Error::LoadFailed`], naming the file and the
    /// tensor, for a header that is cut off, not JSON, or disagrees with the file's size or with itself;
    /// [`Error::UnsupportedModelFormat`] for a data type that [`llm_local_core::Encoding`] has no name for.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_all([path])
    }

    /// Opens several files as one source. A name may stand in one of them only.
    ///
    /// # Errors
    /// As [`SafetensorsSource::open`], and [`Error::LoadFailed`] for a name that stands in two files.
    pub fn open_all<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Result<Self> {
        let mut table = TensorTable::default();
        for path in paths {
            let file = Map::open(path)?;
            let tensors = header::read(&file, file.len() as u64, path)?;
            table.add(file, tensors)?;
        }
        Ok(Self(table))
    }

    /// Opens shards, each with the names of the tensors that its index says it holds.
    ///
    /// A tensor that the index does not list is not an entry: the index says what the model is.
    fn open_indexed<'a>(shards: impl IntoIterator<Item = (&'a Path, &'a [String])>) -> Result<Self> {
        let mut table = TensorTable::default();
        let mut seen = HashSet::new();
        for (path, listed) in shards {
            let file = Map::open(path)?;
            let mut tensors = header::read(&file, file.len() as u64, path)?;
            for (entry, _) in &tensors {
                if !seen.insert(entry.name.clone()) {
                    return Err(Error::load(
                        path.display(),
                        format!("the tensor `{}` stands in another shard too; get the checkpoint again", entry.name),
                    ));
                }
            }
            let listed: HashSet<&str> = listed.iter().map(String::as_str).collect();
            tensors.retain(|(entry, _)| listed.contains(entry.name.as_str()));
            if tensors.len() < listed.len() {
                let has: HashSet<&str> = tensors.iter().map(|(entry, _)| entry.name.as_str()).collect();
                let missing = listed.difference(&has).min().copied().unwrap_or_default();
                return Err(Error::load(
                    path.display(),
                    format!(
                        "the index says that the tensor `{missing}` is in this file, but it is not; the index and the shards are of different checkpoints"
                    ),
                ));
            }
            table.add(file, tensors)?;
        }
        Ok(Self(table))
    }

    /// The files it reads, in order.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.paths()
    }
}

/// The tensors of a file that starts with `head`, has `size` bytes and is called `name` in messages.
pub(crate) fn entries(head: &[u8], size: u64, name: &str) -> Result<Vec<TensorEntry>> {
    Ok(header::read(head, size, Path::new(name))?.into_iter().map(|(entry, _)| entry).collect())
}

/// Where the header of a safetensors file ends that starts with `prefix`; `None` if it does not tell yet.
pub(crate) fn header_end(prefix: &[u8], name: &str) -> Result<Option<u64>> {
    header::end(prefix, Path::new(name))
}

impl TensorSource for SafetensorsSource {
    fn entries(&self) -> &[TensorEntry] {
        self.0.entries()
    }

    fn read(&self, name: &str, want: Option<FloatType>) -> Result<TensorData<'_>> {
        self.0.read(name, want)
    }

    fn entry(&self, name: &str) -> Option<&TensorEntry> {
        self.0.entry(name)
    }
}
