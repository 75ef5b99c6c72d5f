//! Tokens, their kinds, and special ids.

use std::collections::HashMap;

use llm_local_core::{Error, Result, model::GgufMetadata};

/// What a token is for (`llama_token_type` of llama.cpp).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::text) enum TokenKind {
    /// A piece of text.
    Normal,
    /// Stands for text that the vocabulary cannot express.
    Unknown,
    /// Has no text: begin of sequence, end of turn, ...
    Control,
    /// Added by the model's authors, with a text.
    UserDefined,
    /// Fills the vocabulary up; never in a text.
    Unused,
    /// A byte, written `<0x0A>`.
    Byte,
}

/// The vocabulary of a GGUF file: ids are positions.
#[derive(Debug, Clone, Copy)]
pub(in crate::text) struct Vocabulary<'a> {
    tokens: &'a [String],
    kinds: Option<&'a [i64]>,
}

impl<'a> Vocabulary<'a> {
    /// The vocabulary of `gguf`, or `None` if it has none. Unused tokens at its end are left out: converters pad with
    /// them what the tokenizer does not know.
    pub(in crate::text) fn of(model: &str, gguf: &'a GgufMetadata) -> Result<Option<Self>> {
        let Some(tokens) = gguf.strings("tokenizer.ggml.tokens") else { return Ok(None) };
        let kinds = gguf.ints("tokenizer.ggml.token_type");
        if let Some(kinds) = kinds
            && kinds.len() != tokens.len()
        {
            return Err(Error::load(
                model,
                format!(
                    "`tokenizer.ggml.token_type` has {} values for {} tokens; convert the model again",
                    kinds.len(),
                    tokens.len()
                ),
            ));
        }
        if u32::try_from(tokens.len()).is_err() {
            return Err(Error::load(model, format!("{} tokens are more than ids can number", tokens.len())));
        }
        let whole = Self { tokens, kinds };
        let used =
            (0..tokens.len() as u32).rev().find(|&id| whole.kind(id) != TokenKind::Unused).map_or(0, |id| id + 1);
        Ok(Some(Self { tokens: &tokens[..used as usize], kinds }))
    }

    /// The kind of a token. Without `tokenizer.ggml.token_type` every token is normal.
    pub(in crate::text) fn kind(&self, id: u32) -> TokenKind {
        match self.kinds.and_then(|k| k.get(id as usize)) {
            Some(2) => TokenKind::Unknown,
            Some(3) => TokenKind::Control,
            Some(4) => TokenKind::UserDefined,
            Some(5) => TokenKind::Unused,
            Some(6) => TokenKind::Byte,
            _ => TokenKind::Normal,
        }
    }

    /// The id of a token by its text.
    pub(in crate::text) fn id(&self, token: &str) -> Option<u32> {
        self.tokens.iter().position(|t| t == token).map(|id| id as u32)
    }

    /// The text of a token that is in the vocabulary.
    pub(in crate::text) fn token(&self, id: u32) -> &'a str {
        &self.tokens[id as usize]
    }

    /// The id under `tokenizer.ggml.<name>_token_id`, if it is in the vocabulary. SentencePiece has `<unk>`, `<s>` and
    /// `</s>` first unless told otherwise.
    pub(in crate::text) fn special_id(&self, gguf: &GgufMetadata, name: &str) -> Option<u32> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let key = match name {
            "unk" => "tokenizer.ggml.unknown_token_id",
            "pad" => "tokenizer.ggml.padding_token_id",
            _ => &key,
        };
        let default = match (gguf.string("tokenizer.ggml.model"), name) {
            (Some("llama"), "unk") => Some(0),
            (Some("llama"), "bos") => Some(1),
            (Some("llama"), "eos") => Some(2),
            _ => None,
        };
        let id = if gguf.get(key).is_some() { gguf.usize(key) } else { default };
        id.filter(|&id| id < self.tokens.len()).map(|id| id as u32)
    }

    /// Ids, texts and kinds.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &'a str, TokenKind)> {
        let Self { tokens, .. } = *self;
        let this = *self;
        tokens.iter().enumerate().map(move |(id, token)| (id as u32, token.as_str(), this.kind(id as u32)))
    }

    /// Ids by text.
    ///
    /// # Errors
    /// [`Error::LoadFailed`] if two tokens have one text: encoding would lose one of them.
    pub(super) fn ids(&self, model: &str) -> Result<HashMap<&'a str, u32>> {
        let mut ids = HashMap::with_capacity(self.tokens.len());
        for (id, token, _) in self.iter() {
            if let Some(first) = ids.insert(token, id) {
                return Err(Error::load(
                    model,
                    format!("tokens {first} and {id} of its GGUF metadata are both `{token}`; convert the model again"),
                ));
            }
        }
        Ok(ids)
    }
}
