//! The tokens of an input, checked.

use llm_local_core::{Error, Input, LoadedInfo, Result};

use crate::text::TextPipeline;

/// The tokens of `input`: at least one, at most a context full, and each in the model's vocabulary.
pub(super) fn tokens(input: Input, text: &TextPipeline, info: &LoadedInfo) -> Result<Vec<u32>> {
    let tokens = match input {
        Input::Tokens(tokens) => tokens,
        other => text.encode(&other)?,
    };
    if tokens.is_empty() {
        return Err(Error::invalid_spec("input", "the prompt has no tokens, expected at least one to continue from"));
    }
    if let Some((position, id)) = tokens.iter().enumerate().find(|(_, id)| **id as usize >= info.vocab_size) {
        return Err(Error::invalid_spec(
            "input",
            format!(
                "token {position} has the id {id}, but the vocabulary of `{}` has {} ids; use ids below that, from this model's tokenizer",
                info.model, info.vocab_size
            ),
        ));
    }
    if tokens.len() > info.context_length {
        return Err(Error::ContextLengthExceeded { prompt_tokens: tokens.len(), context_length: info.context_length });
    }
    Ok(tokens)
}
