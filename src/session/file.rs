//! The file of a saved chat: a safetensors file.
//!
//! Its tensors are those of the KV cache, under the backend's names. Its `__metadata__` has three entries:
//!
//! - `format`: [`FORMAT`];
//! - `session`: a [`Saved`] as JSON;
//! - `sha256`: the SHA-256, as hex, over `format`, `session`, and of each tensor, in the backend's order, its name,
//!   dtype, shape and data, each after its length as eight little-endian bytes.

use std::{
    collections::{BTreeMap, HashMap},
    io::{ErrorKind, Read, Seek, SeekFrom},
    path::Path,
};

use fs_err::File;
use llm_local_core::{Error, FloatType, Message, Result, SessionTensor};
use safetensors::{
    Dtype, SafeTensorError,
    tensor::{Metadata, TensorView},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{blocking::Wanted, engine::hex};

/// What the file is, and the version of its form.
const FORMAT: &str = "llm-local session 1";
/// The limit that `safetensors` has for the header.
const LARGEST_HEADER: u64 = 100_000_000;
/// Bytes of the header's length, with which a safetensors file starts.
const LENGTH: u64 = 8;

/// A chat as data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Saved {
    pub(super) system_prompt: Option<String>,
    pub(super) messages: Vec<Message>,
    /// Without it and `unknown`, no model has answered yet.
    pub(super) made_by: Option<MadeBy>,
    /// Why it could not be told which model answered. Only without `made_by`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) unknown: Option<String>,
    /// Never without `made_by`: nobody could tell which model it fits.
    pub(super) cache: Option<Cache>,
}

/// The model that answered last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MadeBy {
    /// Its id, for messages.
    pub(super) model: String,
    /// As [`crate::ModelDigest`] has them.
    pub(super) base: String,
    pub(super) adapters: String,
    pub(super) backend: String,
    pub(super) dtype: String,
    pub(super) context_length: usize,
}

/// What a [`llm_local_core::SessionState`] has beside its tensors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cache {
    pub(super) tokens: Vec<u32>,
    pub(super) metadata: BTreeMap<String, String>,
    /// Their names, in the backend's order.
    pub(super) tensors: Vec<String>,
}

/// Tensors as the file takes them.
///
/// # Errors
/// [`Error::InvalidSpec`] if what the backend gave is not what it says.
pub(super) fn views<'t>(path: &Path, tensors: &'t [SessionTensor]) -> Result<BTreeMap<&'t str, TensorView<'t>>> {
    let mut views = BTreeMap::new();
    for tensor in tensors {
        let SessionTensor { name, shape, data, .. } = tensor;
        let Some(dtype) = dtype(tensor.dtype) else {
            return Err(other(path, format!("the tensor `{name}` is of the type {}", tensor.dtype)));
        };
        let elements = shape.iter().try_fold(tensor.dtype.size(), |n, &d| n.checked_mul(d));
        if elements != Some(data.len()) {
            let bytes = data.len();
            let reason = format!("the backend gave the tensor `{name}` of shape {shape:?} with {bytes} bytes");
            return Err(other(path, reason));
        }
        let view = TensorView::new(dtype, shape.clone(), data).map_err(|e| other(path, e.to_string()))?;
        if views.insert(name.as_str(), view).is_some() {
            return Err(other(path, format!("the backend gave two tensors the name `{name}`")));
        }
    }
    Ok(views)
}

/// Writes a chat and the tensors of its cache. The file at `path` is the old one or the whole new one; it stays the old
/// one if this is no longer wanted.
pub(super) fn write(path: &Path, saved: &Saved, tensors: &[SessionTensor], wanted: &Wanted) -> Result<()> {
    let session = serde_json::to_string(saved).map_err(|e| other(path, e.to_string()))?;
    let views = views(path, tensors)?;
    let mut sum = Sum::new(&session);
    for tensor in tensors {
        // In the backend's order; all of them are there, or there were no views.
        if let Some(view) = views.get(&*tensor.name) {
            sum.add(&tensor.name, view.dtype(), &tensor.shape, &tensor.data);
        }
    }
    let metadata = HashMap::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("session".to_owned(), session),
        ("sha256".to_owned(), sum.finish()),
    ]);
    // Where the path leads must not change meanwhile.
    let path = std::path::absolute(path).map_err(|e| Error::io("write", path, e))?;
    let failed = |e| Error::io("write", &path, e);
    let temporary = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(&path)).map_err(failed)?.into_temp_path();
    safetensors::serialize_to_file(views, Some(metadata), &temporary).map_err(|error| match error {
        SafeTensorError::IoError(e) => failed(e),
        e => other(&path, e.to_string()),
    })?;
    // A save that was given up must not take the place of one that came after it.
    wanted.commit(|| temporary.persist(&path).map_err(|e| failed(e.error)))
}

/// Reads a chat and the tensors of its cache. Nothing in the file is trusted; one that was changed is refused.
pub(super) fn read(path: &Path) -> Result<(Saved, Vec<SessionTensor>)> {
    let mut file = File::open(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => Error::not_found(path.display(), "there is no such file to restore a session from"),
        _ => Error::io("open", path, e),
    })?;
    Reader { path, file: &mut file }.read()
}

struct Reader<'a> {
    path: &'a Path,
    file: &'a mut File,
}

