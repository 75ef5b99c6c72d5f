//! What a merged tensor is given as: floats, or in the encoding that the base has.

use std::{borrow::Cow, fmt};

use llm_local_core::{FloatType, TensorData};
use llm_local_weights::narrow_to_f16;
use pulp::{Arch, bytemuck::Pod};

use super::{
    destination::Destination,
    kernel::{Touched, all_finite},
    stored::{Stored, all},
};
use crate::lora::{
    floats::narrow_bf16,
    quantized::{AffineQuantizer, Quantizer},
};

/// How f32 becomes what is given.
pub(super) trait Output: Sync {
    /// What is written.
    type Item: Pod + Default + Send;

    /// All that was written, as the data of a tensor.
    fn data(&self, items: Vec<Self::Item>) -> TensorData<'static>;

    /// Elements of a row that become items together, and how many items they become.
    fn unit(&self) -> (usize, usize);

    /// Writes whole units of values, and tells whether they are finite, and everything that they became.
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
    type Item: Pod + Default + Send;

    /// As [`Output::data`].
    fn data(&self, items: Vec<Self::Item>) -> TensorData<'static>;

    /// As [`Output::write`].
    fn write(&self, values: &[f32], out: &mut [Self::Item]) -> bool;
}

struct ToF32;

impl Narrow for ToF32 {
    type Item = f32;

    fn data(&self, items: Vec<f32>) -> TensorData<'static> {
        TensorData::F32(items)
    }

    fn write(&self, values: &[f32], out: &mut [f32]) -> bool {
        write_each(values, out, |value| value) < f32::INFINITY
    }
}

struct ToF64;

impl Narrow for ToF64 {
    type Item = [u8; 8];

    fn data(&self, items: Vec<[u8; 8]>) -> TensorData<'static> {
        TensorData::Bytes(items.into_flattened())
    }

    fn write(&self, values: &[f32], out: &mut [[u8; 8]]) -> bool {
        write_each(values, out, |value| f64::from(value).to_le_bytes()) < f32::INFINITY
    }
}

struct ToF16;

impl Narrow for ToF16 {
    type Item = u16;

    fn data(&self, items: Vec<u16>) -> TensorData<'static> {
        TensorData::Half(items)
    }

    fn write(&self, values: &[f32], out: &mut [u16]) -> bool {
        narrow_to_f16(values, out);
        all(out, |bits| bits & 0x7c00 != 0x7c00)
    }
}

struct ToBf16;

impl Narrow for ToBf16 {
    type Item = u16;

    fn data(&self, items: Vec<u16>) -> TensorData<'static> {
        TensorData::Half(items)
    }

    fn write(&self, values: &[f32], out: &mut [u16]) -> bool {
        // From the middle between the largest bfloat16 and what would be the next, they are rounded to infinity.
        write_each(values, out, narrow_bf16) < f32::from_bits(0x7f7f_8000)
    }
}

/// Writes what `narrow` makes of each value. Returns the largest magnitude; a NaN if there is one.
fn write_each<T>(values: &[f32], out: &mut [T], narrow: impl Fn(f32) -> T) -> f32 {
    Arch::new().dispatch(|| {
        // As bits, magnitudes have the order of integers, and NaNs are above them all.
        let mut largest = 0;
        for (out, value) in out.iter_mut().zip(values) {
            *out = narrow(*value);
            largest = (value.to_bits() & 0x7fff_ffff).max(largest);
        }
        f32::from_bits(largest)
    })
}

/// What values are rounded to before they are given as floats.
pub(super) trait Rounding: Sync {
    /// Elements that are rounded together.
    fn unit(&self) -> usize;

    /// Whole units, rounded; `None` if a value is not finite before or after that, unless what is given is the values.
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

    fn data(&self, items: Vec<O::Item>) -> TensorData<'static> {
        self.1.data(items)
    }

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

    fn data(&self, items: Vec<u8>) -> TensorData<'static> {
        TensorData::Bytes(items)
    }

    fn unit(&self) -> (usize, usize) {
        self.kind().block()
    }

    fn write(&self, values: &[f32], out: &mut [u8]) -> bool {
        if !all_finite(values) {
            return false;
        }
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
        if !all_finite(values) {
            return None;
        }
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

    fn data(&self, items: Vec<u8>) -> TensorData<'static> {
        TensorData::Bytes(items)
    }

    fn unit(&self) -> (usize, usize) {
        self.packing().group()
    }

    fn write(&self, values: &[f32], out: &mut [u8]) -> bool {
        if !all_finite(values) {
            return false;
        }
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
        if !all_finite(values) {
            return None;
        }
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

    fn data(&self, items: Vec<f32>) -> TensorData<'static> {
        TensorData::F32(items)
    }

    fn unit(&self) -> (usize, usize) {
        (self.0.packing().group().0, 1)
    }

    fn write(&self, values: &[f32], out: &mut [f32]) -> bool {
        if !all_finite(values) {
            return false;
        }
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

/// Finite values of rows of `columns` in a float type. The error is the first row that has a value beyond it, or `None` if
/// there is no such type here.
pub(super) fn narrowed(
    values: Vec<f32>,
    columns: usize,
    want: FloatType,
) -> Result<TensorData<'static>, Option<usize>> {
    fn all<N: Narrow>(values: &[f32], columns: usize, narrow: &N) -> Result<TensorData<'static>, Option<usize>> {
        let mut out = vec![N::Item::default(); values.len()];
        let rows = values.chunks(columns.max(1)).zip(out.chunks_mut(columns.max(1)));
        match rows.map(|(values, out)| narrow.write(values, out)).position(|is_written| !is_written) {
            None => Ok(narrow.data(out)),
            row => Err(row),
        }
    }
    match want {
        FloatType::F32 => Ok(TensorData::F32(values)),
        FloatType::F64 => all(&values, columns, &ToF64),
        FloatType::F16 => all(&values, columns, &ToF16),
        FloatType::Bf16 => all(&values, columns, &ToBf16),
        _ => Err(None),
    }
}

/// What `touched` becomes, after `rounding` rounded once to `want`. The error continues a sentence that starts with the
/// tensor's name.
pub(super) fn floats<D: Destination>(
    touched: &Touched<'_>,
    rounding: &impl Rounding,
    want: FloatType,
    to: D,
) -> Result<D::Given, String> {
    match want {
        FloatType::F32 => to.take(touched, &Rounded(rounding, ToF32)),
        FloatType::F64 => to.take(touched, &Rounded(rounding, ToF64)),
        FloatType::F16 => to.take(touched, &Rounded(rounding, ToF16)),
        FloatType::Bf16 => to.take(touched, &Rounded(rounding, ToBf16)),
        other => Err(format!("was asked for as {other}, which the merge cannot give")),
    }
}
