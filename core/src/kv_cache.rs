//! What keys and values are kept in.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What keys and values of a sequence are kept in between steps. Fewer bits hold longer chats in the same memory, and lose
/// some precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum KvCacheType {
    /// What the backend takes for the best: mostly the type of the activations.
    #[default]
    Auto,
    /// 32-bit float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// bfloat16.
    Bf16,
    /// Quantized to 8 bits, in groups with a scale.
    Q8,
    /// Quantized to 4 bits, in groups with a scale.
    Q4,
}

impl fmt::Display for KvCacheType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8 => "q8",
            Self::Q4 => "q4",
        })
    }
}
