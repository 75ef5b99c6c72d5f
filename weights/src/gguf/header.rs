//! The header of a GGUF file, checked against the file's size.
//!
//! `gguf-rs-lib` parses it, from the bytes, with lengths that are checked before anything is allocated. Its readers of
//! the preamble, of one value and of one tensor's descriptor are used, and not its reader of a whole file: that one
//! refuses keys that are in use (`command-r.block_count`, for the hyphen), and tells neither file nor tensor.

use std::{collections::HashSet, io, ops::Range, path::Path, sync::Arc};

use gguf_rs_lib::{
    GGUFError,
    format::{GGUF_DEFAULT_ALIGNMENT, GGUFHeader, TensorInfo},
};
use llm_local_core::{
    Encoding, Error, FloatType, GgmlType, IntType, Result, TensorEntry,
    error::Cause,
    model::{GgufMetadata, GgufValue},
};

use super::{metadata, split};

/// What a file's header holds.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) metadata: GgufMetadata,
    /// The tensors in the order of the header, with their ranges of the file.
    pub(super) tensors: Vec<(TensorEntry, Range<usize>)>,
}

/// Where the header ends in a file that starts with `prefix`: without the data's padding. `None` if that lies beyond it.
///
/// # Errors
/// As [`read`], for what more bytes would not mend.
pub(super) fn end(prefix: &[u8], path: &Path) -> Result<Option<u64>> {
    match read_descriptors(prefix, path) {
        Ok(read) => Ok(Some((prefix.len() - read.rest) as u64)),
        Err(error) if is_cut(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A header, before its tensors are located in the file.
struct Descriptors {
    metadata: GgufMetadata,
    tensors: Vec<TensorInfo>,
    alignment: usize,
    /// Bytes behind it.
    rest: usize,
}

fn read_descriptors(bytes: &[u8], path: &Path) -> Result<Descriptors> {
    let mut rest = bytes;
    let preamble = preamble(&mut rest, path)?;
    let metadata = metadata::read(&mut rest, preamble.metadata_kv_count, path)?;
    if metadata.usize("split.count").is_some_and(|n| n > 1) {
        return Err(split(path));
    }
    let alignment = alignment(&metadata, path)?;
    let mut descriptors = Vec::new();
    let mut seen = HashSet::new();
    for at in 0..preamble.tensor_count {
        let what = || format!("the descriptor of tensor {} of {}", at + 1, preamble.tensor_count);
        let tensor = TensorInfo::read_from(&mut rest).map_err(|e| broken(path, &what(), &e))?;
        if !seen.insert(tensor.name.clone()) {
            return Err(Error::load(path.display(), format!("the tensor `{}` stands there twice", tensor.name)));
        }
        descriptors.push(tensor);
    }
    Ok(Descriptors { metadata, tensors: descriptors, alignment, rest: rest.len() })
}

/// Reads the header of a file of `size` bytes that starts with `bytes`.
pub(super) fn read(bytes: &[u8], size: u64, path: &Path) -> Result<Header> {
    let Descriptors { metadata, tensors: descriptors, alignment, rest } = read_descriptors(bytes, path)?;
    let data = (bytes.len() - rest).checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    let mut tensors = Vec::new();
    for tensor in descriptors {
        tensors.push(locate(&tensor, data, alignment, size, path)?);
    }
    check_overlap(&tensors, path)?;
    Ok(Header { metadata, tensors })
}

/// The error for `what` not being readable.
pub(super) fn broken(path: &Path, what: &str, error: &GGUFError) -> Error {
    let cut = match error {
        GGUFError::UnexpectedEof => true,
        GGUFError::Io(e) => e.kind() == io::ErrorKind::UnexpectedEof,
        _ => false,
    };
    let reason =
        if cut { "the file ends within it; it is cut off, so get it again".to_owned() } else { error.to_string() };
    Error::LoadFailed {
        model: path.display().to_string(),
        reason: format!("{what}: {reason}"),
        source: cut.then(|| Arc::new(io::Error::from(io::ErrorKind::UnexpectedEof)) as Cause),
    }
}

/// Whether [`broken`] made `error` of an end that came too early.
fn is_cut(error: &Error) -> bool {
    let Error::LoadFailed { source: Some(cause), .. } = error else { return false };
    cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::UnexpectedEof)
}

fn preamble(rest: &mut &[u8], path: &Path) -> Result<GGUFHeader> {
    GGUFHeader::read_from(rest).map_err(|e| match e {
        GGUFError::InvalidMagic { .. } => {
            Error::load(path.display(), "it does not start with `GGUF`, so it is not a GGUF file")
        }
        GGUFError::UnsupportedVersion(v) if v.swap_bytes() < 0x100 => {
            Error::unsupported_format(path.display(), "it is a big-endian GGUF file; only little-endian ones are read")
        }
        GGUFError::UnsupportedVersion(v) => Error::unsupported_format(
            path.display(),
            format!("it is GGUF version {v}; version 3 is read, so convert it with a current llama.cpp"),
        ),
        other => broken(path, "the first 24 bytes", &other),
    })
}

/// The alignment of tensor data, by llama.cpp's rule: a power of two, 32 unless the file says otherwise.
fn alignment(metadata: &GgufMetadata, path: &Path) -> Result<usize> {
    let value = match metadata.get("general.alignment") {
        None => return Ok(GGUF_DEFAULT_ALIGNMENT),
        Some(GgufValue::Int(n)) => u32::try_from(*n).ok().filter(|n| n.is_power_of_two()),
        Some(_) => None,
    };
    value.and_then(|n| usize::try_from(n).ok()).ok_or_else(|| {
        Error::load(
            path.display(),
            format!("general.alignment is {:?}; expected a power of two below 2^32", metadata.get("general.alignment")),
        )
    })
}

/// The entry of a tensor, and its range in a file of `size` bytes whose data starts at `data`.
fn locate(
    tensor: &TensorInfo,
    data: usize,
    alignment: usize,
    size: usize,
    path: &Path,
) -> Result<(TensorEntry, Range<usize>)> {
    let name = &tensor.name;
    let wrong = |reason: String| Error::load(path.display(), format!("the tensor `{name}` {reason}"));
    let encoding = encoding(tensor.tensor_type).ok_or_else(|| {
        Error::unsupported_format(
            path.display(),
            format!("the tensor `{name}` is of ggml's type {}, which is not known here", tensor.tensor_type),
        )
    })?;
    let shape: Option<Vec<usize>> = tensor.dimensions.iter().rev().map(|&d| usize::try_from(d).ok()).collect();
    let entry = shape.map(|shape| TensorEntry::new(name.clone(), shape, encoding));
    let length = entry.as_ref().and_then(TensorEntry::stored_bytes);
    let (Some(entry), Some(length)) = (entry, length) else {
        return Err(wrong(format!(
            "of type {encoding} has the dimensions {:?}, whose size overflows or whose rows are not whole blocks",
            tensor.dimensions
        )));
    };
    let offset = usize::try_from(tensor.offset).map_err(|_| wrong(format!("lies at {}", tensor.offset)))?;
    if !offset.is_multiple_of(alignment) {
        return Err(wrong(format!(
            "lies at {offset} of the data, which is not a multiple of the alignment {alignment}"
        )));
    }
    match data.checked_add(offset).and_then(|start| Some(start..start.checked_add(length)?)) {
        Some(range) if range.end <= size => Ok((entry, range)),
        _ => Err(wrong(format!(
            "needs {length} bytes from {offset} of the data, but the data has {}; the file is cut off or its header is wrong, so get it again",
            size.saturating_sub(data)
        ))),
    }
}

/// Types by their numbers in `ggml.h`, `enum ggml_type`.
fn encoding(id: u32) -> Option<Encoding> {
    Some(match id {
        0 => Encoding::Float(FloatType::F32),
        1 => Encoding::Float(FloatType::F16),
        28 => Encoding::Float(FloatType::F64),
        30 => Encoding::Float(FloatType::Bf16),
        24 => Encoding::Int(IntType::I8),
        25 => Encoding::Int(IntType::I16),
        26 => Encoding::Int(IntType::I32),
        27 => Encoding::Int(IntType::I64),
        other => Encoding::Ggml(GgmlType::from_id(other)?),
    })
}

fn check_overlap(tensors: &[(TensorEntry, Range<usize>)], path: &Path) -> Result<()> {
    let mut by_place: Vec<_> = tensors.iter().filter(|(_, range)| !range.is_empty()).collect();
    by_place.sort_by_key(|(_, range)| range.start);
    for pair in by_place.windows(2) {
        if let [(a, at), (b, bt)] = pair
            && bt.start < at.end
        {
            return Err(Error::load(
                path.display(),
                format!(
                    "the data of the tensors `{}` and `{}` overlap: {} lies before {}",
                    a.name, b.name, bt.start, at.end
                ),
            ));
        }
    }
    Ok(())
}
