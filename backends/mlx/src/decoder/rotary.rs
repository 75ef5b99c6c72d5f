//! Rotary position embeddings, from frequencies that the description has resolved.

use llm_local_backend_common::decoder::Rotary;
use llm_local_core::model::RopeFrequencies;
use mlx_rs::{
    Array, Dtype,
    error::Result,
    fast::rope,
    ops::{concatenate, indexing::TryIndexOp},
};

use super::numbers::int;

/// The frequencies of a decoder as MLX's kernel takes them.
#[derive(Debug)]
pub(crate) struct Tables {
    /// By whether a layer is windowed, and by whether the sequence is long.
    all: [[Frequencies; 2]; 2],
}

/// One set of them.
#[derive(Debug, Clone)]
pub(crate) struct Frequencies {
    /// Positions per radian: shape (dims / 2).
    periods: Array,
    /// What rotated queries and keys are multiplied by, if it is not 1: shape (head_dim).
    factors: Option<Array>,
}

impl Tables {
    /// Those of `rotary` for heads of `head_dim` elements in `dtype`.
    pub(crate) fn new(rotary: &Rotary, head_dim: usize, dtype: Dtype) -> Result<Self> {
        let of = |windowed, long| Frequencies::new(rotary.frequencies(windowed, long), head_dim, dtype);
        Ok(Self { all: [[of(false, false)?, of(false, true)?], [of(true, false)?, of(true, true)?]] })
    }

    /// The rotation of a chunk from `position` on, by MLX's kernel.
    pub(crate) fn angles(&self, windowed: bool, long: bool, position: usize) -> Angles {
        Angles::Kernel { frequencies: self.all[usize::from(windowed)][usize::from(long)].clone(), position }
    }
}

impl Frequencies {
    fn new(resolved: &RopeFrequencies, head_dim: usize, dtype: Dtype) -> Result<Self> {
        let periods: Vec<f32> = resolved.radians.iter().map(|radians| (1.0 / radians) as f32).collect();
        let factor = resolved.attention_factor;
        let mut factors = vec![1f32; head_dim];
        factors[..2 * periods.len()].fill(factor as f32);
        let factors = (factor != 1.0).then(|| Array::from_slice(&factors, &[int(head_dim)]).as_dtype(dtype));
        Ok(Self { periods: Array::from_slice(&periods, &[int(periods.len())]), factors: factors.transpose()? })
    }
}

/// How a chunk of positions is rotated.
#[derive(Debug, Clone)]
pub(crate) enum Angles {
    /// By MLX's kernel.
    Kernel {
        /// What it turns by.
        frequencies: Frequencies,
        /// Of the first row.
        position: usize,
    },
    /// By tables that the layers share. Without the kernel, MLX would compute them anew in every layer.
    Tables {
        /// Shape (positions, head_dim): 1 where nothing is rotated.
        cos: Array,
        /// The same, negative in the first half of what is rotated, and 0 where nothing is.
        sin: Array,
        /// Dimensions that are rotated.
        dims: i32,
    },
}

impl Angles {
    /// The tables of `count` positions from `position` on for heads of `head_dim` elements.
    pub(crate) fn tables(
        frequencies: &RopeFrequencies,
        position: usize,
        count: usize,
        head_dim: usize,
        dtype: Dtype,
    ) -> Result<Self> {
        let half = frequencies.radians.len();
        let (mut cos, mut sin) = (vec![1f32; count * head_dim], vec![0f32; count * head_dim]);
        for (i, (cos, sin)) in cos.chunks_exact_mut(head_dim).zip(sin.chunks_exact_mut(head_dim)).enumerate() {
            for (pair, radians) in frequencies.radians.iter().enumerate() {
                let (s, c) = ((position + i) as f64 * radians).sin_cos();
                let scaled = |x: f64| (x * frequencies.attention_factor) as f32;
                (cos[pair], cos[pair + half]) = (scaled(c), scaled(c));
                (sin[pair], sin[pair + half]) = (scaled(-s), scaled(s));
            }
        }
        let table = |values: &[f32]| Array::from_slice(values, &[int(count), int(head_dim)]).as_dtype(dtype);
        Ok(Self::Tables { cos: table(&cos)?, sin: table(&sin)?, dims: int(2 * half) })
    }

