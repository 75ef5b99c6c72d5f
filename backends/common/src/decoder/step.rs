//! What every step of a sequence is checked against, whichever model computes it.

use llm_local_core::{Error, Result};

/// Checks a step of `tokens` at `position` behind the `computed` tokens of its cache, in a context of `context_length`
/// tokens.
///
/// # Errors
/// [`Error::ContextLengthExceeded`], or [`Error::GenerationFailed`] that says what of it does not fit.
pub fn check_step(
    tokens: &[u32],
    position: usize,
    computed: usize,
    context_length: usize,
    vocab_size: usize,
) -> Result<()> {
    let end = position.saturating_add(tokens.len());
    if end > context_length {
        return Err(Error::ContextLengthExceeded { prompt_tokens: end, context_length });
    }
    if tokens.is_empty() {
        return Err(Error::generation("a step without tokens has no logits"));
    }
    if position != computed {
        return Err(Error::generation(format!("a step at position {position}, but {computed} tokens are computed")));
    }
    // A GPU would read past the embedding instead of failing.
    match tokens.iter().find(|id| **id as usize >= vocab_size) {
        Some(id) => Err(Error::generation(format!("token {id} is not in the vocabulary of {vocab_size}"))),
        None => Ok(()),
    }
}
