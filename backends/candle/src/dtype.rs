//! Which types a model is computed in.

use candle_core::DType;
use llm_local_core::{ComputeDtype, Encoding, FloatType};

use crate::elements::candle_dtype;

/// What a device computes with, beside f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Floats {
    /// The processor: matrices of any float type, by kernels of our own and of candle; activations in f32.
    Cpu,
    /// A GPU: f16, and bf16 if its probe computed with it.
    Gpu { bf16: bool },
}

/// How a model is stored, as far as that decides.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stored {
    /// Whether any of it is in blocks.
    pub(crate) in_blocks: bool,
    /// What most of it is in.
    pub(crate) most: Option<Encoding>,
    /// Whether its activations stay within what f16 holds.
    pub(crate) fits_f16: bool,
}

/// The types that a model is computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Choice {
    /// What dense matrices are held in.
    pub(crate) dense: DenseRule,
    /// The same for the most part.
    pub(crate) dtype: FloatType,
    /// What activations and the KV cache are in.
    pub(crate) activations: DType,
}

/// How dense matrices are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DenseRule {
    /// All in one type.
    All(FloatType),
    /// As stored where candle computes with it as it is, and else in f32.
    AsStored { f16: bool, bf16: bool },
}

impl DenseRule {
    /// What a matrix is held in that is stored in `stored`.
    pub(crate) fn held(self, stored: FloatType) -> FloatType {
        match (self, stored) {
            (Self::All(t), _) => t,
            (Self::AsStored { f16: true, .. }, FloatType::F16) => FloatType::F16,
            (Self::AsStored { bf16: true, .. }, FloatType::Bf16) => FloatType::Bf16,
            _ => FloatType::F32,
        }
    }
}

/// The types of a model for which `want` was asked, on a device that computes with `floats`; the error is what was asked for
/// and cannot be had.
pub(crate) fn choose(want: ComputeDtype, floats: Floats, stored: &Stored) -> Result<Choice, String> {
    let dense = dense_rule(want, floats, stored)?;
    let dtype = match (dense, stored.most) {
        (DenseRule::All(t), _) => t,
        // Whatever of it was made floats, for adapters that may be swapped: what blocks are multiplied in.
        _ if stored.in_blocks => FloatType::F32,
        (rule, Some(Encoding::Float(most))) => rule.held(most),
        _ => FloatType::F32,
    };
    // candle's products with blocks want f32, and so do its faster ones on the CPU.
    let widened = floats == Floats::Cpu || stored.in_blocks;
    Ok(Choice { dense, dtype, activations: if widened { DType::F32 } else { candle_dtype(dtype) } })
}

fn dense_rule(want: ComputeDtype, floats: Floats, stored: &Stored) -> Result<DenseRule, String> {
    let f16 = stored.fits_f16;
    Ok(match (want, floats) {
        (ComputeDtype::F32, _) => DenseRule::All(FloatType::F32),
        (ComputeDtype::F16, _) => DenseRule::All(FloatType::F16),
        (ComputeDtype::Bf16, Floats::Gpu { bf16: false }) => {
            return Err("dtype is bf16, which this GPU does not compute with; ask for f32, f16 or auto".into());
        }
        (ComputeDtype::Bf16, _) => DenseRule::All(FloatType::Bf16),
        // candle has no product of bf16 on the CPU.
        (ComputeDtype::Auto, Floats::Cpu) => DenseRule::AsStored { f16, bf16: false },
        (ComputeDtype::Auto, Floats::Gpu { bf16 }) if stored.in_blocks => DenseRule::AsStored { f16, bf16 },
        // On a GPU, what most weights are stored in. f16 instead of bf16 would be as small, but does not hold its range.
        (ComputeDtype::Auto, Floats::Gpu { bf16 }) => DenseRule::All(match stored.most {
            Some(Encoding::Float(FloatType::F16)) if f16 => FloatType::F16,
            Some(Encoding::Float(FloatType::Bf16)) if bf16 => FloatType::Bf16,
            _ => FloatType::F32,
        }),
        (other, _) => {
            let name = format!("{other:?}").to_lowercase();
            return Err(format!("dtype is {name}; candle computes in f32, f16 or bf16"));
        }
    })
}

