//! What a merged tensor is given as: floats, or in the encoding that the base has.

use std::{borrow::Cow, fmt};

use half::{
    f16,
    slice::{HalfBitsSliceExt, HalfFloatSliceExt},
};
use llm_local_core::{FloatType, TensorData};

use super::{
    kernel::{Touched, all_finite, merge},
    stored::{Stored, all, fill},
};
use crate::lora::{
    floats::narrow_bf16,
    quantized::{AffineQuantizer, Quantizer},
};

/// How f32 becomes what is given.
pub(super) trait Output: Sync {
    /// What is written.
    type Item: Copy + Default + Send;

    /// Elements of a row that become items together, and how many items they become.
    fn unit(&self) -> (usize, usize);

    /// Writes finite values, whole units, and tells whether everything they became is finite too.
    fn write(&self, values: &[f32], out: &mut [Self::Item]) -> bool;

    /// As [`Output::write`], of `values` that `stored` has from the index `start` on: what is stored, if it is of this
    /// encoding.
    fn keep(&self, stored: Stored<'_>, start: usize, values: &[f32], out: &mut [Self::Item]) -> bool;

    /// Why finite values may become others: part of a sentence.
    fn beyond(&self) -> String;
}

/// A float type to write.
trait Narrow: Sync {
    /// A float, or its bits.
    type Item: Copy + Default + Send;

    /// As [`Output::write`].
    fn write(&self, values: &[f32], out: &mut [Self::Item]) -> bool;
}

struct ToF32;

impl Narrow for ToF32 {
    type Item = f32;

    fn write(&self, values: &[f32], out: &mut [f32]) -> bool {
        out.copy_from_slice(values);
        true
    }
}

struct ToF64;

impl Narrow for ToF64 {
    type Item = [u8; 8];

    fn write(&self, values: &[f32], out: &mut [[u8; 8]]) -> bool {
        fill(out, values.iter().map(|v| f64::from(*v).to_le_bytes()));
        true
    }
}

struct ToF16;

impl Narrow for ToF16 {
    type Item = u16;

    fn write(&self, values: &[f32], out: &mut [u16]) -> bool {
        out.reinterpret_cast_mut::<f16>().convert_from_f32_slice(values);
        all(out, |bits| bits & 0x7c00 != 0x7c00)
    }
}

struct ToBf16;

impl Narrow for ToBf16 {
    type Item = u16;

    fn write(&self, values: &[f32], out: &mut [u16]) -> bool {
        fill(out, values.iter().map(|v| narrow_bf16(*v)));
        all(out, |bits| bits & 0x7f80 != 0x7f80)
    }
}

/// What finite values are rounded to before they are given as floats.
pub(super) trait Rounding: Sync {
    /// Elements that are rounded together.
    fn unit(&self) -> usize;

    /// Whole units, rounded; `None` if that makes a value that is not finite.
    fn rounded<'a>(&self, values: &'a [f32]) -> Option<Cow<'a, [f32]>>;

    /// As [`Output::beyond`].
    fn beyond(&self) -> String;
}

/// Not rounded.
pub(super) struct Exact;

impl Rounding for Exact {
    fn unit(&self) -> usize {
        1
    }

    fn rounded<'a>(&self, values: &'a [f32]) -> Option<Cow<'a, [f32]>> {
        Some(Cow::Borrowed(values))
    }

    fn beyond(&self) -> String {
        "the sum is beyond the type asked for".into()
    }
}

/// Floats of what values are rounded to.
struct Rounded<'a, R, O>(&'a R, O);

impl<R: Rounding, O: Narrow> Output for Rounded<'_, R, O> {
    type Item = O::Item;

    fn unit(&self) -> (usize, usize) {
        (self.0.unit(), self.0.unit())
    }

    fn write(&self, values: &[f32], out: &mut [O::Item]) -> bool {
        self.0.rounded(values).is_some_and(|values| self.1.write(&values, out))
    }

    fn keep(&self, _: Stored<'_>, _: usize, values: &[f32], out: &mut [O::Item]) -> bool {
        self.1.write(values, out)
    }

    fn beyond(&self) -> String {
        self.0.beyond()
    }
}

/// Blocks of ggml.
impl Output for Quantizer {
    type Item = u8;

    fn unit(&self) -> (usize, usize) {
        self.kind().block()
    }

    fn write(&self, values: &[f32], out: &mut [u8]) -> bool {
        self.quantize(values, out);
        let mut given = vec![0.0; values.len()];
        self.dequantize(out, &mut given);
        all_finite(&given)
    }

    fn keep(&self, stored: Stored<'_>, start: usize, values: &[f32], out: &mut [u8]) -> bool {
        let Stored::Blocks(blocks) = stored else { return self.write(values, out) };
        out.copy_from_slice(blocks.bytes(start, values.len()));
        true
    }

    fn beyond(&self) -> String {
        format!("the sum is beyond what {} can hold", self.kind())
    }
}

impl Rounding for Quantizer {
    fn unit(&self) -> usize {
        self.kind().block().0
    }

