//! The start of a weights file that is elsewhere.

use std::{
    fmt::Display,
    ops::Range,
    path::{Path, PathBuf},
};

use llm_local_core::{Error, Result, TensorEntry, model::GgufMetadata};

use crate::{gguf, is_gguf, safetensors};

/// Bytes that are asked for first. Most headers of safetensors are within; those of GGUF files, which hold a vocabulary,
/// within a few doublings.
const FIRST: u64 = 64 << 10;

/// Bytes that a header may have: the limit of safetensors, which is far above what GGUF files have.
const LARGEST: u64 = 100_000_008;

/// The start of a weights file that is elsewhere, grown until it holds the whole header:
///
/// ```
/// # let file = [&2u64.to_le_bytes()[..], b"{}"].concat();
/// let mut head = llm_local_weights::Head::new("model.safetensors", "hf:org/name", file.len() as u64);
/// while let Some(range) = head.wanted()? {
///     head.extend(&file[range.start as usize..range.end as usize]);
/// }
/// assert!(head.entries()?.is_empty());
/// # Ok::<_, llm_local_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Head {
    name: String,
    /// What it is called in messages.
    shown: PathBuf,
    bytes: Vec<u8>,
    size: u64,
}

impl Head {
    /// Nothing yet of the file `name`, safetensors or GGUF, of `size` bytes; `of` is the ref it is of.
    pub fn new(name: impl Into<String>, of: impl Display, size: u64) -> Self {
        let name = name.into();
        Self { shown: shown(&name, of), name, bytes: Vec::new(), size }
    }

    /// The bytes of the file to read next; `None` once the header is whole, or cannot be, which [`Head::entries`] explains.
    ///
    /// # Errors
    /// [`Error::LoadFailed`] and [`Error::UnsupportedModelFormat`], naming file and ref, for a header that more bytes would
    /// not mend.
    pub fn wanted(&self) -> Result<Option<Range<u64>>> {
        let have = self.bytes.len() as u64;
        if have >= self.size {
            return Ok(None);
        }
        let end = if self.is_gguf() {
            gguf::header_end(&self.bytes, &self.shown)?
        } else {
            safetensors::header_end(&self.bytes, &self.shown)?
        };
        let end = match end {
            Some(end) if end <= have => return Ok(None),
            _ if have >= LARGEST => {
                return Err(Error::load(self.shown.display(), format!("its header has more than {LARGEST} bytes")));
            }
            Some(end) => end,
            None => (2 * have).clamp(FIRST, LARGEST),
        };
        Ok(Some(have..end.min(self.size)))
    }

    /// Adds the bytes that were wanted.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The tensors by its header.
    ///
    /// # Errors
    /// As [`crate::SafetensorsSource::open`] and [`crate::GgufSource::open`], naming file and ref.
    pub fn entries(&self) -> Result<Vec<TensorEntry>> {
        if self.is_gguf() {
            return Ok(self.gguf_header()?.1);
        }
        Ok(self.safetensors()?.into_iter().map(|(entry, _)| entry).collect())
    }

    /// The metadata by its header; `None` of safetensors.
    ///
    /// # Errors
    /// As [`Head::entries`].
    pub fn gguf_metadata(&self) -> Result<Option<GgufMetadata>> {
        if self.is_gguf() { self.gguf_header().map(|(metadata, _)| Some(metadata)) } else { Ok(None) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn shown(&self) -> &Path {
        &self.shown
    }

    pub(crate) fn safetensors(&self) -> Result<Vec<(TensorEntry, Range<usize>)>> {
        safetensors::tensors(&self.bytes, self.size, &self.shown)
    }

    pub(crate) fn gguf_model(&self) -> Result<(GgufMetadata, Vec<TensorEntry>)> {
        gguf::describe(&self.bytes, self.size, &self.name, &self.shown)
    }

    fn gguf_header(&self) -> Result<(GgufMetadata, Vec<TensorEntry>)> {
        gguf::header(&self.bytes, self.size, &self.name, &self.shown)
    }

    fn is_gguf(&self) -> bool {
        is_gguf(&self.name)
    }
}

/// What the file `name` of the ref `of` is called in messages.
pub(crate) fn shown(name: &str, of: impl Display) -> PathBuf {
    format!("{name} of {of}").into()
}
