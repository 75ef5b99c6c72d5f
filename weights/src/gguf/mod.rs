//! GGUF files.

mod header;
mod metadata;
#[cfg(test)]
mod tests;

use std::{path::Path, sync::Arc};

use llm_local_core::{Error, FloatType, Result, TensorData, TensorEntry, TensorSource, model::GgufMetadata};

use crate::{map::Map, table::TensorTable};

/// Tensors and metadata of a GGUF file (version 3, little-endian), memory-mapped.
///
/// Shapes are outermost first, the reverse of ggml's `ne`. Plain floats and integers are
/// [`llm_local_core::Encoding::Float`] and `Int`; quantized tensors are read as stored only.
#[derive(Debug)]
pub struct GgufSource {
    table: TensorTable,
    metadata: Arc<GgufMetadata>,
}

impl GgufSource {
    /// Opens the file at `path`: a model, or an adapter.
    ///
    /// # Errors
    /// [`Error::NotFound`] and [`Error::Io`] if it cannot be opened; [`Error::LoadFailed`], naming the file and the
    /// tensor, for a header that is cut off or disagrees with the file's size or with itself;
    /// [`Error::UnsupportedModelFormat`] for another version, a tensor type without a [`llm_local_core::GgmlType`], and
    /// one part of a split model.
    pub fn open(path: &Path) -> Result<Self> {
        refuse_split_name(path, path)?;
        let file = Map::open(path)?;
        let header::Header { metadata, tensors } = header::read(&file, file.len() as u64, path)?;
        let mut table = TensorTable::default();
        table.add(file, tensors);
        Ok(Self { table, metadata: Arc::new(metadata) })
    }

    /// The key-value pairs of the header.
    pub fn metadata(&self) -> &Arc<GgufMetadata> {
        &self.metadata
    }

    /// Whether the file says of itself that it is an adapter (`general.type`).
    pub fn is_adapter(&self) -> bool {
        is_adapter(&self.metadata)
    }
}

impl TensorSource for GgufSource {
    fn entries(&self) -> &[TensorEntry] {
        self.table.entries()
    }

    fn read(&self, name: &str, want: Option<FloatType>) -> Result<TensorData<'_>> {
        self.table.read(name, want)
    }

    fn entry(&self, name: &str) -> Option<&TensorEntry> {
        self.table.entry(name)
    }
}

/// Where the header ends of the GGUF file called `file` that starts with `prefix`; `None` if beyond it.
pub(crate) fn header_end(prefix: &[u8], file: &Path) -> Result<Option<u64>> {
    header::end(prefix, file)
}

/// The metadata and tensors of the model in the file `name`, called `file` in messages, that starts with `head` and has
/// `size` bytes.
pub(crate) fn describe(head: &[u8], size: u64, name: &str, file: &Path) -> Result<(GgufMetadata, Vec<TensorEntry>)> {
    let (metadata, entries) = header(head, size, name, file)?;
    if is_adapter(&metadata) {
        return Err(adapter(file));
    }
    Ok((metadata, entries))
}

/// As [`describe`], of a model or an adapter.
pub(crate) fn header(head: &[u8], size: u64, name: &str, file: &Path) -> Result<(GgufMetadata, Vec<TensorEntry>)> {
    refuse_split_name(Path::new(name), file)?;
    let header::Header { metadata, tensors } = header::read(head, size, file)?;
    Ok((metadata, tensors.into_iter().map(|(entry, _)| entry).collect()))
}

fn is_adapter(metadata: &GgufMetadata) -> bool {
    metadata.string("general.type") == Some("adapter")
}

/// The error for an adapter where a model is expected.
pub(crate) fn adapter(path: &Path) -> Error {
    Error::unsupported_format(
        path.display(),
        "it is an adapter, not a model (general.type); pass it as adapter, with its base as model",
    )
}

/// The error for a part of a model that was split into several files.
fn split(path: &Path) -> Error {
    Error::unsupported_format(
        path.display(),
        "it is one part of a split GGUF model; join the parts with `llama-gguf-split --merge` and give the whole file",
    )
}

/// Refuses `<stem>-00001-of-00003.gguf`, called `file` in messages.
fn refuse_split_name(name: &Path, file: &Path) -> Result<()> {
    let stem = name.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    let number = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
    let is_part = stem.rsplit_once("-of-").is_some_and(|(rest, of)| {
        number(of) && of != "00001" && rest.rsplit_once('-').is_some_and(|(_, at)| number(at))
    });
    if is_part { Err(split(file)) } else { Ok(()) }
}
