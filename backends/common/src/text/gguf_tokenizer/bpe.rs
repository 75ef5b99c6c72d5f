//! Byte-level BPE by merges, as GPT-2 has it.

use llm_local_core::{Error, Result, model::GgufMetadata};
use tokenizers::{
    DecoderWrapper, Tokenizer,
    decoders::byte_level::ByteLevel,
    models::bpe::{BPE, Vocab},
};

use super::{Vocabulary, add_sequence_tokens, add_tokens, pre_tokenizer::PreTokenizer};

pub(super) fn build(model: &str, gguf: &GgufMetadata, vocabulary: &Vocabulary<'_>) -> Result<Tokenizer> {
    let pre_tokenizer = PreTokenizer::of(model, gguf.string("tokenizer.ggml.pre"))?;
    let ids = vocabulary.ids(model)?;
    let Some(merges) = gguf.strings("tokenizer.ggml.merges") else {
        return Err(Error::load(model, "its GGUF metadata has no `tokenizer.ggml.merges`; convert the model again"));
    };
    let merges = merges
        .iter()
        .enumerate()
        .map(|(number, merge)| {
            let pair = split(merge).filter(|&(left, right)| {
                [left, right, &[left, right].concat()].into_iter().all(|piece| ids.contains_key(piece))
            });
            match pair {
                Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
                None => Err(Error::load(
                    model,
                    format!(
                        "merge {number} of its GGUF metadata is `{merge}`; expected two tokens that together are a token; convert the model again"
                    ),
                )),
            }
        })
        .collect::<Result<Vec<_>>>()?;
    let bpe = BPE::builder()
        .vocab_and_merges(ids.into_iter().map(|(token, id)| (token.to_owned(), id)).collect::<Vocab>(), merges)
        .ignore_merges(pre_tokenizer.ignore_merges())
        .build()
        .map_err(|error| Error::load(model, format!("its GGUF tokenizer is broken: {error}")))?;

    let mut tokenizer = Tokenizer::new(bpe);
    tokenizer
        .with_pre_tokenizer(Some(pre_tokenizer.build(model)?))
        .with_decoder(Some(DecoderWrapper::ByteLevel(ByteLevel::default())));
    add_tokens(model, gguf, vocabulary, &mut tokenizer)?;
    add_sequence_tokens(model, gguf, vocabulary, pre_tokenizer.adds_bos(), &mut tokenizer)?;
    Ok(tokenizer)
}

/// The two sides of a merge. A token may itself begin with a space, never contain one further on.
fn split(merge: &str) -> Option<(&str, &str)> {
    let first = merge.chars().next()?.len_utf8();
    let at = first + merge[first..].find(' ')?;
    Some((&merge[..at], &merge[at + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_splits_at_the_first_space_that_is_not_its_first_character() {
        assert_eq!(split("Ġ t"), Some(("Ġ", "t")));
        assert_eq!(split("  b"), Some((" ", "b")));
        assert_eq!(split("ab"), None);
        assert_eq!(split(""), None);
    }
}
