//! MLX's affine quantization, mode `affine` of `mlx.core.quantize`: for each group of weights in a row a scale s and a bias
//! b, and for each weight a number q of a few bits, so that it stands for `s * q + b`.
//!
//! The numbers of a row are packed without gaps, each from its lowest bit on.

use half::{bf16, f16};
use llm_local_core::{Encoding, FloatType, model::MlxQuantization};

/// The smallest scale that MLX gives a group.
const SMALLEST_SCALE: f32 = 1e-7;

/// How weights are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::lora) struct Packing {
    bits: usize,
    group_size: usize,
}

impl Packing {
    /// The error is that of [`super::check`].
    pub(in crate::lora) fn new(bits: u8, group_size: u32) -> Result<Self, String> {
        if MlxQuantization::BITS.contains(&bits) && MlxQuantization::GROUP_SIZES.contains(&group_size) {
            return Ok(Self { bits: bits.into(), group_size: group_size as usize });
        }
        let stored = Encoding::MlxAffine { bits, group_size };
        Err(format!(
            "is stored as {stored}, which MLX does not have: it has 2 to 6 or 8 bits, in groups of 32, 64 or 128"
        ))
    }

    /// Weights of a group, and the bytes they are packed in.
    pub(in crate::lora) fn group(self) -> (usize, usize) {
        (self.group_size, self.group_size * self.bits / 8)
    }

    /// The largest number.
    fn largest(self) -> u16 {
        (1 << self.bits) - 1
    }

    /// The number `index` of those that are packed in `bytes`.
    fn at(self, bytes: &[u8], index: usize) -> u16 {
        let bit = index * self.bits;
        let next = bytes.get(bit / 8 + 1).copied().unwrap_or_default();
        u16::from_le_bytes([bytes[bit / 8], next]) >> (bit % 8) & self.largest()
    }

    /// Packs numbers into `bytes`, which are zero and have room for them.
    fn pack(self, numbers: impl Iterator<Item = u16>, bytes: &mut [u8]) {
        for (index, number) in numbers.enumerate() {
            let bit = index * self.bits;
            let [low, high] = (number << (bit % 8)).to_le_bytes();
            bytes[bit / 8] |= low;
            if high != 0 {
                bytes[bit / 8 + 1] |= high;
            }
        }
    }
}

/// A tensor that is packed, with its scales and biases.
#[derive(Debug, Clone, Copy)]
pub(in crate::lora) struct Affine<'a> {
    packing: Packing,
    pub(in crate::lora) bytes: &'a [u8],
    pub(in crate::lora) scales: &'a [f32],
    pub(in crate::lora) biases: &'a [f32],
}

impl<'a> Affine<'a> {
    /// The error continues a sentence that starts with the tensor's name.
    pub(in crate::lora) fn new(
        packing: Packing,
        bytes: &'a [u8],
        scales: &'a [f32],
        biases: &'a [f32],
    ) -> Result<Self, String> {
        let (_, size) = packing.group();
        if !bytes.len().is_multiple_of(size) || [scales.len(), biases.len()] != [bytes.len() / size; 2] {
            return Err(format!(
                "has {} bytes, {} scales and {} biases; expected one of each for {size} bytes",
                bytes.len(),
                scales.len(),
                biases.len()
            ));
        }
        Ok(Self { packing, bytes, scales, biases })
    }

    /// Weights of a group.
    pub(in crate::lora) fn group(self) -> usize {
        self.packing.group_size
    }

    /// The `count` elements from index `start` on, which are whole groups.
    pub(in crate::lora) fn part(self, start: usize, count: usize) -> Self {
        let (elements, size) = self.packing.group();
        let (first, last) = (start / elements, (start + count) / elements);
        let (scales, biases) = (&self.scales[first..last], &self.biases[first..last]);
        Self { packing: self.packing, bytes: &self.bytes[first * size..last * size], scales, biases }
    }

