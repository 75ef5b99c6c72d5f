//! What tokenizer and chat template take.

use llm_local_core::{ModelFormat, ModelInfo};

/// A string on the heap, as the allocator holds those of up to 24 bytes: nearly all tokens are such.
const STRING: u64 = 32;

/// A slot of a table from text to id, or from id to text: 24 bytes of `String` and 4 of id, aligned.
const TOKEN_SLOT: u64 = 32;

/// A slot of the table of merges: two pairs of 4 bytes each.
const MERGE_SLOT: u64 = 16;

/// Merges per token where they are not known. As published: 1 of GPT-2, Qwen 2 and SmolLM2, whose merges make a token each;
/// 1.9 of Llama 2, 2.2 of Llama 3 and 2.3 of Gemma, whose tokenizers were converted to every way to cut a token in two.
const MERGES_PER_TOKEN: u64 = 2;

/// Compiled patterns, the template and its engine, added tokens, and the tables of a backend's and of the tokenizer's threads.
const BESIDE: u64 = 1 << 20;

/// Bytes of tokenizer and chat template of a model whose vocabulary has `vocab` tokens, padding included.
///
/// By how the crate tokenizers 0.23 holds BPE (`models/bpe/model.rs`): a table from text to id, one from id to text, each
/// with strings of its own, and the merges. What GGUF metadata say is counted; of a `tokenizer.json`, which is not read
/// before a load, nothing is known but the size of the vocabulary. A Unigram tokenizer, which has a tree instead of
/// merges, takes several times as much; which one a folder has is known from `tokenizer.json` alone.
pub fn text_bytes(info: &ModelInfo, vocab: usize) -> u64 {
    let gguf = match &info.format {
        ModelFormat::Gguf { metadata } => Some(metadata),
        _ => None,
    };
    let count = |key: &str| gguf.and_then(|metadata| metadata.strings(key)).map(|all| all.len() as u64);
    let tokens = count("tokenizer.ggml.tokens").unwrap_or(vocab as u64);
    let merges = count("tokenizer.ggml.merges").unwrap_or(MERGES_PER_TOKEN.saturating_mul(tokens));
    let strings = tokens.saturating_mul(STRING);
    [table(tokens, TOKEN_SLOT), strings, table(tokens, TOKEN_SLOT), strings, table(merges, MERGE_SLOT), BESIDE]
        .into_iter()
        .fold(0, u64::saturating_add)
}

/// Bytes of a hash table of `entries` in slots of `slot` bytes: a power of two of slots, at most 7/8 of them in use, with a byte
/// for each beside it.
fn table(entries: u64, slot: u64) -> u64 {
    let slots = (entries.saturating_mul(8) / 7 + 1).checked_next_power_of_two().unwrap_or(u64::MAX);
    slots.saturating_mul(slot + 1)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use llm_local_core::{GgufMetadata, GgufValue};
    use serde_json::json;

    use super::*;

    #[test]
    fn tables_have_a_power_of_two_of_slots() {
        assert_eq!(table(7, 31), 16 * 32);
        assert_eq!(table(6, 31), 8 * 32);
        assert_eq!(table(57_343, 32), 65_536 * 33);
        assert_eq!(table(57_344, 32), 131_072 * 33);
    }

    #[test]
    fn what_gguf_metadata_say_is_counted_and_not_the_padded_vocabulary() {
        let strings = |n: usize| GgufValue::Strings(vec![String::new(); n]);
        let metadata: GgufMetadata = [
            ("tokenizer.ggml.tokens".to_owned(), strings(50_000)),
            ("tokenizer.ggml.merges".to_owned(), strings(40_000)),
        ]
        .into_iter()
        .collect();
        let gguf = ModelInfo::new("m", ModelFormat::Gguf { metadata: Arc::new(metadata) }, []);
        let counted = 2 * 65_536 * 33 + 2 * 50_000 * 32 + 65_536 * 17 + BESIDE;
        assert_eq!(text_bytes(&gguf, 1_000_000), counted);
        let folder = ModelInfo::new("m", ModelFormat::Safetensors { config: Arc::new(json!({})) }, []);
        assert_eq!(text_bytes(&folder, 50_000), counted + 65_536 * 17);
    }
}
