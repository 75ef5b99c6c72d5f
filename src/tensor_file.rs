//! safetensors files that are written tensor by tensor.
//!
//! A file is the length of its header in 8 bytes, the header as JSON, which may end with spaces, and the data of the tensors
//! without gaps (<https://github.com/huggingface/safetensors#format>). The `safetensors` crate writes the header; its own
//! functions for files want all tensors in memory, or panic where one cannot be read.

use std::{collections::HashMap, ops::Range};

use llm_local_core::{ComputeDtype, Encoding, FloatType, IntType, TensorData};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

/// Bytes of values that are turned into little-endian ones at a time.
const AT_A_TIME: usize = 1 << 16;

/// A tensor in a file.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: Dtype,
    /// Where its bytes are, counted from the first one after the header.
    pub(crate) range: Range<usize>,
}

/// The type that safetensors has for `encoding`: none for what is quantized.
pub(crate) fn dtype(encoding: Encoding) -> Option<Dtype> {
    Some(match encoding {
        Encoding::Float(FloatType::F64) => Dtype::F64,
        Encoding::Float(FloatType::F32) => Dtype::F32,
        Encoding::Float(FloatType::F16) => Dtype::F16,
        Encoding::Float(FloatType::Bf16) => Dtype::BF16,
        Encoding::Int(IntType::Bool) => Dtype::BOOL,
        Encoding::Int(IntType::U8) => Dtype::U8,
        Encoding::Int(IntType::I8) => Dtype::I8,
        Encoding::Int(IntType::U16) => Dtype::U16,
        Encoding::Int(IntType::I16) => Dtype::I16,
        Encoding::Int(IntType::U32) => Dtype::U32,
        Encoding::Int(IntType::I32) => Dtype::I32,
        Encoding::Int(IntType::U64) => Dtype::U64,
        Encoding::Int(IntType::I64) => Dtype::I64,
        _ => return None,
    })
}

/// The type of floats that `dtype` asks for; `None` where each stays what it is, or somebody else decides.
pub(crate) fn float(dtype: ComputeDtype) -> Option<FloatType> {
    match dtype {
        ComputeDtype::Auto => None,
        ComputeDtype::F16 => Some(FloatType::F16),
        ComputeDtype::Bf16 => Some(FloatType::Bf16),
        _ => Some(FloatType::F32),
    }
}

/// What stands before the data of `tensors`, filled up to `least` bytes. The error says what is wrong with them.
pub(crate) fn head(tensors: Vec<Placed>, least: usize) -> Result<Vec<u8>, String> {
    // What transformers asks for.
    head_saying(&[("format", "pt")], tensors, least)
}

/// As [`head`], with the texts `said` for whoever reads it.
pub(crate) fn head_saying(said: &[(&str, &str)], mut tensors: Vec<Placed>, least: usize) -> Result<Vec<u8>, String> {
    tensors.sort_by_key(|tensor| (tensor.range.start, tensor.range.end));
    let infos = tensors.into_iter().map(|Placed { name, shape, dtype, range }| {
        (name, TensorInfo { dtype, shape, data_offsets: (range.start, range.end) })
    });
    let said: HashMap<_, _> = said.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let metadata = Metadata::new((!said.is_empty()).then_some(said), infos.collect()).map_err(|e| e.to_string())?;
    let text = serde_json::to_vec(&metadata).map_err(|e| e.to_string())?;
    let length = text.len().next_multiple_of(8).max(least.saturating_sub(8));
    let mut head = (length as u64).to_le_bytes().to_vec();
    head.extend(text);
    head.resize(8 + length, b' ');
    Ok(head)
}

/// The most bytes that the head of a file with these tensors takes, wherever they come to stand and whatever float type
/// they get.
pub(crate) fn head_room<'a>(tensors: impl Iterator<Item = (&'a str, &'a [usize])>) -> usize {
    // Beside the name, of which each character may be escaped: its keys and type, two offsets, and each dimension.
    let of = |(name, shape): (&str, &[usize])| 6 * name.len() + 64 + 2 * 21 + 21 * shape.len();
    (64 + tensors.map(of).sum::<usize>()).next_multiple_of(8)
}

/// Hands the bytes of `data`, little-endian, to `each`, some at a time, with where they begin.
pub(crate) fn each_bytes<E>(
    data: &TensorData<'_>,
    mut each: impl FnMut(&[u8], usize) -> Result<(), E>,
) -> Result<(), E> {
    let mut buffer = Vec::with_capacity(AT_A_TIME);
    match data {
        TensorData::F32(values) => {
            for (part, values) in values.chunks(AT_A_TIME / 4).enumerate() {
                buffer.clear();
                values.iter().for_each(|value| buffer.extend_from_slice(&value.to_le_bytes()));
                each(&buffer, part * AT_A_TIME)?;
            }
            Ok(())
        }
        TensorData::Half(bits) => {
            for (part, bits) in bits.chunks(AT_A_TIME / 2).enumerate() {
                buffer.clear();
                bits.iter().for_each(|bits| buffer.extend_from_slice(&bits.to_le_bytes()));
                each(&buffer, part * AT_A_TIME)?;
            }
            Ok(())
        }
        TensorData::Borrowed(bytes) => each(bytes, 0),
        TensorData::Bytes(bytes) => each(bytes, 0),
        _ => unreachable!("a tensor is given as floats or as bytes"),
    }
}

/// The places of the values of `data`, floats of type `float`, that are infinite or no numbers.
pub(crate) fn not_finite<'a>(data: &'a TensorData<'_>, float: FloatType) -> Box<dyn Iterator<Item = usize> + 'a> {
    // All bits of the exponent are set.
    let of_half = match float {
        FloatType::F16 => 0x7c00,
        _ => 0x7f80,
    };
    let half = move |bits: u16| bits & of_half == of_half;
    let bytes: &[u8] = match data {
        TensorData::F32(values) => return places(values.iter().map(|value| !value.is_finite())),
        TensorData::Half(bits) => return places(bits.iter().map(move |bits| half(*bits))),
        TensorData::Borrowed(bytes) => bytes,
        TensorData::Bytes(bytes) => bytes,
        _ => unreachable!("a tensor is given as floats or as bytes"),
    };
    match float.size() {
        8 => places(bytes.as_chunks().0.iter().map(|bytes| !f64::from_le_bytes(*bytes).is_finite())),
        4 => places(bytes.as_chunks().0.iter().map(|bytes| !f32::from_le_bytes(*bytes).is_finite())),
        _ => places(bytes.as_chunks().0.iter().map(move |bytes| half(u16::from_le_bytes(*bytes)))),
    }
}

fn places<'a>(are: impl Iterator<Item = bool> + 'a) -> Box<dyn Iterator<Item = usize> + 'a> {
    Box::new(are.enumerate().filter_map(|(place, is)| is.then_some(place)))
}