    /// Writes the elements from index `start` into `out`.
    pub(in crate::lora) fn widen(self, start: usize, out: &mut [f32]) {
        let (elements, size) = self.packing.group();
        let mut next = start;
        let mut rest = out;
        while !rest.is_empty() {
            let (group, within) = (next / elements, next % elements);
            let (now, later) = rest.split_at_mut(rest.len().min(elements - within));
            let bytes = &self.bytes[group * size..(group + 1) * size];
            let (scale, bias) = (self.scales[group], self.biases[group]);
            for (index, value) in now.iter_mut().enumerate() {
                *value = scale * f32::from(self.packing.at(bytes, within + index)) + bias;
            }
            next += now.len();
            rest = later;
        }
    }
}

/// From f32 to packed weights, with scales and biases in a float type.
#[derive(Debug, Clone, Copy)]
pub(in crate::lora) struct AffineQuantizer {
    packing: Packing,
    factors: FloatType,
}

impl AffineQuantizer {
    /// Of weights that are packed so, whose scales and biases are of the type `factors`.
    pub(in crate::lora) fn new(packing: Packing, factors: FloatType) -> Self {
        Self { packing, factors }
    }

    /// How it packs.
    pub(in crate::lora) fn packing(&self) -> Packing {
        self.packing
    }

    /// Scale and bias of a group, as MLX computes them (`quantize` of its CPU backend), rounded to their type.
    ///
    /// The bias is the value that is farthest from zero, and the scale is such that a whole number of steps leads to zero from
    /// there: but for the rounding of both to their type, that value and zero are kept. A group without a step to zero has a
    /// bias of 0.
    pub(in crate::lora) fn factors(&self, group: &[f32]) -> (f32, f32) {
        let smallest = group.iter().copied().fold(f32::INFINITY, f32::min);
        let largest = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let step = ((largest - smallest) / f32::from(self.packing.largest())).max(SMALLEST_SCALE);
        let (scale, edge) = if smallest.abs() > largest.abs() { (step, smallest) } else { (-step, largest) };
        let steps = (edge / scale).round_ties_even();
        let (scale, bias) = if steps == 0.0 { (scale, 0.0) } else { (edge / steps, edge) };
        (self.rounded(scale), self.rounded(bias))
    }

    /// The numbers of a group with these factors: each the nearest to its weight. (MLX takes the nearest by factors that are
    /// not rounded yet, which is farther from the weight by what their rounding moves it.)
    fn numbers(&self, group: &[f32], (scale, bias): (f32, f32)) -> impl Iterator<Item = u16> {
        let largest = f32::from(self.packing.largest());
        // A scale that is rounded to zero makes NaN, and that number 0, or an infinity, and that one of the ends: whichever it
        // is, times such a scale it is nothing.
        group.iter().map(move |value| ((value - bias) / scale).round_ties_even().clamp(0.0, largest) as u16)
    }

    /// Packs whole groups into `out`.
    pub(in crate::lora) fn pack(&self, values: &[f32], out: &mut [u8]) {
        let (elements, size) = self.packing.group();
        for (group, out) in values.chunks(elements).zip(out.chunks_mut(size)) {
            out.fill(0);
            self.packing.pack(self.numbers(group, self.factors(group)), out);
        }
    }

    /// Writes what whole groups stand for once they are packed.
    pub(in crate::lora) fn round(&self, values: &[f32], out: &mut [f32]) {
        let (elements, _) = self.packing.group();
        for (group, out) in values.chunks(elements).zip(out.chunks_mut(elements)) {
            let (scale, bias) = self.factors(group);
            let numbers = self.numbers(group, (scale, bias));
            out.iter_mut().zip(numbers).for_each(|(out, number)| *out = scale * f32::from(number) + bias);
        }
    }

    fn rounded(&self, value: f32) -> f32 {
        match self.factors {
            FloatType::F16 => f16::from_f32(value).to_f32(),
            FloatType::Bf16 => bf16::from_f32(value).to_f32(),
            _ => value,
        }
    }
}

#[cfg(test)]
mod tests;
