//! Rotary frequencies: what a decoder turns positions by. The formulas are those of transformers'
//! `modeling_rope_utils.py`, computed in f64.

use std::f64::consts::PI;

use super::{Rope, RopeScaling};
use crate::{Error, Result};

/// The frequencies of one rotary table.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RopeFrequencies {
    /// Radians per position, one per pair of rotated dimensions: shape (dims / 2).
    pub radians: Vec<f64>,
    /// What cos and sin are multiplied by.
    pub attention_factor: f64,
}

/// The frequencies of a [`Rope`], with what it does for long sequences.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ResolvedRope {
    /// Those of every sequence, or of those up to a length.
    pub base: RopeFrequencies,
    /// Those of sequences of more tokens than this, for all of their positions.
    pub beyond: Option<(usize, RopeFrequencies)>,
}

impl Rope {
    /// The frequencies for a model made for `max_positions` tokens. `tensor` reads the tensors that
    /// [`RopeScaling::Divisors`] and [`RopeScaling::LongRopeTensors`] name.
    ///
    /// # Errors
    /// [`Error::UnsupportedModelFormat`] about `id` if a list of divisors is not one above 0 per pair of rotated
    /// dimensions, if a formula gives no finite number, or for [`RopeScaling::Dynamic`] whose original context is shorter
    /// than `max_positions` (its keys would have to be rotated anew with every token beyond it); and what `tensor` gives.
    pub fn resolve(
        &self,
        id: &str,
        max_positions: usize,
        tensor: &mut dyn FnMut(&str) -> Result<Vec<f32>>,
    ) -> Result<ResolvedRope> {
        let resolved = self.compute(id, max_positions, tensor)?;
        for RopeFrequencies { radians, attention_factor } in
            [&resolved.base].into_iter().chain(resolved.beyond.as_ref().map(|(_, far)| far))
        {
            let is_usable = |x: &f64| x.is_finite() && *x > 0.0;
            if let Some(x) = radians.iter().chain([attention_factor]).find(|x| !is_usable(x)) {
                return Err(Error::unsupported_format(
                    id,
                    format!(
                        "the rope type {} with theta {} gives a frequency or an attention factor of {x}; expected numbers above 0",
                        self.scaling.name(),
                        self.theta
                    ),
                ));
            }
        }
        Ok(resolved)
    }

    fn compute(
        &self,
        id: &str,
        max_positions: usize,
        tensor: &mut dyn FnMut(&str) -> Result<Vec<f32>>,
    ) -> Result<ResolvedRope> {
        let unscaled = self.unscaled();
        let one = |radians: Vec<f64>, attention_factor| ResolvedRope {
            base: RopeFrequencies { radians, attention_factor },
            beyond: None,
        };
        Ok(match &self.scaling {
            RopeScaling::None => one(unscaled, 1.0),
            RopeScaling::Linear { factor } => one(unscaled.iter().map(|f| f / factor).collect(), 1.0),
            // Up to the original context it changes nothing, and no sequence is longer than `max_positions`.
            RopeScaling::Dynamic { original_max_positions, .. } if *original_max_positions >= max_positions => {
                one(unscaled, 1.0)
            }
            RopeScaling::Dynamic { original_max_positions, .. } => {
                return Err(Error::unsupported_format(
                    id,
                    format!(
                        "the rope type is dynamic, which changes all frequencies with every token beyond {original_max_positions} of {max_positions}; expected default, linear, llama3, yarn or longrope"
                    ),
                ));
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let original = *original_max_positions as f64;
                let scale = |f: &f64| {
                    let wavelength = 2.0 * PI / f;
                    if wavelength > original / low_freq_factor {
                        f / factor
                    } else if wavelength < original / high_freq_factor {
                        *f
                    } else {
                        let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                };
                one(unscaled.iter().map(scale).collect(), 1.0)
            }
            RopeScaling::Yarn { .. } => {
                let (radians, attention_factor) = self.yarn(&unscaled);
                one(radians, attention_factor)
            }
            RopeScaling::Divisors { tensor: name } => one(divided(id, name, &unscaled, &widened(tensor(name)?))?, 1.0),
            RopeScaling::LongRope { short_factor, long_factor, original_max_positions, attention_factor, factor } => {
                let original = *original_max_positions;
                let factor = factor.unwrap_or(max_positions as f64 / original as f64);
                let attention_factor = attention_factor.unwrap_or(if factor <= 1.0 {
                    1.0
                } else {
                    (1.0 + factor.ln() / (original as f64).ln()).sqrt()
                });
                let short = divided(id, "short_factor", &unscaled, short_factor)?;
                let long = divided(id, "long_factor", &unscaled, long_factor)?;
                two(short, long, original, attention_factor)
            }
            RopeScaling::LongRopeTensors { short, long, original_max_positions, attention_factor } => {
                let near = divided(id, short, &unscaled, &widened(tensor(short)?))?;
                let far = divided(id, long, &unscaled, &widened(tensor(long)?))?;
                two(near, far, *original_max_positions, *attention_factor)
            }
        })
    }

    /// `theta^(-2i/dims)` for each pair `i`.
    fn unscaled(&self) -> Vec<f64> {
        (0..self.dims / 2).map(|i| self.theta.powf(-2.0 * i as f64 / self.dims as f64)).collect()
    }

    /// The frequencies of YaRN and its attention factor; those as they are for another kind.
    fn yarn(&self, unscaled: &[f64]) -> (Vec<f64>, f64) {
        let RopeScaling::Yarn {
            factor,
            original_max_positions,
            beta_fast,
            beta_slow,
            attention_factor,
            mscale,
            mscale_all_dim,
            truncate,
        } = &self.scaling
        else {
            return (unscaled.to_vec(), 1.0);
        };
        let dims = self.dims as f64;
        // The pair that turns so many times over the original context.
        let pair = |rotations: f64| {
            dims * (*original_max_positions as f64 / (rotations * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (pair(*beta_fast), pair(*beta_slow));
        if *truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dims - 1.0));
        if low == high {
            high += 0.001;
        }
        let scale = |(i, f): (usize, &f64)| {
            let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            f / factor * divided + f * (1.0 - divided)
        };
        let m = |scale: f64| if *factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        let computed = match (mscale, mscale_all_dim) {
            (Some(a), Some(b)) if *a != 0.0 && *b != 0.0 => m(*a) / m(*b),
            _ => m(1.0),
        };
        (unscaled.iter().enumerate().map(scale).collect(), attention_factor.unwrap_or(computed))
    }
}

fn two(near: Vec<f64>, far: Vec<f64>, original: usize, attention_factor: f64) -> ResolvedRope {
    ResolvedRope {
        base: RopeFrequencies { radians: near, attention_factor },
        beyond: Some((original, RopeFrequencies { radians: far, attention_factor })),
    }
}

fn widened(values: Vec<f32>) -> Vec<f64> {
    values.into_iter().map(f64::from).collect()
}

fn divided(id: &str, name: &str, frequencies: &[f64], divisors: &[f64]) -> Result<Vec<f64>> {
    if divisors.len() != frequencies.len() || divisors.iter().any(|d| !(d.is_finite() && *d > 0.0)) {
        return Err(Error::unsupported_format(
            id,
            format!(
                "{name} has {} divisors of rotary frequencies; expected {}, each above 0",
                divisors.len(),
                frequencies.len()
            ),
        ));
    }
    Ok(frequencies.iter().zip(divisors).map(|(f, d)| f / d).collect())
}
