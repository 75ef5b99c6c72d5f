//! One forward step, whichever model it is of.

use candle_core::{Device, Tensor};
use llm_local_core::{Error, Result};

use crate::errors::generation_error;

/// What every step is checked against, and where its input goes.
pub(crate) struct Bounds {
    pub(crate) context_length: usize,
    pub(crate) vocab_size: usize,
    pub(crate) device: Device,
}

impl Bounds {
    /// Runs `forward` on `tokens` (shape (1, n)) at `position`, and takes the logits (1, vocab) from the device.
    pub(crate) fn run(
        &self,
        tokens: &[u32],
        position: usize,
        forward: impl FnOnce(&Tensor) -> candle_core::Result<Tensor>,
    ) -> Result<Vec<f32>> {
        let end = position.saturating_add(tokens.len());
        if end > self.context_length {
            return Err(Error::ContextLengthExceeded { prompt_tokens: end, context_length: self.context_length });
        }
        if tokens.is_empty() {
            return Err(Error::generation("a step without tokens has no logits"));
        }
        // A GPU would read past the embedding instead of failing.
        if let Some(id) = tokens.iter().find(|id| **id as usize >= self.vocab_size) {
            return Err(Error::generation(format!("token {id} is not in the vocabulary of {}", self.vocab_size)));
        }
        let logits =
            || Tensor::new(tokens, &self.device)?.unsqueeze(0).and_then(|t| forward(&t))?.squeeze(0)?.to_vec1();
        logits().map_err(|e| {
            generation_error(&format!("candle could not compute {} tokens at position {position}", tokens.len()), e)
        })
    }
}
