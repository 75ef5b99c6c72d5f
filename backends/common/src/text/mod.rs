//! Text in and out: tokenizer, incremental decoding, chat template, end-of-sequence ids.

use llm_local_core::{Error, Input, Result, TextFiles};

/// A model's text side.
#[derive(Debug)]
pub struct TextPipeline {}

impl TextPipeline {
    /// Reads tokenizer, chat template and end-of-sequence ids.
    pub fn open(model: &str, _text: &TextFiles) -> Result<Self> {
        Err(Error::unsupported_format(model, "no tokenizer reader yet"))
    }
    /// Token ids of an input.
    pub fn encode(&self, _input: &Input) -> Result<Vec<u32>> {
        Err(Error::generation("no tokenizer reader yet"))
    }
    /// Whether there is a chat template.
    pub fn has_chat_template(&self) -> bool {
        false
    }
    /// Ids that end a generation, sorted.
    pub fn eos_ids(&self) -> &[u32] {
        &[]
    }
    /// Number of ids the tokenizer knows; ids from here on are masked before sampling.
    pub fn token_count(&self) -> usize {
        0
    }
    /// A decoder for one generation.
    pub fn decoder(&self) -> TextDecoder<'_> {
        TextDecoder { _pipeline: self }
    }
}

/// Turns ids into text one by one, never splitting a character.
#[derive(Debug)]
pub struct TextDecoder<'a> {
    _pipeline: &'a TextPipeline,
}

impl TextDecoder<'_> {
    /// The text that has become certain with `id`; may be empty.
    pub fn push(&mut self, _id: u32) -> Result<String> {
        Ok(String::new())
    }
    /// The rest, when no more ids come.
    pub fn finish(&mut self) -> Result<String> {
        Ok(String::new())
    }
}
