//! The header of a safetensors file.
//!
//! The `safetensors` crate parses. Its errors, though, name neither file, tensor nor number, of a name that stands twice
//! it keeps one, and it wants the data too, which may be elsewhere; so the header is looked through here first.

use std::{ops::Range, path::Path};

use llm_local_core::{Encoding, Error, FloatType, IntType, Result, TensorEntry};
use safetensors::{Dtype, tensor::Metadata};
use serde::Deserialize;
use serde_json::Value;

use crate::json::UniqueMap;

/// Bytes of the length that a file starts with.
const LENGTH: usize = 8;
/// The format's own limit for the header (`safetensors`, `MAX_HEADER_SIZE`).
const LARGEST_HEADER: u64 = 100_000_000;

/// Where the header ends in a file that starts with `prefix`; `None` if it does not tell yet.
///
/// # Errors
/// [`Error::LoadFailed`] for a length above the format's limit.
pub(super) fn end(prefix: &[u8], path: &Path) -> Result<Option<u64>> {
    let Some((length, _)) = prefix.split_first_chunk::<LENGTH>() else { return Ok(None) };
    match u64::from_le_bytes(*length) {
        length if length <= LARGEST_HEADER => Ok(Some(LENGTH as u64 + length)),
        length => Err(Error::load(path.display(), too_long(length))),
    }
}

fn too_long(length: u64) -> String {
    format!(
        "its first {LENGTH} bytes give a header of {length} bytes, above the format's limit of {LARGEST_HEADER}; it is not a safetensors file"
    )
}

/// Reads the header of a file of `size` bytes that starts with `bytes`: its tensors in the order of their data, with
/// their ranges of the file.
pub(super) fn read(bytes: &[u8], size: u64, path: &Path) -> Result<Vec<(TensorEntry, Range<usize>)>> {
    let data = look_through(bytes, size).map_err(|reason| Error::load(path.display(), reason))?;
    let metadata: Metadata = serde_json::from_slice(&bytes[LENGTH..data])
        .map_err(|e| Error::load(path.display(), format!("it is not a valid safetensors file: {e}")))?;
    let mut tensors = Vec::new();
    for (name, info) in metadata.tensors() {
        let encoding = encoding(info.dtype).ok_or_else(|| {
            Error::unsupported_format(
                path.display(),
                format!("the tensor `{name}` is of the type {}, which is not read; floats of 16 bits and more and integers are", info.dtype),
            )
        })?;
        let (start, end) = info.data_offsets;
        tensors.push((TensorEntry::new(name, info.shape.clone(), encoding), data + start..data + end));
    }
    // By name too: tensors without elements share an offset, and the crate hands them out in no order.
    tensors.sort_by(|(a, at), (b, bt)| (at.start, at.end, &a.name).cmp(&(bt.start, bt.end, &b.name)));
    Ok(tensors)
}

fn encoding(dtype: Dtype) -> Option<Encoding> {
    Some(match dtype {
        Dtype::F64 => Encoding::Float(FloatType::F64),
        Dtype::F32 => Encoding::Float(FloatType::F32),
        Dtype::F16 => Encoding::Float(FloatType::F16),
        Dtype::BF16 => Encoding::Float(FloatType::Bf16),
        Dtype::BOOL => Encoding::Int(IntType::Bool),
        Dtype::U8 => Encoding::Int(IntType::U8),
        Dtype::I8 => Encoding::Int(IntType::I8),
        Dtype::U16 => Encoding::Int(IntType::U16),
        Dtype::I16 => Encoding::Int(IntType::I16),
        Dtype::U32 => Encoding::Int(IntType::U32),
        Dtype::I32 => Encoding::Int(IntType::I32),
        Dtype::U64 => Encoding::Int(IntType::U64),
        Dtype::I64 => Encoding::Int(IntType::I64),
        _ => return None,
    })
}

/// One tensor, as the header has it.
#[derive(Deserialize)]
struct Raw {
    dtype: Value,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Says what is wrong with a header, or where the data starts.
fn look_through(bytes: &[u8], size: u64) -> Result<usize, String> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH>() else {
        return Err(format!(
            "it has {} bytes, fewer than the {LENGTH} that a safetensors file starts with; it is cut off, so get it again",
            bytes.len()
        ));
    };
    let length = u64::from_le_bytes(*length);
    if length > LARGEST_HEADER {
        return Err(too_long(length));
    }
    let header = usize::try_from(length).ok().and_then(|n| rest.get(..n)).ok_or_else(|| {
        format!(
            "its first {LENGTH} bytes give a header of {length} bytes, but only {} follow; it is cut off or not a safetensors file",
            rest.len()
        )
    })?;
    let data = size.saturating_sub((LENGTH + header.len()) as u64);
    let header = std::str::from_utf8(header).map_err(|e| format!("its header is not UTF-8 text: {e}"))?;
    let UniqueMap(pairs) = serde_json::from_str::<UniqueMap<Value>>(header)
        .map_err(|e| format!("its header is not the JSON of a safetensors file: {e}"))?;
    let mut tensors = Vec::new();
    for (name, value) in pairs {
        if name != "__metadata__" {
            let raw = Raw::deserialize(value).map_err(|e| format!("the header's entry of the tensor `{name}`: {e}"))?;
            check_tensor(&name, &raw, data)?;
            tensors.push((raw.data_offsets, name));
        }
    }
    check_layout(tensors, data)?;
    Ok(LENGTH + header.len())
}

/// Whether type, shape and offsets of one tensor agree, and lie within the `data` bytes that follow the header.
fn check_tensor(name: &str, raw: &Raw, data: u64) -> Result<(), String> {
    let dtype = Dtype::deserialize(&raw.dtype)
        .map_err(|_| format!("the tensor `{name}` has the type {}, which safetensors does not have", raw.dtype))?;
    let (start, end) = raw.data_offsets;
    let overflow = || format!("the size of the tensor `{name}` with shape {:?} overflows", raw.shape);
    let elements = raw.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).ok_or_else(overflow)?;
    let bits = elements.checked_mul(dtype.bitsize() as u64).ok_or_else(overflow)?;
    let Some(length) = end.checked_sub(start) else {
        return Err(format!("the data of the tensor `{name}` ends at {end}, before its start at {start}"));
    };
    if !bits.is_multiple_of(8) || bits / 8 != length {
        return Err(format!(
            "the tensor `{name}` of the type {dtype} and shape {:?} needs {} bytes, but its offsets {start}..{end} span {length}",
            raw.shape,
            bits.div_ceil(8)
        ));
    }
    if end > data {
        return Err(format!(
            "the data of the tensor `{name}` ends at {end}, but only {data} bytes follow the header; the file is cut off or its header is wrong, so get it again"
        ));
    }
    Ok(())
}

/// Whether the tensors cover the `data` bytes, each byte once.
fn check_layout(mut tensors: Vec<((u64, u64), String)>, data: u64) -> Result<(), String> {
    tensors.sort();
    let mut covered = 0;
    let mut last = "";
    for ((start, end), name) in &tensors {
        if *start < covered {
            return Err(format!(
                "the data of the tensors `{last}` and `{name}` overlap: {start} lies before {covered}"
            ));
        }
        if *start > covered {
            return Err(format!("the bytes {covered}..{start} before the tensor `{name}` belong to no tensor"));
        }
        (covered, last) = (*end, name);
    }
    if covered < data {
        return Err(format!("{} bytes follow the last tensor and belong to none", data - covered));
    }
    Ok(())
}
