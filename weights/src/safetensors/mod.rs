//! Safetensors files: single, or shards with an index.

mod files;
mod gathered;
mod header;
mod index;
#[cfg(test)]
mod tests;

pub use files::SafetensorsFiles;
pub(crate) use gathered::Gathered;
pub use index::ShardIndex;

use std::{ops::Range, path::Path};

use llm_local_core::{FloatType, Result, TensorData, TensorEntry, TensorSource};

use crate::{map::Map, table::TensorTable};

/// Tensors of one safetensors file, or of several, memory-mapped. Tensors stand in the order of their data.
#[derive(Debug)]
pub struct SafetensorsSource(TensorTable);

impl SafetensorsSource {
    /// Opens the file at `path`, whatever its name: a model, or an adapter.
    ///
    /// # Errors
    /// [`NotFound`](llm_local_core::Error::NotFound) and [`Io`](llm_local_core::Error::Io) if it cannot be opened;
    /// [`LoadFailed`](llm_local_core::Error::LoadFailed), naming the file and the tensor, for a header that is cut off, not
    /// JSON, or disagrees with the file's size or with itself;
    /// [`UnsupportedModelFormat`](llm_local_core::Error::UnsupportedModelFormat) for a data type that
    /// [`llm_local_core::Encoding`] has no name for.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_all([path])
    }

    /// Opens several files as one source. A name may stand in one of them only.
    ///
    /// # Errors
    /// As [`SafetensorsSource::open`], and [`LoadFailed`](llm_local_core::Error::LoadFailed) for a name that stands in two files.
    pub fn open_all<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Result<Self> {
        Self::open_listed(paths.into_iter().map(|path| (path, None)))
    }

    /// Opens files, each with the names of the tensors that an index says it holds, if there is one. A tensor that the
    /// index does not list is not an entry: the index says what the model is.
    fn open_listed<'a>(files: impl IntoIterator<Item = (&'a Path, Option<&'a [String]>)>) -> Result<Self> {
        let (mut table, mut gathered) = (TensorTable::default(), Gathered::default());
        for (path, listed) in files {
            let file = Map::open(path)?;
            let mut tensors = header::read(&file, file.len() as u64, path)?;
            gathered.take(path, &mut tensors, listed)?;
            table.add(file, tensors);
        }
        Ok(Self(table))
    }

    /// As [`TensorTable::entries_mut`].
    pub(crate) fn entries_mut(&mut self) -> &mut [TensorEntry] {
        self.0.entries_mut()
    }

    /// The files it reads, in order.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.paths()
    }
}

/// The tensors of a file of `size` bytes that starts with `head` and is called `file` in messages, with their ranges.
pub(crate) fn tensors(head: &[u8], size: u64, file: &Path) -> Result<Vec<(TensorEntry, Range<usize>)>> {
    header::read(head, size, file)
}

/// Where the header ends of the safetensors file called `file` that starts with `prefix`; `None` if it does not tell yet.
pub(crate) fn header_end(prefix: &[u8], file: &Path) -> Result<Option<u64>> {
    header::end(prefix, file)
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