#[cfg(test)]
mod tests {
    use llm_local_core::GgmlType;

    use super::*;

    const OLD: Floats = Floats::Gpu { bf16: false };
    const NEW: Floats = Floats::Gpu { bf16: true };
    const F32: Encoding = Encoding::Float(FloatType::F32);
    const F16: Encoding = Encoding::Float(FloatType::F16);
    const BF16: Encoding = Encoding::Float(FloatType::Bf16);

    fn stored(most: Encoding) -> Stored {
        Stored { in_blocks: matches!(most, Encoding::Ggml(_)), most: Some(most), fits_f16: true }
    }

    #[test]
    fn without_a_wish_dense_models_are_computed_as_stored_where_the_device_can() {
        for (most, floats, dtype, activations) in [
            (F32, Floats::Cpu, FloatType::F32, DType::F32),
            (F16, Floats::Cpu, FloatType::F16, DType::F32),
            (BF16, Floats::Cpu, FloatType::F32, DType::F32),
            (F32, OLD, FloatType::F32, DType::F32),
            (F16, OLD, FloatType::F16, DType::F16),
            (BF16, OLD, FloatType::F32, DType::F32),
            (F32, NEW, FloatType::F32, DType::F32),
            (F16, NEW, FloatType::F16, DType::F16),
            (BF16, NEW, FloatType::Bf16, DType::BF16),
        ] {
            let choice = choose(ComputeDtype::Auto, floats, &stored(most)).unwrap();
            assert_eq!((choice.dtype, choice.activations), (dtype, activations), "{most} on {floats:?}");
            let outgrown = Stored { fits_f16: false, ..stored(most) };
            let choice = choose(ComputeDtype::Auto, floats, &outgrown).unwrap();
            let wider = if dtype == FloatType::F16 { FloatType::F32 } else { dtype };
            assert_eq!(choice.dtype, wider, "{most} on {floats:?}, beyond f16");
        }
    }

    #[test]
    fn blocks_are_multiplied_in_f32_and_what_is_dense_beside_them_is_held_as_stored() {
        let blocks = stored(Encoding::Ggml(GgmlType::Q4_0));
        for (floats, bf16) in [(Floats::Cpu, false), (OLD, false), (NEW, true)] {
            let choice = choose(ComputeDtype::Auto, floats, &blocks).unwrap();
            assert_eq!(choice.dense, DenseRule::AsStored { f16: true, bf16 });
            assert_eq!((choice.dtype, choice.activations), (FloatType::F32, DType::F32));
            let beside = if bf16 { FloatType::Bf16 } else { FloatType::F32 };
            assert_eq!(choice.dense.held(FloatType::Bf16), beside, "{floats:?}");
        }
    }

    #[test]
    fn what_is_asked_for_is_had_or_refused() {
        for floats in [Floats::Cpu, OLD, NEW] {
            for (want, t) in [
                (ComputeDtype::F32, FloatType::F32),
                (ComputeDtype::F16, FloatType::F16),
                (ComputeDtype::Bf16, FloatType::Bf16),
            ] {
                match choose(want, floats, &stored(F32)) {
                    Ok(choice) => {
                        let activations = if floats == Floats::Cpu { DType::F32 } else { candle_dtype(t) };
                        assert_eq!((choice.dense, choice.dtype), (DenseRule::All(t), t));
                        assert_eq!(choice.activations, activations);
                    }
                    Err(why) => {
                        assert_eq!((want, floats), (ComputeDtype::Bf16, OLD));
                        assert!(why.contains("bf16") && why.contains("f32"), "{why}");
                    }
                }
            }
        }
        assert!(choose(ComputeDtype::Bf16, OLD, &stored(BF16)).is_err());
    }
}
