//! SentencePiece BPE by scores.
//!
//! SentencePiece joins the neighbours whose union has the highest score. The tokenizers crate joins by rank of a pair:
//! every way to cut a piece into two pieces becomes a merge, and the merges are ordered by the score of the piece,
//! as transformers' `SpmConverter` does.

use std::collections::HashMap;

use llm_local_core::{Error, Result, model::GgufMetadata};
use tokenizers::{
    DecoderWrapper, NormalizerWrapper, Tokenizer, decoders,
    decoders::byte_fallback::ByteFallback,
    decoders::fuse::Fuse,
    decoders::strip::Strip,
    models::bpe::{BPE, Vocab},
    normalizers,
    normalizers::Prepend,
    normalizers::Replace,
};

use super::{TokenKind, Vocabulary, add_sequence_tokens, add_tokens};

/// SentencePiece's sign for a space.
const SPACE: &str = "▁";

pub(super) fn build(model: &str, gguf: &GgufMetadata, vocabulary: &Vocabulary<'_>) -> Result<Tokenizer> {
    let failed = |error: tokenizers::Error| Error::load(model, format!("its GGUF tokenizer is broken: {error}"));
    let ids = vocabulary.ids(model)?;
    let merges = merges(vocabulary, scores(model, gguf)?);
    let bytes = (0..=u8::MAX).filter(|b| ids.contains_key(format!("<0x{b:02X}>").as_str())).count();
    let mut bpe = BPE::builder()
        .vocab_and_merges(ids.into_iter().map(|(token, id)| (token.to_owned(), id)).collect::<Vocab>(), merges)
        .byte_fallback(bytes == 256)
        .fuse_unk(true);
    if let Some(unknown) = vocabulary.special_id(gguf, "unk") {
        bpe = bpe.unk_token(vocabulary.token(unknown).to_owned());
    }

    // Every text between special tokens gets the prefix, as in llama.cpp and in transformers' `legacy` behaviour.
    let prefix = gguf.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    let mut normalizer = Vec::new();
    let mut decoder = vec![
        DecoderWrapper::Replace(Replace::new(SPACE, " ").map_err(failed)?),
        DecoderWrapper::ByteFallback(ByteFallback::new()),
        DecoderWrapper::Fuse(Fuse::new()),
    ];
    if prefix {
        normalizer.push(NormalizerWrapper::Prepend(Prepend::new(SPACE.into())));
        decoder.push(DecoderWrapper::Strip(Strip::new(' ', 1, 0)));
    }
    normalizer.push(NormalizerWrapper::Replace(Replace::new(" ", SPACE).map_err(failed)?));

    let mut tokenizer = Tokenizer::new(bpe.build().map_err(failed)?);
    tokenizer
        .with_normalizer(Some(normalizers::Sequence::new(normalizer)))
        .map_err(failed)?
        .with_decoder(Some(DecoderWrapper::Sequence(decoders::sequence::Sequence::new(decoder))));
    add_tokens(model, gguf, vocabulary, &mut tokenizer)?;
    add_sequence_tokens(model, gguf, vocabulary, true, &mut tokenizer)?;
    Ok(tokenizer)
}

/// A score per token. Their order decides what is joined, so they cannot be done without.
fn scores<'a>(model: &str, gguf: &'a GgufMetadata) -> Result<&'a [f32]> {
    let tokens = gguf.strings("tokenizer.ggml.tokens").map_or(0, <[String]>::len);
    match gguf.floats("tokenizer.ggml.scores") {
        Some(scores) if scores.len() == tokens && scores.iter().all(|s| !s.is_nan()) => Ok(scores),
        found => Err(Error::load(
            model,
            format!(
                "`tokenizer.ggml.scores` of its GGUF metadata has {}; expected a number for each of {tokens} tokens; convert the model again",
                match found {
                    None => "no values".to_owned(),
                    Some(s) if s.len() != tokens => format!("{} values", s.len()),
                    Some(_) => "values that are not numbers".to_owned(),
                }
            ),
        )),
    }
}

/// All merges, best first: by score, then by the lengths of left and right side, then by the order of the pieces.
fn merges(vocabulary: &Vocabulary<'_>, scores: &[f32]) -> Vec<(String, String)> {
    let text = |kind| matches!(kind, TokenKind::Normal | TokenKind::UserDefined);
    let pieces: HashMap<&str, u32> =
        vocabulary.iter().filter(|&(_, _, kind)| text(kind)).map(|(id, piece, _)| (piece, id)).collect();
    let mut merges = Vec::new();
    for (id, piece, _) in vocabulary.iter().filter(|&(_, _, kind)| text(kind)) {
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if let (Some(&l), Some(&r)) = (pieces.get(left), pieces.get(right)) {
                merges.push((
                    scores[id as usize],
                    (left.chars().count(), right.chars().count()),
                    (l, r),
                    (left, right),
                ));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(a.2.cmp(&b.2)));
    merges.into_iter().map(|(_, _, _, (left, right))| (left.to_owned(), right.to_owned())).collect()
}
