//! Tensors that a base holds quantized, and what a merge makes of them.
//!
//! | module | what it holds |
//! |---|---|
//! | `blocks` | ggml's blocks to f32, by candle; without the feature `candle`, the error that names it |

#[cfg_attr(not(feature = "candle"), path = "without_candle.rs")]
mod blocks;

#[cfg(all(test, feature = "candle"))]
mod tests;

use llm_local_core::{Encoding, FloatType};

pub(super) use self::blocks::Blocks;
use super::fit::{FitReport, TouchedTensor};

/// What a tensor of blocks is given in once an adapter is merged into it.
///
/// f16 takes half of f32's memory, and a backend reads half as much for each token. Its rounding moves a weight by at most
/// 2^-11 of itself: an eighth of the half step that Q8_0, the finest of the block formats, is off by at a block's largest
/// weight, and it does not depend on the delta, so that no delta is lost in it. bf16 would be off by as much as Q8_0 is. Who
/// wants no rounding at all reads f32, which the merge computes in and gives as it is: a backend does so where the spec asks
/// for f32.
const MERGED: FloatType = FloatType::F16;

/// How the merged base gives a tensor: one of blocks that an adapter changes as floats, any other as it is stored.
pub(super) fn given_as(stored: Encoding, is_changed: bool) -> Encoding {
    match stored {
        Encoding::Ggml(_) if is_changed => Encoding::Float(MERGED),
        stored => stored,
    }
}

/// As [`given_as`].
pub(super) fn touched_as(touched: &TouchedTensor) -> Encoding {
    given_as(touched.stored, !touched.adapters.is_empty())
}

/// Checks that tensors which are stored so can be merged into. The error continues a sentence that starts with the
/// tensor's name.
pub(super) fn check(stored: Encoding) -> Result<(), String> {
    match stored {
        Encoding::Float(_) => Ok(()),
        Encoding::Ggml(kind) => blocks::check(kind),
        stored => Err(format!("is stored as {stored}, which cannot be dequantized here")),
    }
}

/// Why adapters cannot be merged into what they touch, if that is so: the first tensor that is quantized in a way which
/// cannot be dequantized here.
pub(crate) fn not_mergeable(report: &FitReport) -> Option<String> {
    let changed = report.touched.iter().filter(|touched| !touched.adapters.is_empty());
    changed
        .filter_map(|touched| Some((touched, check(touched.stored).err()?)))
        .map(|(touched, why)| format!("the base tensor `{}` {why}", touched.name))
        .next()
}
