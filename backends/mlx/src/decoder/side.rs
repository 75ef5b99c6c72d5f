//! Adapters beside a matrix: `y = f · (W x) + Σ scale · B (A x)`, with a factor `f` for each row of the matrix.
//!
//! All A are one matrix, and all B another one, each in the rows and ranks that are its own: so a step has two small products
//! for each matrix, however many adapters there are, and beside however many modules of it.

use llm_local_backend_common::decoder::adapters::{OnePair, Pieces};
use mlx_rs::{Array, Dtype, error::Result, ops::addmm, transforms::eval};

use crate::arrays::from_f32;

/// The adapters beside one matrix of shape (out, in), in the type of the activations.
#[derive(Debug)]
pub(crate) struct SidePath {
    pair: Option<Pair>,
    /// What each row of the matrix counts, shape (out,); all count 1 without.
    factors: Option<Array>,
}

#[derive(Debug)]
struct Pair {
    /// All A, one below another: shape (ranks, in).
    a: Array,
    /// The same elements, seen transposed: shape (in, ranks).
    a_transposed: Array,
    /// All scaled B transposed, each at its rows, and 0 elsewhere: shape (ranks, out).
    b: Array,
}

impl SidePath {
    /// `pieces` beside a matrix of shape (out, in), for activations in `dtype`. Scales are multiplied into B in f32.
    pub(crate) fn new(pieces: &Pieces, (out, width): (usize, usize), dtype: Dtype) -> Result<Self> {
        let made = |v: &[f32], shape: &[usize]| array(v, shape)?.as_dtype(dtype);
        let OnePair { rank, a, b } = OnePair::new(&pieces.pieces, (out, width));
        let pair = if rank == 0 {
            None
        } else {
            let a = made(&a, &[rank, width])?;
            Some(Pair { a_transposed: a.transpose()?, a, b: made(&b, &[rank, out])? })
        };
        let factors = pieces.factors.as_ref().map(|f| made(f, &[out])).transpose()?;
        let side = Self { pair, factors };
        // Now, so that what they were made of goes.
        eval(side.pair.iter().flat_map(|pair| [&pair.a, &pair.a_transposed, &pair.b]).chain(&side.factors))?;
        Ok(side)
    }

    /// Bytes of memory.
    pub(crate) fn bytes(&self) -> u64 {
        let arrays = self.pair.iter().flat_map(|pair| [&pair.a, &pair.b]).chain(&self.factors);
        arrays.map(|array| array.nbytes() as u64).sum()
    }

    /// `y = W x`, shape (rows, out), with what is beside it. `x` has the shape (rows, in).
    pub(crate) fn beside(&self, y: Array, x: &Array) -> Result<Array> {
        let y = match &self.factors {
            Some(factors) => y.multiply(factors)?,
            None => y,
        };
        match &self.pair {
            Some(pair) => addmm(y, x.matmul(&pair.a_transposed)?, &pair.b, 1.0, 1.0),
            None => Ok(y),
        }
    }

    /// Rows of the matrix, looked up by `ids`, shape (n,): `y`, shape (n, in), with what is beside those rows.
    pub(crate) fn beside_rows(&self, y: Array, ids: &Array) -> Result<Array> {
        let y = match &self.factors {
            Some(factors) => y.multiply(factors.take_axis(ids, 0)?.expand_dims(1)?)?,
            None => y,
        };
        match &self.pair {
            Some(pair) => addmm(y, pair.b.take_axis(ids, 1)?.transpose()?, &pair.a, 1.0, 1.0),
            None => Ok(y),
        }
    }
}

/// `values` in f32.
///
/// # Errors
/// That of an allocator that said no.
pub(super) fn array(values: &[f32], shape: &[usize]) -> Result<Array> {
    from_f32(values, shape)
}

#[cfg(test)]
mod tests;