    fn rounded<'a>(&self, values: &'a [f32]) -> Option<Cow<'a, [f32]>> {
        let (elements, size) = self.kind().block();
        let mut blocks = vec![0; values.len() / elements * size];
        self.quantize(values, &mut blocks);
        let mut given = vec![0.0; values.len()];
        self.dequantize(&blocks, &mut given);
        all_finite(&given).then_some(Cow::Owned(given))
    }

    fn beyond(&self) -> String {
        format!("the sum is beyond what {} can hold, or its values beyond the type asked for", self.kind())
    }
}

/// Weights that MLX packs.
impl Output for AffineQuantizer {
    type Item = u8;

    fn unit(&self) -> (usize, usize) {
        self.packing().group()
    }

    fn write(&self, values: &[f32], out: &mut [u8]) -> bool {
        self.pack(values, out);
        let mut given = vec![0.0; values.len()];
        self.round(values, &mut given);
        all_finite(&given)
    }

    fn keep(&self, stored: Stored<'_>, start: usize, values: &[f32], out: &mut [u8]) -> bool {
        let Stored::Affine(affine) = stored else { return self.write(values, out) };
        out.copy_from_slice(affine.part(start, values.len()).bytes);
        true
    }

    fn beyond(&self) -> String {
        BEYOND_FACTORS.into()
    }
}

impl Rounding for AffineQuantizer {
    fn unit(&self) -> usize {
        self.packing().group().0
    }

    fn rounded<'a>(&self, values: &'a [f32]) -> Option<Cow<'a, [f32]>> {
        let mut given = vec![0.0; values.len()];
        self.round(values, &mut given);
        all_finite(&given).then_some(Cow::Owned(given))
    }

    fn beyond(&self) -> String {
        format!("{BEYOND_FACTORS}, or its values beyond the type asked for")
    }
}

const BEYOND_FACTORS: &str = "the sum is beyond what the scales and biases of its groups can hold";

/// What belongs to packed weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AffinePart {
    /// A scale for each group.
    Scales,
    /// A bias for each group.
    Biases,
}

impl fmt::Display for AffinePart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scales => "scales",
            Self::Biases => "biases",
        })
    }
}

/// Scales or biases, in f32.
pub(super) struct Factors(pub(super) AffineQuantizer, pub(super) AffinePart);

impl Output for Factors {
    type Item = f32;

    fn unit(&self) -> (usize, usize) {
        (self.0.packing().group().0, 1)
    }

    fn write(&self, values: &[f32], out: &mut [f32]) -> bool {
        let (elements, _) = self.0.packing().group();
        for (group, out) in values.chunks(elements).zip(&mut *out) {
            let (scale, bias) = self.0.factors(group);
            *out = if self.1 == AffinePart::Scales { scale } else { bias };
        }
        all_finite(out)
    }

    fn keep(&self, stored: Stored<'_>, start: usize, values: &[f32], out: &mut [f32]) -> bool {
        let Stored::Affine(affine) = stored else { return self.write(values, out) };
        let part = affine.part(start, values.len());
        out.copy_from_slice(if self.1 == AffinePart::Scales { part.scales } else { part.biases });
        true
    }

    fn beyond(&self) -> String {
        BEYOND_FACTORS.into()
    }
}

/// Values of rows of `columns` in a float type. The error is the first row that has a value beyond it, or `None` if there is
/// no such type here.
pub(super) fn narrowed(
    values: Vec<f32>,
    columns: usize,
    want: FloatType,
) -> Result<TensorData<'static>, Option<usize>> {
    fn all<N: Narrow>(values: &[f32], columns: usize, narrow: &N) -> Result<Vec<N::Item>, Option<usize>> {
        let mut out = vec![N::Item::default(); values.len()];
        let rows = values.chunks(columns.max(1)).zip(out.chunks_mut(columns.max(1)));
        match rows.map(|(values, out)| narrow.write(values, out)).position(|is_written| !is_written) {
            None => Ok(out),
            row => Err(row),
        }
    }
    Ok(match want {
        FloatType::F32 => TensorData::F32(values),
        FloatType::F64 => TensorData::Bytes(all(&values, columns, &ToF64)?.into_flattened()),
        FloatType::F16 => TensorData::Half(all(&values, columns, &ToF16)?),
        FloatType::Bf16 => TensorData::Half(all(&values, columns, &ToBf16)?),
        _ => return Err(None),
    })
}

/// What `touched` becomes, after `rounding` rounded once to `want`. The error continues a sentence that starts with the
/// tensor's name; nothing is given then.
pub(super) fn floats(
    touched: &Touched<'_>,
    rounding: &impl Rounding,
    want: FloatType,
) -> Result<TensorData<'static>, String> {
    Ok(match want {
        FloatType::F32 => TensorData::F32(merge(touched, &Rounded(rounding, ToF32))?),
        FloatType::F64 => TensorData::Bytes(merge(touched, &Rounded(rounding, ToF64))?.into_flattened()),
        FloatType::F16 => TensorData::Half(merge(touched, &Rounded(rounding, ToF16))?),
        FloatType::Bf16 => TensorData::Half(merge(touched, &Rounded(rounding, ToBf16))?),
        other => return Err(format!("was asked for as {other}, which the merge cannot give")),
    })
}
