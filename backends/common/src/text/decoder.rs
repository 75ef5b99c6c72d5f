//! Ids to text, one by one.
//!
//! The `DecodeStream` of the tokenizers crate compares the text of a window of ids with what it gave before. That fails
//! with an error where byte-fallback tokens do not make UTF-8 (one bad byte changes the text of the good ones beside
//! it), and it drops the leading space of a SentencePiece continuation. So tokens that stand for bytes are put together as bytes
//! here, and only other tokens are left to the crate's decoder.

use std::{str, sync::Arc};

use llm_local_core::{Error, Result};
use tokenizers::{DecoderWrapper, Tokenizer};

/// Most ids kept back because their text ends in U+FFFD: a character has at most four bytes, so at most four tokens.
const MAX_HELD: usize = 4;

/// What all decoders of a tokenizer share.
pub(super) struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    bytes: Bytes,
    /// A plain token put before every decoded text. Text that is generated continues a prompt: what a decoder does at
    /// the start of a text (dropping a space) does not apply to it.
    anchor: Option<u32>,
}

/// Which tokens stand for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bytes {
    /// Every token but the added ones, in GPT-2's alphabet of 256 printable characters.
    All,
    /// Tokens of the form `<0x0A>`.
    Fallback,
    /// None.
    None,
}

/// What a token adds to the text.
enum Piece {
    Nothing,
    Bytes(Vec<u8>),
    /// For the tokenizer's own decoder.
    Token,
}

impl Detokenizer {
    pub(super) fn new(tokenizer: Arc<Tokenizer>) -> Self {
        let bytes = match tokenizer.get_decoder() {
            Some(decoder) => bytes_of(decoder),
            None => Bytes::None,
        };
        let anchor = match bytes {
            Bytes::All => None,
            _ => anchor(&tokenizer),
        };
        Self { tokenizer, bytes, anchor }
    }

    fn piece(&self, id: u32) -> Piece {
        let added = self.tokenizer.get_added_vocabulary();
        if let Some(token) = added.simple_id_to_token(id) {
            return match self.bytes {
                _ if added.is_special_token(&token) => Piece::Nothing,
                Bytes::All => Piece::Bytes(token.into_bytes()),
                _ => Piece::Token,
            };
        }
        let Some(token) = self.tokenizer.id_to_token(id) else { return Piece::Nothing };
        match self.bytes {
            Bytes::All => Piece::Bytes(token.chars().map(byte_of).collect::<Option<_>>().unwrap_or(token.into_bytes())),
            Bytes::Fallback => match fallback_byte(&token) {
                Some(byte) => Piece::Bytes(vec![byte]),
                None => Piece::Token,
            },
            Bytes::None => Piece::Token,
        }
    }

    /// What `ids` add to the text after `context`.
    fn continuation(&self, context: Option<u32>, ids: &[u32]) -> Result<String> {
        let mut window: Vec<u32> = self.anchor.into_iter().chain(context).collect();
        let before = self.decode(&window)?;
        window.extend(ids);
        let mut text = self.decode(&window)?;
        // A decoder that changes earlier text when more comes cannot be streamed exactly: give what is new.
        let common = text.bytes().zip(before.bytes()).take_while(|(a, b)| a == b).count();
        let start = (0..=common).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
        Ok(text.split_off(start))
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer
            .decode(ids, true)
            .map_err(|error| Error::generation(format!("the token ids {ids:?} cannot be turned into text: {error}")))
    }
}

fn bytes_of(decoder: &DecoderWrapper) -> Bytes {
    match decoder {
        DecoderWrapper::ByteLevel(_) => Bytes::All,
        DecoderWrapper::ByteFallback(_) => Bytes::Fallback,
        DecoderWrapper::Sequence(sequence) => match sequence.get_decoders() {
            [only] => bytes_of(only),
            decoders if decoders.iter().any(|d| matches!(d, DecoderWrapper::ByteFallback(_))) => Bytes::Fallback,
            _ => Bytes::None,
        },
        _ => Bytes::None,
    }
}

/// The first token that is a plain word, with a text of its own.
fn anchor(tokenizer: &Tokenizer) -> Option<u32> {
    let added = tokenizer.get_added_vocabulary();
    (0..tokenizer.get_vocab_size(true) as u32).find(|&id| {
        added.simple_id_to_token(id).is_none()
            && tokenizer.id_to_token(id).is_some_and(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_alphanumeric()))
            && tokenizer.decode(&[id], true).is_ok_and(|text| !text.is_empty())
    })
}

