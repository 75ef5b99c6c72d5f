//! The choice of the next token, on plain slices.
//!
//! The filters apply in the order of [`Sampling`]'s fields and keep what transformers' logits processors keep:
//! repetition penalty, temperature, top-k (ties with the k-th token stay), top-p, min-p.

mod filter;

use std::cmp::Ordering;

use llm_local_core::{Error, Result, Sampling};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// Chooses the tokens of one generation.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    token_count: usize,
    /// `None` where nothing is left to chance.
    rng: Option<ChaCha8Rng>,
    /// Kept from token to token, so that a vocabulary is not allocated for each.
    candidates: Vec<Candidate>,
    scratch: Vec<f32>,
    seen: Vec<u32>,
}

/// A token that may be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    id: u32,
    /// Its probability as a multiple of the best token's: 1 for that one, never more.
    weight: f32,
}

impl Sampler {
    /// A sampler that never chooses an id from `token_count` on: models pad their vocabulary, and such ids have no
    /// text. Without a seed in `sampling` it takes one from the operating system.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] for a value out of range, [`Error::GenerationFailed`] if the operating system has no
    /// randomness.
    pub fn new(sampling: &Sampling, token_count: usize) -> Result<Self> {
        sampling.validate()?;
        let rng = if sampling.temperature == 0.0 {
            None
        } else {
            let seed = match sampling.seed {
                Some(seed) => seed,
                None => getrandom::u64().map_err(|e| {
                    Error::generation(format!("the operating system gave no random seed: {e}; set `sampling.seed`"))
                })?,
            };
            Some(ChaCha8Rng::seed_from_u64(seed))
        };
        Ok(Self {
            sampling: sampling.clone(),
            token_count,
            rng,
            candidates: Vec::new(),
            scratch: Vec::new(),
            seen: Vec::new(),
        })
    }

    /// The next token after `recent` (prompt and answer so far; the repetition penalty looks at the end of it), given
    /// its `logits`, shape (vocab,). The logits of penalized tokens are changed in place.
    ///
    /// # Errors
    /// [`Error::GenerationFailed`] that names the token, if a logit is NaN or infinite, or if none is above -inf.
    pub fn sample(&mut self, logits: &mut [f32], recent: &[u32]) -> Result<u32> {
        let known = logits.len().min(self.token_count);
        let logits = &mut logits[..known];
        check(logits)?;
        self.penalize(logits, recent);
        let (best, max) = greedy(logits).ok_or_else(|| {
            Error::generation(format!("no token can be chosen: all {known} logits of the tokenizer's tokens are -inf"))
        })?;
        let Some(rng) = &mut self.rng else {
            return Ok(best);
        };
        filter::keep(logits, max, &self.sampling, &mut self.candidates, &mut self.scratch);
        Ok(draw(&self.candidates, rng).unwrap_or(best))
    }

    /// Divides positive and multiplies negative logits of the tokens in the window, each once however often it is
    /// there (arXiv:1909.05858, section 4.1).
    fn penalize(&mut self, logits: &mut [f32], recent: &[u32]) {
        let penalty = self.sampling.repetition_penalty;
        if penalty == 1.0 {
            return;
        }
        self.seen.clear();
        self.seen.extend_from_slice(&recent[recent.len().saturating_sub(self.sampling.repetition_window)..]);
        self.seen.sort_unstable();
        self.seen.dedup();
        for &id in &self.seen {
            if let Some(logit) = logits.get_mut(id as usize) {
                let penalized = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
                // A penalty far below 1 may overflow, and an infinite logit would have no weight to draw by.
                *logit = penalized.min(f32::MAX);
            }
        }
    }
}

/// Refuses logits that only a broken computation gives.
fn check(logits: &[f32]) -> Result<()> {
    // NaN is not less than anything either.
    let is_broken = |logit: f32| !matches!(logit.partial_cmp(&f32::INFINITY), Some(Ordering::Less));
    // Without a branch for each token, which a search would have, so that the compiler uses vector instructions.
    if !logits.iter().fold(false, |broken, logit| broken | is_broken(*logit)) {
        return Ok(());
    }
    let id = logits.iter().position(|logit| is_broken(*logit)).unwrap_or_default();
    Err(Error::generation(format!(
        "the model's logit of token {id} is {}, expected a finite number; its weights or its compute dtype are at fault (f16 overflows where bf16 and f32 do not)",
        logits[id]
    )))
}

/// The first of the best tokens and its logit; `None` if there is none above -inf.
fn greedy(logits: &[f32]) -> Option<(u32, f32)> {
    let mut best = None;
    let mut max = f32::NEG_INFINITY;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > max {
            max = logit;
            best = Some(id as u32);
        }
    }
    best.map(|id| (id, max))
}

/// A token by its weight among `candidates`; `None` if there are none.
fn draw(candidates: &[Candidate], rng: &mut ChaCha8Rng) -> Option<u32> {
    // Added up in f64: over 150,000 tokens, f32 sums lose the tail.
    let total: f64 = candidates.iter().map(|c| f64::from(c.weight)).sum();
    // The upper 53 bits, as many as an f64 has: uniform in [0, 1).
    let unit = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    let target = unit * total;
    let mut sum = 0.0;
    for candidate in candidates {
        sum += f64::from(candidate.weight);
        if target < sum {
            return Some(candidate.id);
        }
    }
    candidates.iter().rev().find(|c| c.weight > 0.0).map(|c| c.id)
}

#[cfg(test)]
mod tests;