    /// Rotates the leading dimensions of `x`, shape (1, heads, positions, head_dim): dimension `i` with `i + dims / 2`.
    pub(crate) fn rotate(&self, x: &Array) -> Result<Array> {
        match self {
            Self::Kernel { frequencies: Frequencies { periods, factors }, position } => {
                let turned = rope(x, 2 * periods.dim(0), false, None, 1.0, int(*position), periods)?;
                match factors {
                    Some(factors) => turned.multiply(factors),
                    None => Ok(turned),
                }
            }
            Self::Tables { cos, sin, dims } => {
                let part = |range: std::ops::Range<i32>| x.try_index((.., .., .., range));
                let (half, width) = (dims / 2, x.dim(3));
                let mut swapped = vec![part(half..*dims)?, part(0..half)?];
                if width > *dims {
                    swapped.push(part(*dims..width)?);
                }
                x.multiply(cos)?.add(concatenate(&swapped, 3)?.multiply(sin)?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use llm_local_core::model::Rope;
    use mlx_rs::transforms::eval;

    use super::*;
    use crate::decoder::numbers::ints;

    const HEADS: usize = 3;
    const HEAD_DIM: usize = 12;

    /// `x`, shape (heads, positions, head_dim), rotated in f64.
    fn rotated(x: &[f32], frequencies: &RopeFrequencies, position: usize, count: usize) -> Vec<f64> {
        let half = frequencies.radians.len();
        let mut y: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        for (row, y) in y.chunks_mut(HEAD_DIM).enumerate() {
            for (pair, radians) in frequencies.radians.iter().enumerate() {
                let (sin, cos) = ((position + row % count) as f64 * radians).sin_cos();
                let (a, b) = (y[pair], y[pair + half]);
                y[pair] = (a * cos - b * sin) * frequencies.attention_factor;
                y[pair + half] = (a * sin + b * cos) * frequencies.attention_factor;
            }
        }
        y
    }

    #[test]
    fn both_ways_rotate_by_the_angles_that_f64_gives() {
        // The kernel multiplies positions and frequencies in f32, and so is off by their rounding: up to 2e-3 at 5000.
        for (dims, factor) in [(12, 1.0), (8, 1.25)] {
            let mut resolved = Rope::new(1e4, dims).resolve("m", 64, &mut |_| unreachable!()).unwrap();
            resolved.base.attention_factor = factor;
            let rotary = Rotary { global: resolved, local: None };
            let frequencies = rotary.frequencies(false, false);
            let tables = Tables::new(&rotary, HEAD_DIM, Dtype::Float32).unwrap();
            for (position, count, of_kernel) in [(0, 4, 1e-6), (5000, 1, 2e-3), (5000, 3, 2e-3)] {
                let x: Vec<f32> = (0..HEADS * count * HEAD_DIM).map(|i| (i as f32 * 0.37).sin()).collect();
                let expected = rotated(&x, frequencies, position, count);
                let x = Array::from_slice(&x, &ints([1, HEADS, count, HEAD_DIM]));
                let by_tables = Angles::tables(frequencies, position, count, HEAD_DIM, Dtype::Float32).unwrap();
                for (angles, tolerance) in [(tables.angles(false, false, position), of_kernel), (by_tables, 1e-6)] {
                    let y = angles.rotate(&x).unwrap();
                    eval([&y]).unwrap();
                    let pairs = y.as_slice::<f32>().iter().zip(&expected);
                    let worst = pairs.map(|(y, e)| (f64::from(*y) - e).abs()).fold(0.0, f64::max);
                    assert!(worst <= tolerance, "{worst} at {position}, {dims} dimensions: {angles:?}");
                }
            }
        }
    }
}
