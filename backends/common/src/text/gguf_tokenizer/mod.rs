//! The tokenizers that GGUF metadata describes, built as the tokenizer of the tokenizers crate that does the same.
//!
//! | module | what it holds |
//! |---|---|
//! | [`vocabulary`] | tokens, their kinds, special ids |
//! | [`bpe`] | `tokenizer.ggml.model` = `gpt2`: byte-level BPE by merges |
//! | [`pre_tokenizer`] | how `tokenizer.ggml.pre` splits text before BPE |
//! | [`spm`] | `tokenizer.ggml.model` = `llama`: SentencePiece BPE by scores |
//!
//! Source: `src/llama-vocab.cpp` of llama.cpp, and the keys in `docs/gguf.md` of ggml.

mod bpe;
mod pre_tokenizer;
mod spm;
mod vocabulary;

use llm_local_core::{Error, Result, model::GgufMetadata};
use tokenizers::{
    AddedToken, Tokenizer,
    processors::template::{SpecialToken, TemplateProcessing},
};

#[cfg(test)]
pub(super) use pre_tokenizer::PreTokenizer;
pub(super) use vocabulary::{TokenKind, Vocabulary};

/// What to do where the metadata cannot be used. Files beside a GGUF file that is given alone are not looked at.
const BY_FILE: &str =
    "put the model's tokenizer.json into a folder with the GGUF file, and give the folder that holds both";

/// The tokenizer of `gguf`.
///
/// # Errors
/// [`Error::UnsupportedModelFormat`] for a kind of tokenizer or pre-tokenizer that is not known here, with the known
/// ones; [`Error::LoadFailed`] for metadata that contradicts itself.
pub(super) fn build(model: &str, gguf: &GgufMetadata) -> Result<Tokenizer> {
    let Some(vocabulary) = Vocabulary::of(model, gguf)? else {
        return Err(Error::unsupported_format(
            model,
            format!(
                "its GGUF metadata has no `tokenizer.ggml.tokens`; use a GGUF file with its tokenizer in it, or {BY_FILE}"
            ),
        ));
    };
    match gguf.string("tokenizer.ggml.model") {
        Some("gpt2") => bpe::build(model, gguf, &vocabulary),
        Some("llama") => spm::build(model, gguf, &vocabulary),
        other => Err(Error::unsupported_format(
            model,
            format!(
                "`tokenizer.ggml.model` is {}; known are `gpt2` (byte-level BPE) and `llama` (SentencePiece BPE); {BY_FILE}",
                other.map_or("missing".to_owned(), |name| format!("`{name}`"))
            ),
        )),
    }
}

/// Makes control and user-defined tokens recognized in text: the former special (they have no text when decoded), the
/// latter not.
fn add_tokens(model: &str, gguf: &GgufMetadata, vocabulary: &Vocabulary<'_>, tokenizer: &mut Tokenizer) -> Result<()> {
    // The one attribute that GGUF drops and that matters for generation; llama.cpp too goes by the model's name.
    let phi3 =
        gguf.string("general.name").map(str::to_lowercase).is_some_and(|n| n.contains("phi-3") || n.contains("phi3"));
    let rstrip = |token: &str| phi3 && !["<unk>", "<s>", "<|endoftext|>"].contains(&token);
    let of_kind = |special: bool| {
        vocabulary.iter().filter(move |&(_, _, kind)| match kind {
            TokenKind::Control | TokenKind::Unknown => special,
            TokenKind::UserDefined => !special,
            TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => false,
        })
    };
    let failed = |error| Error::load(model, format!("its special tokens cannot be added to the tokenizer: {error}"));
    let special = of_kind(true).map(|(_, token, _)| AddedToken::from(token, true).rstrip(rstrip(token)));
    tokenizer.add_special_tokens(special.collect::<Vec<_>>()).map_err(failed)?;
    let plain = of_kind(false).map(|(_, token, _)| AddedToken::from(token, false).normalized(false));
    tokenizer.add_tokens(plain.collect::<Vec<_>>()).map_err(failed)?;
    Ok(())
}

/// Makes the tokenizer put the begin- and end-of-sequence tokens around a text, where the metadata, or else what
/// llama.cpp assumes for this kind of tokenizer, says so.
fn add_sequence_tokens(
    model: &str,
    gguf: &GgufMetadata,
    vocabulary: &Vocabulary<'_>,
    bos_by_default: bool,
    tokenizer: &mut Tokenizer,
) -> Result<()> {
    let mut template = vec!["$A".to_owned()];
    let mut tokens = Vec::new();
    for (name, default) in [("bos", bos_by_default), ("eos", false)] {
        let asked = gguf.bool(&format!("tokenizer.ggml.add_{name}_token"));
        if !asked.unwrap_or(default) {
            continue;
        }
        match vocabulary.special_id(gguf, name) {
            Some(id) => {
                let at = if name == "bos" { 0 } else { template.len() };
                template.insert(at, name.to_owned());
                tokens.push((name, id));
            }
            None if asked.is_none() => {}
            None => {
                return Err(Error::load(
                    model,
                    format!(
                        "`tokenizer.ggml.add_{name}_token` is true, but `tokenizer.ggml.{name}_token_id` names no token; convert the model again"
                    ),
                ));
            }
        }
    }
    if tokens.is_empty() {
        return Ok(());
    }
    let failed =
        |error: String| Error::load(model, format!("its begin- or end-of-sequence token cannot be used: {error}"));
    let tokens = tokens
        .into_iter()
        .map(|(name, id)| SpecialToken::new(name.to_owned(), vec![id], vec![vocabulary.token(id).to_owned()]))
        .collect::<tokenizers::Result<Vec<_>>>()
        .map_err(|error| failed(error.to_string()))?;
    let processor = TemplateProcessing::builder()
        .try_single(template)
        .map_err(failed)?
        .special_tokens(tokens)
        .build()
        .map_err(|error| failed(error.to_string()))?;
    tokenizer.with_post_processor(Some(processor));
    Ok(())
}
