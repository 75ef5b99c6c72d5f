//! Rotary frequencies, as the description resolves them.

use llm_local_core::{
    Result,
    model::{DecoderConfig, ResolvedRope, RopeFrequencies},
};

/// The frequencies of a decoder: those of most layers, and of windowed layers where they have others.
#[derive(Debug, Clone)]
pub struct Rotary {
    /// Of layers with full attention, and of windowed ones unless those have others.
    pub global: ResolvedRope,
    /// Of windowed layers.
    pub local: Option<ResolvedRope>,
}

impl Rotary {
    /// Those of the model `id`; `tensor` reads one of the tensors that some checkpoints store divisors in.
    ///
    /// # Errors
    /// What `tensor` gives, or that the frequencies are no numbers.
    pub fn resolve(c: &DecoderConfig, id: &str, tensor: &mut dyn FnMut(&str) -> Result<Vec<f32>>) -> Result<Self> {
        let global = c.rope.resolve(id, c.max_positions, tensor)?;
        let local = c.local_rope.as_ref().map(|rope| rope.resolve(id, c.max_positions, tensor)).transpose()?;
        Ok(Self { global, local })
    }

    /// Whether a sequence of `tokens` tokens is beyond a length at which frequencies change.
    pub fn is_long(&self, tokens: usize) -> bool {
        let beyond = |r: &ResolvedRope| r.beyond.as_ref().is_some_and(|(original, _)| tokens > *original);
        beyond(&self.global) || self.local.as_ref().is_some_and(beyond)
    }

    /// Whether frequencies change with the length of the sequence.
    pub fn changes(&self) -> bool {
        self.is_long(usize::MAX)
    }

    /// The frequencies of a sequence that is long or not, for layers with full attention or for windowed ones.
    pub fn frequencies(&self, windowed: bool, long: bool) -> &RopeFrequencies {
        let rope = self.local.as_ref().filter(|_| windowed).unwrap_or(&self.global);
        match &rope.beyond {
            Some((_, far)) if long => far,
            _ => &rope.base,
        }
    }
}
