//! What rows of keys and values are kept as.

use llm_local_core::{FloatType, KvCacheType};
use mlx_rs::{Array, Dtype, error::Result, ops::quantize};

use crate::arrays::mlx_dtype;

/// What the KV cache is kept as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KvForm {
    /// Floats of the type of the activations.
    Activations,
    /// Floats of this type.
    Float(FloatType),
    /// Quantized as MLX quantizes weights, along each head.
    Affine {
        /// Of one element.
        bits: i32,
        /// Elements of a head that share a scale and a bias.
        group_size: i32,
    },
}

/// Group sizes, in the order of preference: the one that takes less memory first.
const GROUP_SIZES: [usize; 2] = [64, 32];

/// What a cache of heads of `head_dim` elements is kept as where `want` was asked for. The error says why it cannot be.
pub(crate) fn kv_supported(head_dim: usize, want: KvCacheType) -> std::result::Result<KvForm, String> {
    let affine = |bits| match GROUP_SIZES.into_iter().find(|size| head_dim.is_multiple_of(*size)) {
        Some(64) => Ok(KvForm::Affine { bits, group_size: 64 }),
        Some(_) => Ok(KvForm::Affine { bits, group_size: 32 }),
        None => Err(format!(
            "kv_cache is {want}, but the heads have {head_dim} elements, which are no whole groups of 32; ask for auto, f32, f16 or bf16"
        )),
    };
    match want {
        KvCacheType::Auto => Ok(KvForm::Activations),
        KvCacheType::F32 => Ok(KvForm::Float(FloatType::F32)),
        KvCacheType::F16 => Ok(KvForm::Float(FloatType::F16)),
        KvCacheType::Bf16 => Ok(KvForm::Float(FloatType::Bf16)),
        KvCacheType::Q8 => affine(8),
        KvCacheType::Q4 => affine(4),
        other => Err(format!("kv_cache is {other}; MLX keeps it as auto, f32, f16, bf16, q8 or q4")),
    }
}

impl KvForm {
    /// Bytes of keys or values of one position of a head of `head_dim` elements, where activations take
    /// `activation_bytes` each.
    pub(crate) fn head_bytes(self, head_dim: usize, activation_bytes: usize) -> usize {
        match self {
            Self::Activations => head_dim * activation_bytes,
            Self::Float(t) => head_dim * t.size(),
            Self::Affine { bits, group_size } => {
                let (bits, group_size) = (bits.unsigned_abs() as usize, group_size.unsigned_abs() as usize);
                head_dim * bits / 8 + head_dim / group_size * 2 * activation_bytes
            }
        }
    }

    /// The type of the floats that it gives back, where activations are in `activations`.
    pub(crate) fn dtype(self, activations: Dtype) -> Dtype {
        match self {
            Self::Float(t) => mlx_dtype(t),
            Self::Activations | Self::Affine { .. } => activations,
        }
    }

    /// `rows`, shape (.., head_dim), as they are kept: one array of floats, or integers, scales and biases.
    pub(super) fn encoded(self, rows: &Array) -> Result<Vec<Array>> {
        match self {
            Self::Activations => Ok(vec![rows.clone()]),
            Self::Float(t) => Ok(vec![rows.as_dtype(mlx_dtype(t))?]),
            Self::Affine { bits, group_size } => {
                let (integers, scales, biases) = quantize(rows, group_size, bits)?;
                Ok(vec![integers, scales, biases])
            }
        }
    }
}
