//! RMS norms.

use mlx_rs::{Array, error::Result, fast::rms_norm};

/// `x / sqrt(mean(x²) + eps) · weight`, over the last dimension (arXiv:1910.07467).
#[derive(Debug, Clone)]
pub(crate) struct RmsNorm {
    /// Shape (n,), any offset added, in the dtype of the activations.
    pub(crate) weight: Array,
    eps: f32,
}

impl RmsNorm {
    /// A norm with `weight`, shape (n), to which any offset has been added.
    pub(crate) fn new(weight: Array, eps: f64) -> Self {
        Self { weight, eps: eps as f32 }
    }

    /// Norms `x`, shape (.., n).
    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        rms_norm(x, Some(&self.weight), self.eps)
    }
}
