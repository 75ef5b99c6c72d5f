//! Linear layers: one matrix, dense or quantized, with an optional bias and a place for adapters beside it.

use std::{ops::Range, rc::Rc};

use mlx_rs::{
    Array, Dtype,
    error::{Exception, Result},
    ops::{concatenate, dequantize, indexing::TryIndexOp, quantized_matmul},
};

use super::{
    numbers::{int, length},
    side::SidePath,
};
use crate::device::METAL;

/// Rows from which on it is faster to unpack a matrix of integers and to multiply by the floats: on the processor MLX's kernel
/// unpacks it once for each row. None on Metal, which has kernels for many rows.
pub(crate) const UNPACKED_FROM: Option<usize> = if METAL { None } else { Some(8) };

/// A weight matrix, shape (out, in).
#[derive(Debug, Clone)]
pub(crate) enum Matrix {
    /// Floats.
    Dense(Array),
    /// Packed integers.
    Quantized(Quantized),
}

/// What MLX's affine quantization makes of a matrix of shape (out, in): in each group of a row's columns, a weight is
/// `scale · integer + bias`.
#[derive(Debug, Clone)]
pub(crate) struct Quantized {
    /// Integers, packed in u32: shape (out, in · bits / 32).
    pub(crate) weight: Array,
    /// Shape (out, in / group_size).
    pub(crate) scales: Array,
    /// As the scales.
    pub(crate) biases: Array,
    /// Of one integer.
    pub(crate) bits: i32,
    /// Columns that share a scale and a bias.
    pub(crate) group_size: i32,
}

/// `y = W x + bias`, with the adapters' update where there is one.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    pub(crate) weight: Matrix,
    /// Shape (out,), in the dtype of the activations.
    pub(crate) bias: Option<Array>,
    /// Adapters beside the matrix.
    pub(crate) side: Option<Rc<SidePath>>,
}

impl Linear {
    pub(crate) fn new(weight: Matrix, bias: Option<Array>) -> Self {
        Self { weight, bias, side: None }
    }

    /// Rows of `x`, shape (rows, in), to (rows, out) in the same dtype.
    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        let mut y = self.weight.product(x)?;
        if let Some(side) = &self.side {
            y = side.beside(y, x)?;
        }
        match &self.bias {
            Some(bias) => y.add(bias),
            None => Ok(y),
        }
    }
}

impl Matrix {
    /// (out, in).
    pub(crate) fn dims(&self) -> (usize, usize) {
        match self {
            Self::Dense(w) => (length(w, 0), length(w, 1)),
            Self::Quantized(q) => (length(&q.weight, 0), length(&q.scales, 1) * q.group_size.unsigned_abs() as usize),
        }
    }

    /// Rows of `x`, shape (rows, in), times the transposed matrix: (rows, out) in the dtype of `x`.
    pub(crate) fn product(&self, x: &Array) -> Result<Array> {
        let y = match self {
            Self::Dense(w) => x.matmul(w.transpose()?)?,
            Self::Quantized(q) if UNPACKED_FROM.is_some_and(|rows| length(x, 0) >= rows) => {
                x.matmul(q.dequantized()?.transpose()?)?
            }
            Self::Quantized(q) => quantized_matmul(x, &q.weight, &q.scales, &q.biases, true, q.group_size, q.bits)?,
        };
        // Where the weights are of another type, MLX computes in one that has both.
        y.as_dtype(x.dtype())
    }

    /// The rows that `ids`, shape (n), name: (n, in), as floats of the type they are held in.
    pub(crate) fn rows(&self, ids: &Array) -> Result<Array> {
        match self {
            Self::Dense(w) => w.take_axis(ids, 0),
            Self::Quantized(q) => q.each(|part| part.take_axis(ids, 0))?.dequantized(),
        }
    }

    /// The rows of `range`, in f32: (rows, in).
    pub(crate) fn widened(&self, range: Range<usize>) -> Result<Array> {
        let range = int(range.start)..int(range.end);
        let rows = match self {
            Self::Dense(w) => w.try_index(range)?,
            Self::Quantized(q) => q.each(|part| part.try_index(range.clone()))?.dequantized()?,
        };
        rows.as_dtype(Dtype::Float32)
    }

    /// Bytes that it is held in.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Dense(w) => w.nbytes() as u64,
            Self::Quantized(q) => (q.weight.nbytes() + q.scales.nbytes() + q.biases.nbytes()) as u64,
        }
    }

    /// One matrix with the rows of `parts` in this order.
    ///
    /// # Errors
    /// MLX's, and one if they are not held alike.
    pub(crate) fn concatenated(parts: &[Self]) -> Result<Self> {
        match parts {
            [one] => Ok(one.clone()),
            [Self::Dense(_), ..] => {
                let dense = |part: &Self| match part {
                    Self::Dense(w) => Some(w.clone()),
                    Self::Quantized(_) => None,
                };
                let all: Option<Vec<_>> = parts.iter().map(dense).collect();
                concatenate(&all.ok_or_else(not_alike)?, 0).map(Self::Dense)
            }
            [Self::Quantized(first), ..] => {
                let alike = |part: &Self| match part {
                    Self::Quantized(q) if (q.bits, q.group_size) == (first.bits, first.group_size) => Some(q.clone()),
                    _ => None,
                };
                let all: Option<Vec<Quantized>> = parts.iter().map(alike).collect();
                let all = all.ok_or_else(not_alike)?;
                let joined = |part: fn(&Quantized) -> &Array| concatenate(&all.iter().map(part).collect::<Vec<_>>(), 0);
                Ok(Self::Quantized(Quantized {
                    weight: joined(|q| &q.weight)?,
                    scales: joined(|q| &q.scales)?,
                    biases: joined(|q| &q.biases)?,
                    ..first.clone()
                }))
            }
            [] => Err(not_alike()),
        }
    }
}

fn not_alike() -> Exception {
    Exception::custom("matrices that are not held alike, or none, cannot be one")
}

impl Quantized {
    /// The same with `change` applied to each of its arrays.
    fn each(&self, change: impl Fn(&Array) -> Result<Array>) -> Result<Self> {
        Ok(Self {
            weight: change(&self.weight)?,
            scales: change(&self.scales)?,
            biases: change(&self.biases)?,
            bits: self.bits,
            group_size: self.group_size,
        })
    }

    /// As floats of the type of its scales: shape (out, in).
    fn dequantized(&self) -> Result<Array> {
        dequantize(&self.weight, &self.scales, &self.biases, self.group_size, self.bits)
    }
}

#[cfg(test)]
mod tests;
