//! Tensor headers against what candle reads.

use candle_core::quantized::GgmlDType;
use llm_local_backend_common::decoder::{Readable, check_not_packed, check_tensors};
use llm_local_core::{
    Encoding, FloatType, GgmlType, TensorEntry,
    model::{DecoderConfig, Layout},
};

use crate::backend::NAME;

/// What candle reads.
const READABLE: Readable = Readable {
    backend: NAME,
    reads: |layout, encoding| match (layout, encoding) {
        (Layout::Gguf, Encoding::Float(FloatType::F64)) => false,
        (_, Encoding::Float(_)) => true,
        (Layout::Gguf, Encoding::Ggml(t)) => ggml_dtype(t).is_some(),
        _ => false,
    },
    said: |layout| match layout {
        Layout::Gguf => "f32, f16, bf16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K in GGUF",
        _ => "floats in safetensors",
    },
};

/// Checks that every tensor of the model is there, in the right shape and in an encoding that candle reads, and that
/// no other tensor waits to be ignored.
pub(crate) fn check(c: &DecoderConfig, layout: Layout, tensors: &[TensorEntry]) -> Result<(), String> {
    check_not_packed(NAME, tensors)?;
    check_tensors(c, layout, tensors, &READABLE)
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
