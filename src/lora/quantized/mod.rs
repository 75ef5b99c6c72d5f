//! Tensors that a base holds quantized, and what a merge makes of them.
//!
//! | module | what it holds |
//! |---|---|
//! | `affine` | MLX's packed weights to f32 and back |
//! | `blocks` | ggml's blocks to f32 and back, by candle; without the feature `candle`, the error that names it |
//! | `entries` | the tensors that a merged base says it has |

mod affine;
#[cfg_attr(not(feature = "candle"), path = "without_candle.rs")]
mod blocks;
mod entries;

#[cfg(all(test, feature = "candle"))]
mod tests;
#[cfg(all(test, not(feature = "candle")))]
#[path = "tests_without_candle.rs"]
mod tests;

use llm_local_core::{Encoding, FloatType, GgmlType};

#[cfg(all(test, feature = "candle"))]
pub(super) use self::blocks::dtype;
pub(super) use self::{
    affine::{Affine, AffineQuantizer, Packing},
    blocks::{Blocks, Quantizer},
    entries::merged_entries,
};
use super::fit::{FitReport, TouchedTensor};

/// What a quantized tensor is given in once an adapter is merged into it.
///
/// f16 takes half of f32's memory, and a backend reads half as much for each token. Its rounding moves a weight by at most
/// 2^-11 of itself: an eighth of the half step that Q8_0, the finest of the block formats, is off by at a block's largest
/// weight, and it does not depend on the delta, so that no delta is lost in it. bf16 would be off by as much as Q8_0 is. Who
/// wants no rounding at all reads f32, which the merge computes in and gives as it is: a backend does so where the spec asks
/// for f32. MLX's weights in 8 bits have steps of the same size (255 of them from end to end of a group), so the same holds
/// of a group with weights of both signs. In one whose weights lie close together and far from zero the steps are finer, and
/// f16's rounding is more of them.
const MERGED: FloatType = FloatType::F16;

/// How a merged base gives the tensors that it has quantized and an adapter changes; any other is given as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Given {
    /// As floats.
    Dequantized,
    /// In the base's own encoding.
    Requantized,
}

impl Given {
    /// How a tensor is given; `is_new` tells that the base has none of its name, which is then a head that is not tied any
    /// more.
    pub(super) fn encoding(self, stored: Encoding, is_changed: bool, is_new: bool) -> Encoding {
        match stored {
            // The parts of an embedding are its own: a head that leaves it has none.
            Encoding::MlxAffine { .. } if is_new => Encoding::Float(MERGED),
            Encoding::Ggml(_) | Encoding::MlxAffine { .. } if is_changed && self == Self::Dequantized => {
                Encoding::Float(MERGED)
            }
            stored => stored,
        }
    }

    /// How this one is given.
    pub(super) fn of(self, touched: &TouchedTensor, is_new: bool) -> Encoding {
        self.encoding(touched.stored, !touched.adapters.is_empty(), is_new)
    }
}

/// Checks that tensors which are stored so can be merged into. The error continues a sentence that starts with the
/// tensor's name.
pub(super) fn check(stored: Encoding, shape: &[usize]) -> Result<(), String> {
    check_dimensions(stored, shape)?;
    match stored {
        Encoding::Float(_) => Ok(()),
        Encoding::Ggml(kind) => blocks::check(kind),
        Encoding::MlxAffine { bits, group_size } => Packing::new(bits, group_size).map(drop),
        stored => Err(format!("is stored as {stored}, which cannot be dequantized here")),
    }
}

/// Checks that a tensor which is stored so can be given so again once it has changed. The error continues a sentence that
/// starts with the tensor's name.
pub(super) fn check_again(stored: Encoding, shape: &[usize]) -> Result<(), String> {
    check_dimensions(stored, shape)?;
    match stored {
        Encoding::Float(_) => Ok(()),
        Encoding::Ggml(kind) => Quantizer::new(kind).map(drop),
        Encoding::MlxAffine { bits, group_size } => Packing::new(bits, group_size).map(drop),
        stored => Err(format!("is stored as {stored}, to which floats cannot be quantized here")),
    }
}

/// Checks that what is quantized is a matrix at least: the merge goes by rows, and a row of a vector is one element.
fn check_dimensions(stored: Encoding, shape: &[usize]) -> Result<(), String> {
    match stored {
        Encoding::Float(_) => Ok(()),
        stored if shape.len() < 2 => Err(format!("is a vector of {stored}; expected floats, or a matrix")),
        _ => Ok(()),
    }
}

/// Whether candle has this block format, of which it can dequantize and quantize every one.
#[cfg(any(test, not(feature = "candle")))]
const fn is_known(kind: GgmlType) -> bool {
    use GgmlType::{Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, Q8_1, Q8_K};
    matches!(kind, Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | Q8_1 | Q2_K | Q3_K | Q4_K | Q5_K | Q6_K | Q8_K)
}

fn unknown(kind: GgmlType) -> String {
    format!(
        "is stored as {kind}, which candle cannot dequantize; it can Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1 and Q2_K to Q8_K"
    )
}

/// Why adapters cannot be merged into what they touch, if that is so: the first tensor that is quantized in a way which
/// cannot be dequantized here.
pub(crate) fn not_mergeable(report: &FitReport) -> Option<String> {
    first_that_is_not(report, check)
}

/// Why what adapters touch cannot be quantized again, if that is so: the first tensor to whose encoding floats cannot be
/// quantized here.
pub(crate) fn not_requantizable(report: &FitReport) -> Option<String> {
    first_that_is_not(report, check_again)
}

fn first_that_is_not(report: &FitReport, check: impl Fn(Encoding, &[usize]) -> Result<(), String>) -> Option<String> {
    let changed = report.touched.iter().filter(|touched| !touched.adapters.is_empty());
    changed
        .filter_map(|touched| Some((touched, check(touched.stored, &touched.shape).err()?)))
        .map(|(touched, why)| format!("the base tensor `{}` {why}", touched.name))
        .next()
}
