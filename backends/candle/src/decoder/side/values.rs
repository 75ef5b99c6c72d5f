//! Floats in the type they are stored in, widened a few at a time.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use llm_local_backend_common::decoder::adapters::Values;
use llm_local_weights::widen_f16;

/// Elements that are widened at one time.
pub(super) const CHUNK: usize = 256;

/// Some of `values`, at most [`CHUNK`], in f32: in `buffer` where they are not stored so.
#[inline(always)]
pub(super) fn some<'a>(values: &'a Values, range: Range<usize>, buffer: &'a mut [f32; CHUNK]) -> &'a [f32] {
    let wide = &mut buffer[..range.len()];
    match values {
        Values::F32(v) => return &v[range],
        Values::F16(v) => widen_f16(v[range].reinterpret_cast(), wide),
        // As `bf16::to_f32`, but for NaN, which no adapter has; without a branch, so that it is vectorized.
        Values::Bf16(v) => {
            wide.iter_mut().zip(&v[range]).for_each(|(w, v)| *w = f32::from_bits(u32::from(v.to_bits()) << 16));
        }
    }
    wide
}
