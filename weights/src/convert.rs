//! Floats of one type to another, in parallel.

use half::{
    bf16,
    slice::{HalfBitsSliceExt, HalfFloatSliceExt},
};
use llm_local_core::{FloatType, TensorData};
use rayon::prelude::*;

use crate::f16::{narrow_to_f16, widen_f16_bytes};

/// Elements that are staged on the stack, so that unaligned bytes become aligned values without `unsafe`.
const BLOCK: usize = 1024;
/// Elements per task.
const TASK: usize = 64 * BLOCK;

/// Converts little-endian values of type `from` to type `to`; `None` if there is no such conversion (to f64).
///
/// Each value is rounded to nearest, ties to even; an f64 goes to a 16-bit type by way of f32.
pub(crate) fn convert(bytes: &[u8], from: FloatType, to: FloatType) -> Option<TensorData<'static>> {
    let widen: Widen = match from {
        FloatType::F64 => |source, target| each(source, target, |b| f64::from_le_bytes(b) as f32),
        FloatType::F32 => |source, target| each(source, target, f32::from_le_bytes),
        FloatType::F16 => |source, target| {
            widen_f16_bytes(source.as_chunks().0, target);
        },
        FloatType::Bf16 => |source, target| {
            staged(source, target, |bits, target| bits.reinterpret_cast::<bf16>().convert_to_f32_slice(target));
        },
        _ => return None,
    };
    match to {
        FloatType::F32 => {
            let mut out = vec![0f32; bytes.len() / from.size()];
            in_parallel(bytes, from.size(), &mut out, widen);
            Some(TensorData::F32(out))
        }
        FloatType::F16 => Some(narrow(bytes, from.size(), widen, narrow_to_f16)),
        FloatType::Bf16 => Some(narrow(bytes, from.size(), widen, |values, bits| {
            bits.reinterpret_cast_mut::<bf16>().convert_from_f32_slice(values);
        })),
        _ => None,
    }
}

/// Makes f32 of the bytes of at most `BLOCK` values.
type Widen = fn(&[u8], &mut [f32]);

/// Makes 16-bit floats of values of `width` bytes, by way of f32.
fn narrow(bytes: &[u8], width: usize, widen: Widen, round: fn(&[f32], &mut [u16])) -> TensorData<'static> {
    let mut out = vec![0u16; bytes.len() / width];
    in_parallel(bytes, width, &mut out, |source, target| {
        let mut wide = [0f32; BLOCK];
        let wide = &mut wide[..target.len()];
        widen(source, wide);
        round(wide, target);
    });
    TensorData::Half(out)
}

/// Calls `block` with at most `BLOCK` elements of `out` and their bytes, `width` per element.
fn in_parallel<T: Send>(bytes: &[u8], width: usize, out: &mut [T], block: impl Fn(&[u8], &mut [T]) + Sync) {
    out.par_chunks_mut(TASK).zip(bytes.par_chunks(TASK * width)).for_each(|(out, bytes)| {
        for (target, source) in out.chunks_mut(BLOCK).zip(bytes.chunks(BLOCK * width)) {
            block(source, target);
        }
    });
}

/// Copies the bytes of at most `BLOCK` 16-bit values to where they are aligned, and converts them from there.
fn staged(source: &[u8], target: &mut [f32], convert: impl Fn(&[u16], &mut [f32])) {
    let mut bits = [0u16; BLOCK];
    let bits = &mut bits[..target.len()];
    each(source, bits, u16::from_le_bytes);
    convert(bits, target);
}

fn each<const N: usize, T>(source: &[u8], target: &mut [T], value: impl Fn([u8; N]) -> T) {
    for (target, source) in target.iter_mut().zip(source.as_chunks::<N>().0) {
        *target = value(*source);
    }
}

#[cfg(test)]
mod tests;