impl Reader<'_> {
    fn read(&mut self) -> Result<(Saved, Vec<SessionTensor>)> {
        let size = self.file.metadata().map_err(|e| self.io(e))?.len();
        if size < LENGTH {
            return Err(self.damaged(format!("at least {LENGTH} bytes"), format!("{size} bytes")));
        }
        let length = u64::from_le_bytes(self.bytes::<{ LENGTH as usize }>()?);
        if length > LARGEST_HEADER {
            return Err(self.other(format!("it starts with a length of {length} bytes, above safetensors' limit")));
        }
        let start = LENGTH + length;
        if size < start {
            return Err(self.damaged(format!("at least {start} bytes"), format!("{size} bytes")));
        }
        let header = self.exactly(length as usize)?;
        let header: Metadata = serde_json::from_slice(&header)
            .map_err(|e| self.other(format!("its header is not that of a safetensors file: {e}")))?;
        let (format, session, digest) = self.entries(&header)?;
        let whole = (header.data_len() as u64).checked_add(start);
        if whole != Some(size) {
            let expected = whole.map_or("less than 2^64 bytes".to_owned(), |n| format!("{n} bytes"));
            return Err(self.damaged(expected, format!("{size} bytes")));
        }
        if format != FORMAT {
            return Err(self.other(format!(
                "its format is `{format}`, and this version reads `{FORMAT}`; use the version of llm-local that wrote it"
            )));
        }
        // Before the JSON is judged: what was changed is not worth a closer look.
        let found = serde_json::from_str::<Saved>(session);
        let names = found.as_ref().ok().and_then(|s| s.cache.as_ref()).map_or(&[][..], |c| &c.tensors);
        let (mut listed, mut there) = (names.to_vec(), header.offset_keys());
        listed.sort();
        there.sort();
        if listed != there {
            return Err(self.damaged(format!("the tensors {listed:?}"), format!("{there:?}")));
        }
        let mut sum = Sum::new(session);
        let mut tensors = Vec::new();
        for name in names {
            let Some(info) = header.info(name) else { continue };
            let (from, to) = info.data_offsets;
            self.file.seek(SeekFrom::Start(start + from as u64)).map_err(|e| self.io(e))?;
            let data = self.exactly(to - from)?;
            sum.add(name, info.dtype, &info.shape, &data);
            let Some(dtype) = float(info.dtype) else {
                return Err(self.damaged(format!("floats in the tensor `{name}`"), info.dtype.to_string()));
            };
            tensors.push(SessionTensor::new(name, dtype, info.shape.clone(), data));
        }
        let sum = sum.finish();
        if sum != digest {
            return Err(self.damaged(format!("sha256 {digest}"), format!("sha256 {sum}")));
        }
        let saved = found.map_err(|e| self.other(format!("its entry `session` is not as expected: {e}")))?;
        if saved.cache.is_some() && saved.made_by.is_none() {
            let expected = "`made_by`, the model whose KV cache it has, in its entry `session`";
            return Err(self.damaged(expected.to_owned(), "a KV cache without it".to_owned()));
        }
        Ok((saved, tensors))
    }

    /// The three entries of the metadata.
    fn entries<'h>(&self, header: &'h Metadata) -> Result<(&'h str, &'h str, &'h str)> {
        let entry = |name: &str| {
            let found = header.metadata().as_ref().and_then(|m| m.get(name));
            found.map(String::as_str).ok_or_else(|| {
                self.other(format!("its metadata has no entry `{name}`, so it is not one that `Session::save` wrote"))
            })
        };
        Ok((entry("format")?, entry("session")?, entry("sha256")?))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes).map_err(|e| self.io(e))?;
        Ok(bytes)
    }

    /// The next `n` bytes, of which the file's size says that they are there.
    fn exactly(&mut self, n: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; n];
        self.file.read_exact(&mut bytes).map_err(|e| self.io(e))?;
        Ok(bytes)
    }

    fn io(&self, error: std::io::Error) -> Error {
        Error::io("read", self.path, error)
    }

    /// The file is not as it was written.
    fn damaged(&self, expected: String, found: String) -> Error {
        let found = format!("{found}; it is cut off or was changed, so use another copy");
        Error::IntegrityFailed { what: format!("session file {}", self.path.display()), expected, found }
    }

    /// The file is something else.
    fn other(&self, reason: String) -> Error {
        other(self.path, reason)
    }
}

/// The file at `path` cannot be one of a saved chat.
fn other(path: &Path, reason: String) -> Error {
    Error::invalid_spec(format!("session file {}", path.display()), reason)
}

/// The checksum over a file's content.
struct Sum(Sha256);

impl Sum {
    fn new(session: &str) -> Self {
        let mut sum = Self(Sha256::new());
        sum.part(FORMAT.as_bytes());
        sum.part(session.as_bytes());
        sum
    }

    fn add(&mut self, name: &str, dtype: Dtype, shape: &[usize], data: &[u8]) {
        self.part(name.as_bytes());
        self.part(dtype.to_string().as_bytes());
        self.part(format!("{shape:?}").as_bytes());
        self.part(data);
    }

    /// With its length, so that no two lists of parts are the same bytes.
    fn part(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn finish(self) -> String {
        hex(self.0.finalize())
    }
}

fn dtype(float: FloatType) -> Option<Dtype> {
    Some(match float {
        FloatType::F64 => Dtype::F64,
        FloatType::F32 => Dtype::F32,
        FloatType::F16 => Dtype::F16,
        FloatType::Bf16 => Dtype::BF16,
        _ => return None,
    })
}

fn float(dtype: Dtype) -> Option<FloatType> {
    Some(match dtype {
        Dtype::F64 => FloatType::F64,
        Dtype::F32 => FloatType::F32,
        Dtype::F16 => FloatType::F16,
        Dtype::BF16 => FloatType::Bf16,
        _ => return None,
    })
}
