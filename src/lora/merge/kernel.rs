//! One touched tensor: widen the base to f32, add the delta, round once, block by block.

use half::{
    f16,
    slice::{HalfBitsSliceExt, HalfFloatSliceExt},
};
use llm_local_core::{FloatType, TensorData};
use rayon::prelude::*;

use super::product::{Tile, add_product};
use crate::lora::floats::{narrow_bf16, widen_bf16};

/// Rows of one task. Many enough that a product of them pays for packing A.
const ROWS: usize = 64;

/// Most columns of one tile: ROWS * COLUMNS floats are 192 KiB, which stay in a core's second-level cache.
const COLUMNS: usize = 768;

/// Columns of the tiles that cut `columns` into even parts, so that none is too narrow to pay for its calls.
fn tile_columns(columns: usize) -> usize {
    columns.div_ceil(columns.div_ceil(COLUMNS)).next_multiple_of(16).min(columns)
}

/// The product that is added to a base tensor.
pub(super) struct Delta {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) rank: usize,
    /// Shape (rank, columns), row-major.
    pub(super) a: Vec<f32>,
    /// Shape (rows, rank), row-major, with scale and weight in it.
    pub(super) b: Vec<f32>,
}

/// The base tensor as it is stored.
#[derive(Clone, Copy)]
pub(super) enum Stored<'a> {
    /// Little-endian, maybe unaligned.
    Bytes(FloatType, &'a [u8]),
    F32(&'a [f32]),
    /// Bits of f16 or bf16.
    Half(FloatType, &'a [u16]),
}

impl<'a> Stored<'a> {
    /// Looks at `data` as `elements` floats of type `stored`.
    pub(super) fn new(data: &'a TensorData<'_>, stored: FloatType, elements: usize) -> Result<Self, String> {
        let expected = elements * stored.size();
        if data.byte_len() != expected {
            return Err(format!("has {} bytes; expected {expected}", data.byte_len()));
        }
        match (data, stored) {
            (TensorData::Borrowed(bytes), _) => Ok(Self::Bytes(stored, bytes)),
            (TensorData::Bytes(bytes), _) => Ok(Self::Bytes(stored, bytes)),
            (TensorData::F32(values), FloatType::F32) => Ok(Self::F32(values)),
            (TensorData::Half(bits), FloatType::F16 | FloatType::Bf16) => Ok(Self::Half(stored, bits)),
            _ => Err(format!("was read in another type than {stored}, in which it is stored")),
        }
    }

    /// Writes the floats from index `start` into `out`.
    fn widen(self, start: usize, out: &mut [f32]) {
        let end = start + out.len();
        match self {
            Self::F32(values) => out.copy_from_slice(&values[start..end]),
            Self::Half(FloatType::Bf16, bits) => fill(out, bits[start..end].iter().map(|b| widen_bf16(*b))),
            Self::Half(_, bits) => bits[start..end].reinterpret_cast::<f16>().convert_to_f32_slice(out),
            Self::Bytes(stored, bytes) => {
                let bytes = &bytes[start * stored.size()..end * stored.size()];
                match stored {
                    FloatType::F64 => fill(out, bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32)),
                    FloatType::F32 => fill(out, bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
                    FloatType::Bf16 => {
                        fill(out, bytes.as_chunks().0.iter().map(|b| widen_bf16(u16::from_le_bytes(*b))))
                    }
                    // The conversion of `half` uses the processor's instruction for it, and wants aligned values.
                    _ => {
                        let mut aligned = [0u16; COLUMNS];
                        for (bytes, out) in bytes.chunks(2 * COLUMNS).zip(out.chunks_mut(COLUMNS)) {
                            let aligned = &mut aligned[..out.len()];
                            fill(aligned, bytes.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)));
                            aligned.reinterpret_cast::<f16>().convert_to_f32_slice(out);
                        }
                    }
                }
            }
        }
    }
}

fn fill<T>(out: &mut [T], values: impl Iterator<Item = T>) {
    for (out, value) in out.iter_mut().zip(values) {
        *out = value;
    }
}

/// The sum of `stored` and `delta`, rounded once to `want`. The error continues a sentence that starts with the tensor's
/// name; nothing is given then.
pub(super) fn merge(stored: Stored<'_>, delta: &Delta, want: FloatType) -> Result<TensorData<'static>, String> {
    Ok(match want {
        FloatType::F32 => TensorData::F32(sum(stored, delta, |values, out: &mut [f32]| {
            out.copy_from_slice(values);
            true
        })?),
        FloatType::F64 => {
            let sum = sum(stored, delta, |values, out: &mut [[u8; 8]]| {
                fill(out, values.iter().map(|v| f64::from(*v).to_le_bytes()));
                true
            })?;
            TensorData::Bytes(sum.into_flattened())
        }
        FloatType::F16 => TensorData::Half(sum(stored, delta, |values, out: &mut [u16]| {
            out.reinterpret_cast_mut::<f16>().convert_from_f32_slice(values);
            out.iter().fold(true, |finite, bits| finite & (bits & 0x7c00 != 0x7c00))
        })?),
        FloatType::Bf16 => TensorData::Half(sum(stored, delta, |values, out: &mut [u16]| {
            fill(out, values.iter().map(|v| narrow_bf16(*v)));
            out.iter().fold(true, |finite, bits| finite & (bits & 0x7f80 != 0x7f80))
        })?),
        other => return Err(format!("was asked for as {other}, which the merge cannot give")),
    })
}

/// The sum in whatever `narrow` writes; that returns whether everything it wrote is finite.
///
/// Tasks take blocks of rows of fixed size, so the result does not depend on the number of threads.
fn sum<T: Copy + Default + Send>(
    stored: Stored<'_>,
    delta: &Delta,
    narrow: impl Fn(&[f32], &mut [T]) -> bool + Sync,
) -> Result<Vec<T>, String> {
    let Delta { columns, rank, .. } = *delta;
    let width = tile_columns(columns);
    let mut out = vec![T::default(); delta.rows * columns];
    out.par_chunks_mut(ROWS * columns).enumerate().try_for_each_init(
        || vec![0.0f32; ROWS * width],
        |scratch, (block, out)| {
            let first = block * ROWS;
            let rows = out.len() / columns;
            let b = &delta.b[first * rank..(first + rows) * rank];
            for left in (0..columns).step_by(width) {
                let tile = Tile { rows, columns: width.min(columns - left) };
                let values = &mut scratch[..rows * tile.columns];
                for (row, values) in values.chunks_mut(tile.columns).enumerate() {
                    stored.widen((first + row) * columns + left, values);
                }
                add_product(values, tile, b, &delta.a[left..], columns, rank);
                for (row, values) in values.chunks(tile.columns).enumerate() {
                    let from = row * columns + left;
                    let finite = all_finite(values);
                    if !(narrow(values, &mut out[from..from + tile.columns]) & finite) {
                        return Err(format!(
                            "is not finite any more in row {} when the adapter is added: the sum is beyond the type \
                             asked for, or the base itself is not finite there",
                            first + row
                        ));
                    }
                }
            }
            Ok(())
        },
    )?;
    Ok(out)
}

/// Whether no value is NaN or infinite; without a branch, so that it is vectorized.
fn all_finite(values: &[f32]) -> bool {
    values.iter().fold(true, |finite, v| finite & (v.to_bits() & 0x7f80_0000 != 0x7f80_0000))
}
