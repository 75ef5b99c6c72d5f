//! Adapters beside a matrix: `y = f · (W x) + Σ scale · B (A x)`, with a factor `f` for each row of the matrix, which DoRA
//! has.
//!
//! | module | what it holds |
//! |---|---|
//! | `values` | floats that are widened a few at a time |
//! | `few` | a few rows of activations: plain loops, nothing allocated |
//! | `many` | many rows: matrix products |
//! | `on_device` | on a GPU: candle's products |

mod few;
mod many;
mod on_device;
mod values;

use std::ops::Range;

use candle_core::{CpuStorage, Error, InplaceOp1, Layout, Result, Tensor};
use llm_local_backend_common::decoder::adapters::Piece;

pub(super) use on_device::OnDevice;

use super::{
    linear::WORTH_A_THREAD,
    parts::Run,
    product::{threads, with_elements},
};

/// The adapters beside one matrix of shape (out, in).
#[derive(Debug)]
pub(crate) struct SidePath {
    pub(super) width: usize,
    pub(super) out: usize,
    /// In the order of the adapters; several may be beside the same rows.
    pub(super) pieces: Vec<Piece>,
    /// What each row of the matrix counts, shape (out,); all count 1 without.
    pub(super) factors: Option<Vec<f32>>,
    /// The same, where the matrix is not on the CPU.
    pub(super) on_device: Option<OnDevice>,
}

/// Multiplications for one row of activations.
fn work(piece: &Piece, width: usize) -> usize {
    piece.rank * (width + piece.rows.len())
}

impl SidePath {
    /// Bytes of memory.
    pub(super) fn bytes(&self) -> u64 {
        let pieces: usize = self.pieces.iter().map(|p| p.a.bytes() + p.b.bytes()).sum();
        let factors = self.factors.as_ref().map_or(0, |f| f.len() * size_of::<f32>());
        (pieces + factors) as u64 + self.on_device.as_ref().map_or(0, OnDevice::bytes)
    }

    /// `y = W x`, shape (rows, out), with what is beside it. `x` has the shape (rows, in).
    pub(super) fn beside(&self, y: Tensor, x: &Tensor, run: &Run<'_>) -> Result<Tensor> {
        if let Some(on_device) = &self.on_device {
            return on_device.beside(y, x);
        }
        let x = x.contiguous()?;
        y.inplace_op1(&InPlace(&|y: &mut [f32]| with_elements::<f32, _>(&x, |x| self.add(x, y, run))))?;
        Ok(y)
    }

    /// Rows of the matrix, looked up by `ids`, shape (n,): `y`, shape (n, in), with what is beside those rows.
    pub(super) fn beside_rows(&self, y: Tensor, ids: &Tensor) -> Result<Tensor> {
        if let Some(on_device) = &self.on_device {
            return on_device.beside_rows(y, ids);
        }
        y.inplace_op1(&InPlace(&|y: &mut [f32]| with_elements::<u32, _>(ids, |ids| few::add_rows(self, ids, y))))?;
        Ok(y)
    }

    fn add(&self, x: &[f32], y: &mut [f32], run: &Run<'_>) -> Result<()> {
        let rows = y.len() / self.out;
        if x.len() != rows * self.width || y.len() != rows * self.out {
            return Err(Error::Msg(format!(
                "adapters beside a matrix of {} × {} were given {} activations for {} results",
                self.out,
                self.width,
                x.len(),
                y.len()
            )));
        }
        let work: usize = rows * self.pieces.iter().map(|p| work(p, self.width)).sum::<usize>();
        let threads = threads().min(work / WORTH_A_THREAD).max(1);
        match rows {
            1 if threads > 1 => few::add_shared(self, x, y, threads, run),
            1..=few::MOST_ROWS if threads == 1 => {
                few::add(self, x, y);
                Ok(())
            }
            _ => many::add(self, x, y, threads, run),
        }
    }

    /// Multiplies the rows of `y`, from column `start` of the result on, by the factors.
    fn multiply(&self, y: &mut [f32], columns: Range<usize>) {
        if let Some(factors) = &self.factors {
            for y in y.chunks_exact_mut(columns.len()) {
                y.iter_mut().zip(&factors[columns.clone()]).for_each(|(y, f)| *y *= f);
            }
        }
    }
}

/// Changes the elements of a tensor that nobody else has.
struct InPlace<'a>(&'a dyn Fn(&mut [f32]) -> Result<()>);

impl InplaceOp1 for InPlace<'_> {
    fn name(&self) -> &'static str {
        "adapters"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        match (storage, layout.contiguous_offsets()) {
            (CpuStorage::F32(y), Some((start, end))) => (self.0)(&mut y[start..end]),
            _ => Err(Error::Msg("adapters on the CPU were given a result that is not contiguous floats".into())),
        }
    }
}

#[cfg(test)]
mod tests;
