//! Floats in the type they are stored in, widened a few at a time.

use std::{borrow::Cow, ops::Range};

use half::{
    bf16, f16,
    slice::{HalfBitsSliceExt, HalfFloatSliceExt},
};
use llm_local_core::lora::Floats;
use llm_local_weights::widen_f16;

/// Elements that are widened at one time.
pub(super) const CHUNK: usize = 256;

/// Floats: as many bytes are read for each as it is stored in.
#[derive(Debug)]
pub(in super::super) enum Values {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Values {
    /// `floats` as they are; `None` for a type that is not known.
    pub(in super::super) fn new(floats: &Floats) -> Option<Self> {
        Some(match floats {
            Floats::F32(v) => Self::F32(v.clone()),
            Floats::F16(v) => Self::F16(v.reinterpret_cast::<f16>().to_vec()),
            Floats::Bf16(v) => Self::Bf16(v.reinterpret_cast::<bf16>().to_vec()),
            _ => return None,
        })
    }

    /// The same with rows and columns exchanged; there are `columns` columns now.
    pub(in super::super) fn transposed(&self, columns: usize) -> Self {
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
    pub(in super::super) fn range(&self, range: Range<usize>) -> Self {
        match self {
            Self::F32(v) => Self::F32(v[range].to_vec()),
            Self::F16(v) => Self::F16(v[range].to_vec()),
            Self::Bf16(v) => Self::Bf16(v[range].to_vec()),
        }
    }

    pub(in super::super) fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F16(v) => v.len(),
            Self::Bf16(v) => v.len(),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::F32(v) => v.len() * size_of::<f32>(),
            Self::F16(_) | Self::Bf16(_) => self.len() * size_of::<u16>(),
        }
    }

    /// One of them.
    pub(super) fn get(&self, i: usize) -> f32 {
        match self {
            Self::F32(v) => v[i],
            Self::F16(v) => v[i].to_f32(),
            Self::Bf16(v) => v[i].to_f32(),
        }
    }

    /// Some of them, at most [`CHUNK`], in f32: in `buffer` where they are not stored so.
    #[inline(always)]
    pub(super) fn some<'a>(&'a self, range: Range<usize>, buffer: &'a mut [f32; CHUNK]) -> &'a [f32] {
        let wide = &mut buffer[..range.len()];
        match self {
            Self::F32(v) => return &v[range],
            Self::F16(v) => widen_f16(v[range].reinterpret_cast(), wide),
            // As `bf16::to_f32`, but for NaN, which no adapter has; without a branch, so that it is vectorized.
            Self::Bf16(v) => {
                wide.iter_mut().zip(&v[range]).for_each(|(w, v)| *w = f32::from_bits(u32::from(v.to_bits()) << 16));
            }
        }
        wide
    }

    /// All of them, in f32.
    pub(in super::super) fn all(&self) -> Cow<'_, [f32]> {
        match self {
            Self::F32(v) => Cow::Borrowed(v),
            Self::F16(v) => Cow::Owned(v.to_f32_vec()),
            Self::Bf16(v) => Cow::Owned(v.to_f32_vec()),
        }
    }
}
