//! `tokenizer.json` or GGUF metadata to a tokenizer.

use std::{panic, sync::Arc};

use llm_local_core::{Error, Result, TextFiles};
use tokenizers::Tokenizer;

use super::{files, gguf_tokenizer};

/// A tokenizer, without the padding and truncation that its file may ask for.
pub(super) struct TextTokenizer {
    tokenizer: Arc<Tokenizer>,
    token_count: usize,
}

/// The crate's reader panics on some broken files, such as merges whose result is no token; that is an error here.
fn parse(bytes: &[u8]) -> Result<Tokenizer, String> {
    match panic::catch_unwind(|| Tokenizer::from_bytes(bytes)) {
        Ok(parsed) => parsed.map_err(|error| error.to_string()),
        Err(_) => Err("its reader panicked; do all merges join two tokens to a third?".to_owned()),
    }
}

impl TextTokenizer {
    /// The tokenizer of `tokenizer.json`, else of GGUF metadata.
    pub(super) fn open(model: &str, text: &TextFiles) -> Result<Self> {
        if let Some(bytes) = files::tokenizer(&text.files)? {
            let tokenizer = parse(&bytes).map_err(|error| {
                Error::load(
                    text.files["tokenizer.json"].display(),
                    format!("it is not a tokenizer that this version reads: {error}; fetch the file again"),
                )
            })?;
            return Self::new(model, tokenizer);
        }
        match &text.gguf {
            Some(gguf) => Self::new(model, gguf_tokenizer::build(model, gguf)?),
            None => Err(Error::not_found(
                format!("the tokenizer of {model}"),
                format!(
                    "looked for tokenizer.json, and found {}; a model that has only tokenizer.model or vocab.json must \
                     be saved again with a fast tokenizer (transformers: `AutoTokenizer.from_pretrained(…).save_pretrained(…)`)",
                    if text.files.is_empty() {
                        "no files".to_owned()
                    } else {
                        text.files.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
                    }
                ),
            )),
        }
    }

    fn new(model: &str, mut tokenizer: Tokenizer) -> Result<Self> {
        // A file may hold the truncation of its training: a prompt would be cut without a word.
        tokenizer
            .with_truncation(None)
            .map_err(|error| Error::load(model, format!("the tokenizer's truncation cannot be turned off: {error}")))?
            .with_padding(None);
        let token_count = tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        if token_count == 0 {
            return Err(Error::load(model, "its tokenizer has no tokens; fetch the file again"));
        }
        Ok(Self { tokenizer: Arc::new(tokenizer), token_count })
    }

    /// The ids of `text`. `special` adds what the tokenizer adds by itself: begin of sequence and the like.
    pub(super) fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self
            .tokenizer
            .encode_fast(text, special)
            .map_err(|error| Error::generation(format!("the prompt cannot be tokenized: {error}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The id of a token by its text.
    pub(super) fn token_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// One above the largest id.
    pub(super) fn token_count(&self) -> usize {
        self.token_count
    }

    pub(super) fn shared(&self) -> Arc<Tokenizer> {
        Arc::clone(&self.tokenizer)
    }
}
