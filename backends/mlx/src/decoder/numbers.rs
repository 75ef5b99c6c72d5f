//! Numbers as MLX takes them.

use half::{bf16, f16};
use mlx_rs::{Array, Dtype};

/// A length or position. One that is too large for MLX becomes one that no array has, which MLX then refuses.
pub(crate) fn int(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// Lengths of the dimensions of an array.
pub(crate) fn ints<const N: usize>(shape: [usize; N]) -> [i32; N] {
    shape.map(int)
}

/// A length that an array has.
pub(crate) fn length(x: &Array, axis: i32) -> usize {
    usize::try_from(x.dim(axis)).unwrap_or_default()
}

/// A scalar in `dtype`, so that arithmetic with it leaves the dtype of the other operand as it is.
pub(crate) fn scalar(value: f64, dtype: Dtype) -> Array {
    match dtype {
        Dtype::Float16 => Array::from_slice(&[f16::from_f64(value)], &[]),
        Dtype::Bfloat16 => Array::from_slice(&[bf16::from_f64(value)], &[]),
        _ => Array::from_f32(value as f32),
    }
}

/// `x` times `factor`, in the dtype of `x`; as it is for 1.
pub(crate) fn scaled(x: Array, factor: f64) -> mlx_rs::error::Result<Array> {
    if factor == 1.0 { Ok(x) } else { x.multiply(scalar(factor, x.dtype())) }
}

/// `cap · tanh(x / cap)`.
pub(crate) fn soft_capped(x: Array, cap: Option<f64>) -> mlx_rs::error::Result<Array> {
    match cap {
        Some(cap) => scaled(mlx_rs::ops::tanh(scaled(x, 1.0 / cap)?)?, cap),
        None => Ok(x),
    }
}