/// The byte that a character of GPT-2's byte alphabet stands for: printable Latin-1 is itself, and the other 68 bytes
/// are U+0100 and on (`bytes_to_unicode` in GPT-2's `encoder.py`).
fn byte_of(c: char) -> Option<u8> {
    let code = u32::from(c);
    match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => u8::try_from(code).ok(),
        0x100..=0x143 => {
            let byte = match code - 0x100 {
                n @ 0..=0x20 => n,
                n @ 0x21..=0x42 => n - 0x21 + 0x7F,
                _ => 0xAD,
            };
            u8::try_from(byte).ok()
        }
        _ => None,
    }
}

fn fallback_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    // `from_str_radix` alone takes a sign for a digit.
    if hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit()) { u8::from_str_radix(hex, 16).ok() } else { None }
}

/// Turns the ids of one generation into text one by one, never splitting a character.
///
/// - All pushes and the finish together are the text that continues a prompt: a leading space of the first word stays.
/// - Special tokens have no text, nor have ids that the tokenizer does not know.
/// - Bytes that are not UTF-8 become U+FFFD, one for each maximal broken sequence, as `String::from_utf8_lossy` does.
pub struct TextDecoder {
    shared: Arc<Detokenizer>,
    /// The start of a character whose other bytes have not come; at most three.
    bytes: Vec<u8>,
    /// Ids kept back because their text is not certain yet.
    held: Vec<u32>,
    /// The token before those.
    context: Option<u32>,
}

impl TextDecoder {
    pub(super) fn new(shared: Arc<Detokenizer>) -> Self {
        Self { shared, bytes: Vec::new(), held: Vec::new(), context: None }
    }

    /// The text that has become certain with `id`; may be empty.
    ///
    /// # Errors
    /// [`Error::GenerationFailed`] if the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        match self.shared.piece(id) {
            Piece::Nothing => Ok(String::new()),
            Piece::Bytes(bytes) => {
                let mut text = self.release()?;
                self.context = None;
                self.bytes.extend(bytes);
                self.whole_characters(&mut text);
                Ok(text)
            }
            Piece::Token => {
                let mut text = self.broken_character();
                self.held.push(id);
                let new = self.shared.continuation(self.context, &self.held)?;
                if !new.ends_with(char::REPLACEMENT_CHARACTER) || self.held.len() >= MAX_HELD {
                    text.push_str(&new);
                    self.context = self.held.pop();
                    self.held.clear();
                }
                Ok(text)
            }
        }
    }

    /// The rest, when no more ids come. The decoder is then as new.
    ///
    /// # Errors
    /// [`Error::GenerationFailed`] if the tokenizer's decoder fails.
    pub fn finish(&mut self) -> Result<String> {
        let mut text = self.release()?;
        text.push_str(&self.broken_character());
        self.context = None;
        Ok(text)
    }

    /// The text of the held ids.
    fn release(&mut self) -> Result<String> {
        if self.held.is_empty() {
            return Ok(String::new());
        }
        let text = self.shared.continuation(self.context, &self.held)?;
        self.held.clear();
        Ok(text)
    }

    /// Moves all that is certain from the bytes to `text`.
    fn whole_characters(&mut self, text: &mut String) {
        loop {
            match str::from_utf8(&self.bytes) {
                Ok(valid) => {
                    text.push_str(valid);
                    self.bytes.clear();
                    return;
                }
                Err(error) => {
                    let (valid, broken) = (error.valid_up_to(), error.error_len());
                    text.push_str(&String::from_utf8_lossy(&self.bytes[..valid]));
                    if let Some(length) = broken {
                        text.push(char::REPLACEMENT_CHARACTER);
                        self.bytes.drain(..valid + length);
                    } else {
                        self.bytes.drain(..valid);
                        return;
                    }
                }
            }
        }
    }

    /// U+FFFD if a character has begun and will not be completed.
    fn broken_character(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.bytes).into_owned();
        self.bytes.clear();
        text
    }
}

impl std::fmt::Debug for TextDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextDecoder").field("bytes", &self.bytes).field("held", &self.held).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    #[test]
    fn the_byte_alphabet_is_that_of_the_tokenizers_crate() {
        let mut bytes: Vec<u8> = ByteLevel::alphabet().into_iter().map(|c| byte_of(c).unwrap()).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        for (c, byte) in [('Ġ', b' '), ('Ċ', b'\n'), ('ĉ', b'\t'), ('!', b'!'), ('ł', 0xA0), ('Ń', 0xAD), ('ð', 0xF0)]
        {
            assert_eq!(byte_of(c), Some(byte), "{c}");
        }
        assert_eq!((byte_of(' '), byte_of('\u{144}'), byte_of('日')), (None, None, None));
    }

    #[test]
    fn a_fallback_byte_has_two_hex_digits() {
        assert_eq!(fallback_byte("<0x0A>"), Some(10));
        for token in ["<0xA>", "<0x0AB>", "<0xZZ>", "0x0A", "<0x+A>"] {
            assert_eq!(fallback_byte(token), None, "{token}");
        }
    }
}
