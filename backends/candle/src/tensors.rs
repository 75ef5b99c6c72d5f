//! Tensor headers against what candle reads, and tensor data into candle's tensors.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor, quantized::GgmlDType};
use half::{bf16, f16, vec::HalfBitsVecExt};
use llm_local_core::{
    Encoding, Error, FloatType, GgmlType, Result, TensorData, TensorEntry,
    model::{BaseTensor, DecoderConfig, Layout},
};

use crate::errors::load_error;

/// The head of a tied model, which some checkpoints store a second time.
pub(crate) const TIED_HEAD: &str = "lm_head.weight";

/// Checks that every tensor of the model is there, in the right shape and in an encoding that candle reads, and that
/// no other tensor waits to be ignored.
pub(crate) fn check(c: &DecoderConfig, layout: Layout, tensors: &[TensorEntry]) -> Result<(), String> {
    let mut left: HashMap<&str, &TensorEntry> = tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    for BaseTensor { name, shape, .. } in c.base_tensors(layout) {
        let Some(entry) = left.remove(name.as_str()) else {
            return Err(format!("the tensor {name} is missing; a Llama with {} layers has it", c.layers));
        };
        check_one(entry, &shape, layout)?;
    }
    if let Some(head) = left.remove(TIED_HEAD).filter(|_| layout == Layout::HuggingFace && c.tied_embeddings) {
        check_one(head, &[c.vocab_size, c.hidden_size], layout)?;
    }
    // Old checkpoints store the rotary frequencies, which follow from the config.
    let mut extra: Vec<_> = left.into_keys().filter(|name| !name.ends_with(".rotary_emb.inv_freq")).collect();
    extra.sort_unstable();
    match extra.first() {
        Some(name) => Err(format!("the tensor {name} is no part of a Llama; candle would ignore it")),
        None => Ok(()),
    }
}

fn check_one(entry: &TensorEntry, shape: &[usize], layout: Layout) -> Result<(), String> {
    let name = &entry.name;
    if entry.shape != shape {
        return Err(format!("the tensor {name} has the shape {:?}; the config makes it {shape:?}", entry.shape));
    }
    let readable = match (layout, entry.encoding) {
        (Layout::Gguf, Encoding::Float(FloatType::F64)) => false,
        (_, Encoding::Float(_)) => true,
        (Layout::Gguf, Encoding::Ggml(t)) => ggml_dtype(t).is_some(),
        _ => false,
    };
    if !readable {
        let readable = match layout {
            Layout::Gguf => "f32, f16, bf16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K in GGUF",
            _ => "floats in safetensors",
        };
        return Err(format!("the tensor {name} is stored as {}; candle reads {readable}", entry.encoding));
    }
    match entry.stored_bytes() {
        Some(_) => Ok(()),
        None => Err(format!("the tensor {name} of shape {shape:?} is not whole blocks of {}", entry.encoding)),
    }
}

/// candle's name of a block format, where its GGUF loader has it (`qtensor_from_ggml`).
pub(crate) fn ggml_dtype(t: GgmlType) -> Option<GgmlDType> {
    Some(match t {
        GgmlType::Q4_0 => GgmlDType::Q4_0,
        GgmlType::Q4_1 => GgmlDType::Q4_1,
        GgmlType::Q5_0 => GgmlDType::Q5_0,
        GgmlType::Q5_1 => GgmlDType::Q5_1,
        GgmlType::Q8_0 => GgmlDType::Q8_0,
        GgmlType::Q2_K => GgmlDType::Q2K,
        GgmlType::Q3_K => GgmlDType::Q3K,
        GgmlType::Q4_K => GgmlDType::Q4K,
        GgmlType::Q5_K => GgmlDType::Q5K,
        GgmlType::Q6_K => GgmlDType::Q6K,
        _ => return None,
    })
}

/// A candle tensor of `data`, which is of type `dtype`. Owned data on the CPU is moved, not copied.
pub(crate) fn tensor(
    name: &str,
    data: TensorData<'_>,
    shape: &[usize],
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    let expected = shape.iter().product::<usize>() * dtype.size_in_bytes();
    if data.byte_len() != expected {
        let found = data.byte_len();
        return Err(Error::load(name, format!("its data has {found} bytes; {shape:?} of {dtype:?} are {expected}")));
    }
    let made = match (data, dtype) {
        (TensorData::F32(v), DType::F32) => Tensor::from_vec(v, shape, device),
        (TensorData::Half(v), DType::F16) => Tensor::from_vec(v.reinterpret_into::<f16>(), shape, device),
        (TensorData::Half(v), DType::BF16) => Tensor::from_vec(v.reinterpret_into::<bf16>(), shape, device),
        (TensorData::Borrowed(b), _) => Tensor::from_raw_buffer(b, dtype, shape, device),
        (TensorData::Bytes(b), _) => Tensor::from_raw_buffer(&b, dtype, shape, device),
        (other, _) => {
            return Err(Error::load(name, format!("its data came as {}, not as {dtype:?}", variant(&other))));
        }
    };
    made.map_err(|e| load_error(name, "it could not be put on the device", e))
}

