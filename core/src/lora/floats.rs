//! Stored floats.

use crate::FloatType;

/// Floats in the type an adapter stores them in: widening them would double the memory of a 16-bit adapter.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Floats {
    /// 32-bit.
    F32(Vec<f32>),
    /// 16-bit IEEE, as bits.
    F16(Vec<u16>),
    /// bfloat16, as bits.
    Bf16(Vec<u16>),
}

impl Floats {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F16(v) | Self::Bf16(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Their type.
    pub fn float_type(&self) -> FloatType {
        match self {
            Self::F32(_) => FloatType::F32,
            Self::F16(_) => FloatType::F16,
            Self::Bf16(_) => FloatType::Bf16,
        }
    }

    /// Bytes of memory that they take.
    pub fn byte_len(&self) -> usize {
        self.len() * self.float_type().size()
    }
}

impl From<Vec<f32>> for Floats {
    fn from(values: Vec<f32>) -> Self {
        Self::F32(values)
    }
}
