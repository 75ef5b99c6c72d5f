//! RMS norms.

use candle_core::{Result, Tensor};

/// `x / sqrt(mean(x²) + eps) · weight`, over the last dimension (arXiv:1910.07467).
#[derive(Debug, Clone)]
pub(crate) struct RmsNorm {
    /// Shape (n,), any offset added.
    pub(super) weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    /// A norm with `weight`, shape (n), to which any offset has been added.
    pub(crate) fn new(weight: Tensor, eps: f64) -> Self {
        Self { weight, eps: eps as f32 }
    }

    /// Norms `x`, contiguous, shape (.., n).
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        candle_nn::ops::rms_norm(x, &self.weight, self.eps)
    }
}