/// Whether two tensors have the same bytes, in whichever form each came; `None` for a form that is not known. Both may
/// be as large as an embedding, so neither is copied.
pub(crate) fn same_bytes(a: &TensorData<'_>, b: &TensorData<'_>) -> Option<bool> {
    use TensorData::{F32, Half};
    Some(match (a, b) {
        (F32(a), F32(b)) => a.iter().map(|x| x.to_bits()).eq(b.iter().map(|x| x.to_bits())),
        (Half(a), Half(b)) => a == b,
        (F32(_), Half(_)) | (Half(_), F32(_)) => false,
        (F32(numbers), bytes) | (bytes, F32(numbers)) => same_numbers(numbers, raw(bytes)?, f32::to_le_bytes),
        (Half(bits), bytes) | (bytes, Half(bits)) => same_numbers(bits, raw(bytes)?, u16::to_le_bytes),
        (a, b) => raw(a)? == raw(b)?,
    })
}

fn raw<'a>(data: &'a TensorData<'_>) -> Option<&'a [u8]> {
    match data {
        TensorData::Borrowed(bytes) => Some(bytes),
        TensorData::Bytes(bytes) => Some(bytes),
        _ => None,
    }
}

fn same_numbers<T: Copy, const N: usize>(numbers: &[T], bytes: &[u8], le: impl Fn(T) -> [u8; N]) -> bool {
    numbers.len() * N == bytes.len() && numbers.iter().zip(bytes.chunks_exact(N)).all(|(x, bytes)| le(*x) == bytes)
}

fn variant(data: &TensorData<'_>) -> &'static str {
    match data {
        TensorData::F32(_) => "32-bit floats",
        TensorData::Half(_) => "16-bit floats",
        _ => "bytes",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_compared_across_forms_to_the_last_one() {
        let numbers = [1.5f32, f32::NAN, -0.0];
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let bits: Vec<u16> = bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
        let whole = [TensorData::F32(numbers.to_vec()), TensorData::Borrowed(&bytes), TensorData::Bytes(bytes.clone())];
        let halves = [TensorData::Half(bits.clone()), TensorData::Borrowed(&bytes), TensorData::Bytes(bytes.clone())];
        let mut other = bytes.clone();
        *other.last_mut().unwrap() ^= 1;
        let short = &bytes[..bytes.len() - 4];
        for forms in [whole, halves] {
            for a in &forms {
                for b in &forms {
                    assert_eq!(same_bytes(a, b), Some(true), "{a:?} {b:?}");
                }
                for different in [&other[..], short, &[]] {
                    assert_eq!(same_bytes(a, &TensorData::Borrowed(different)), Some(false), "{a:?}");
                    assert_eq!(same_bytes(&TensorData::Bytes(different.to_vec()), a), Some(false), "{a:?}");
                }
            }
        }
        assert_eq!(same_bytes(&TensorData::F32(vec![0.0]), &TensorData::F32(vec![-0.0])), Some(false));
        assert_eq!(same_bytes(&TensorData::Half(bits), &TensorData::F32(numbers.to_vec())), Some(false));
    }

    #[test]
    fn data_in_any_form_becomes_the_same_tensor() {
        let numbers = [1.5f32, -2.0, 0.25, 96.0];
        let bits: Vec<u16> = numbers.iter().map(|x| f16::from_f32(*x).to_bits()).collect();
        let half: Vec<u8> = bits.iter().flat_map(|b| b.to_le_bytes()).collect();
        let mut full: Vec<u8> = vec![0]; // one byte in front, so that the numbers are not aligned
        full.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
        for (data, dtype) in [
            (TensorData::F32(numbers.to_vec()), DType::F32),
            (TensorData::Borrowed(&full[1..]), DType::F32),
            (TensorData::Half(bits), DType::F16),
            (TensorData::Borrowed(&half), DType::F16),
            (TensorData::Bytes(half.clone()), DType::F16),
        ] {
            let made = tensor("t", data, &[2, 2], dtype, &Device::Cpu).unwrap();
            assert_eq!(made.dtype(), dtype);
            let rows = made.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
            assert_eq!(rows, [[1.5, -2.0], [0.25, 96.0]]);
        }
        let error = tensor("t", TensorData::F32(vec![0.0; 3]), &[2, 2], DType::F32, &Device::Cpu).unwrap_err();
        assert!(error.to_string().contains("12 bytes"), "{error}");
    }
}
