//! Floats in the type they are stored in.

use std::{borrow::Cow, ops::Range};

use half::{
    bf16, f16,
    slice::{HalfBitsSliceExt, HalfFloatSliceExt},
};
use llm_local_core::lora::Floats;

/// Floats: as many bytes are read for each as it is stored in.
#[derive(Debug)]
pub enum Values {
    /// Of 32 bits.
    F32(Vec<f32>),
    /// IEEE 754 binary16.
    F16(Vec<f16>),
    /// The upper half of those of 32 bits.
    Bf16(Vec<bf16>),
}

impl Values {
    /// `floats` as they are; `None` for a type that is not known.
    pub fn new(floats: &Floats) -> Option<Self> {
        Some(match floats {
            Floats::F32(v) => Self::F32(v.clone()),
            Floats::F16(v) => Self::F16(v.reinterpret_cast::<f16>().to_vec()),
            Floats::Bf16(v) => Self::Bf16(v.reinterpret_cast::<bf16>().to_vec()),
            _ => return None,
        })
    }

    /// The same with rows and columns exchanged; there are `columns` columns now.
    pub fn transposed(&self, columns: usize) -> Self {
        fn turn<T: Copy>(v: &[T], columns: usize) -> Vec<T> {
            (0..columns).flat_map(|c| v.iter().skip(c).step_by(columns).copied()).collect()
        }
        match self {
            Self::F32(v) => Self::F32(turn(v, columns)),
            Self::F16(v) => Self::F16(turn(v, columns)),
            Self::Bf16(v) => Self::Bf16(turn(v, columns)),
        }
    }

    /// Some of them.
    pub fn range(&self, range: Range<usize>) -> Self {
        match self {
            Self::F32(v) => Self::F32(v[range].to_vec()),
            Self::F16(v) => Self::F16(v[range].to_vec()),
            Self::Bf16(v) => Self::Bf16(v[range].to_vec()),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F16(v) => v.len(),
            Self::Bf16(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        match self {
            Self::F32(v) => v.len() * size_of::<f32>(),
            Self::F16(_) | Self::Bf16(_) => self.len() * size_of::<u16>(),
        }
    }

    /// One of them.
    #[inline]
    pub fn get(&self, i: usize) -> f32 {
        match self {
            Self::F32(v) => v[i],
            Self::F16(v) => v[i].to_f32(),
            Self::Bf16(v) => v[i].to_f32(),
        }
    }

    /// All of them, in f32.
    pub fn all(&self) -> Cow<'_, [f32]> {
        match self {
            Self::F32(v) => Cow::Borrowed(v),
            Self::F16(v) => Cow::Owned(v.to_f32_vec()),
            Self::Bf16(v) => Cow::Owned(v.to_f32_vec()),
        }
    }
}
