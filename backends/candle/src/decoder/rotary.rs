//! Rotary position embeddings, from frequencies that the description has resolved.

use candle_core::{DType, Device, Result, Tensor};
use llm_local_core::model::RopeFrequencies;

/// cos and sin of some positions, each of shape (positions, dims / 2).
#[derive(Debug, Clone)]
pub(crate) struct Angles {
    cos: Tensor,
    sin: Tensor,
}

impl Angles {
    /// Those of `count` positions from `position` on. Computed as they are needed: a table for a long context is larger
    /// than many a model's cache.
    pub(crate) fn new(
        frequencies: &RopeFrequencies,
        position: usize,
        count: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let half = frequencies.radians.len();
        let mut values = vec![0f32; 2 * count * half];
        let (cos, sin) = values.split_at_mut(count * half);
        for (i, (cos, sin)) in cos.chunks_exact_mut(half).zip(sin.chunks_exact_mut(half)).enumerate() {
            for ((cos, sin), radians) in cos.iter_mut().zip(sin).zip(&frequencies.radians) {
                let angle = (position + i) as f64 * radians;
                *cos = (angle.cos() * frequencies.attention_factor) as f32;
                *sin = (angle.sin() * frequencies.attention_factor) as f32;
            }
        }
        let both = Tensor::from_vec(values, (2, count, half), device)?.to_dtype(dtype)?;
        Ok(Self { cos: both.get(0)?, sin: both.get(1)? })
    }

    /// Rotates the leading dimensions of `x`, shape (heads, positions, head_dim), contiguous: dimension `i` with
    /// `i + dims / 2`.
    pub(crate) fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let (_, _, width) = x.dims3()?;
        let dims = 2 * self.cos.dim(1)?;
        let turn = |x: &Tensor| candle_nn::rotary_emb::rope(&x.unsqueeze(0)?, &self.cos, &self.sin)?.squeeze(0);
        if dims == width {
            return turn(x);
        }
        let rotated = turn(&x.narrow(2, 0, dims)?.contiguous()?)?;
        Tensor::cat(&[&rotated, &x.narrow(2, dims, width - dims)?], 2)
    }

    /// What tells one table from another.
    #[cfg(test)]
    pub(super) fn id(&self) -> candle_core::TensorId {
        self.cos.id()
    }
}
