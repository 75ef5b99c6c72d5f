//! Text in and out: tokenizer, incremental decoding, chat template, end-of-sequence ids.
//!
//! | module | what it holds |
//! |---|---|
//! | `tokenizer` | `tokenizer.json` or GGUF metadata to a tokenizer |
//! | `gguf_tokenizer` | the tokenizers that GGUF metadata describes |
//! | `decoder` | ids to text, one by one |
//! | `template` | a chat to text |
//! | `eos` | the ids that end a generation |
//! | `files` | bounded reads of a model's small files |

mod decoder;
mod eos;
mod files;
mod gguf_tokenizer;
mod template;
#[cfg(test)]
mod tests;
mod tokenizer;

use std::{fmt, sync::Arc};

use llm_local_core::{Error, Input, Result, TextFiles};

pub use decoder::TextDecoder;

use self::{decoder::Detokenizer, files::Configs, template::ChatTemplate, tokenizer::TextTokenizer};

/// A model's text side: what turns input into token ids and token ids into text.
pub struct TextPipeline {
    tokenizer: TextTokenizer,
    detokenizer: Arc<Detokenizer>,
    template: ChatTemplate,
    eos_ids: Vec<u32>,
}

impl TextPipeline {
    /// Reads tokenizer, chat template and end-of-sequence ids of `model`, a name for messages.
    ///
    /// Files come before GGUF metadata where both are there. End-of-sequence ids are those of
    /// `generation_config.json`, else of `config.json`; beside them always the tokenizer's own `eos_token`, and what
    /// GGUF metadata says.
    ///
    /// # Errors
    /// [`Error::NotFound`] without a tokenizer; [`Error::UnsupportedModelFormat`] for one that is not known here;
    /// [`Error::Io`] and [`Error::LoadFailed`] for files that cannot be read.
    pub fn open(model: &str, text: &TextFiles) -> Result<Self> {
        let configs = Configs::read(&text.files)?;
        let tokenizer = TextTokenizer::open(model, text)?;
        let detokenizer = Arc::new(Detokenizer::new(tokenizer.shared()));
        let template = ChatTemplate::open(model, &configs, text.gguf.as_deref());
        let eos_ids = eos::ids(model, &configs, text.gguf.as_deref(), &tokenizer)?;
        Ok(Self { tokenizer, detokenizer, template, eos_ids })
    }

    /// Token ids of an input.
    ///
    /// Tokens are used as they are, whether or not the tokenizer knows them. Text gets the special tokens that the
    /// tokenizer adds by itself. Messages are rendered by the chat template, which writes its own special tokens, and
    /// get no further ones. Special tokens written out in the text are recognized, as in transformers.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for messages to a model without a chat template; [`Error::InvalidSpec`] for messages
    /// that the template refuses; [`Error::GenerationFailed`] for a template that does not work.
    pub fn encode(&self, input: &Input) -> Result<Vec<u32>> {
        match input {
            Input::Tokens(tokens) => Ok(tokens.clone()),
            Input::Text(text) => self.tokenizer.encode(text, true),
            Input::Messages(messages) => self.tokenizer.encode(&self.template.render(messages)?, false),
            other => {
                Err(Error::unsupported(format!("the input {other:?}"), "this version knows tokens, text and messages"))
            }
        }
    }

    /// Whether there is a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.template.exists()
    }

    /// Ids that end a generation, sorted.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// Number of ids the tokenizer knows, added tokens included; ids from here on are masked before sampling.
    pub fn token_count(&self) -> usize {
        self.tokenizer.token_count()
    }

    /// A decoder for one generation. It owns what it needs.
    pub fn decoder(&self) -> TextDecoder {
        TextDecoder::new(Arc::clone(&self.detokenizer))
    }
}

impl fmt::Debug for TextPipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextPipeline")
            .field("token_count", &self.token_count())
            .field("eos_ids", &self.eos_ids)
            .field("has_chat_template", &self.has_chat_template())
            .finish_non_exhaustive()
    }
}
