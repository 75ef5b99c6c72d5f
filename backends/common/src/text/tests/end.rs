//! The ids that end a generation.

use llm_local_core::model::GgufValue;

use super::*;

/// The ids for these configuration files beside the word tokenizer.
fn eos(configs: &[(&str, Value)]) -> llm_local_core::Result<Vec<u32>> {
    let mut files = vec![("tokenizer.json", word_tokenizer())];
    files.extend(configs.iter().map(|(name, value)| (*name, value.clone())));
    from_files(&files).map(|pipeline| pipeline.eos_ids().to_vec())
}

#[test]
fn the_generation_config_decides_and_the_model_config_is_its_fallback() {
    let generation = |ids: Value| ("generation_config.json", json!({"eos_token_id": ids}));
    let model = |ids: Value| ("config.json", json!({"eos_token_id": ids}));
    assert_eq!(eos(&[generation(json!([4, 2])), model(json!(3))]).unwrap(), [2, 4]);
    assert_eq!(eos(&[generation(json!(1)), model(json!(3))]).unwrap(), [1]);
    assert_eq!(eos(&[generation(Value::Null), model(json!(3))]).unwrap(), [3]);
    assert_eq!(eos(&[model(json!([3, 1, 3]))]).unwrap(), [1, 3]);
    assert_eq!(eos(&[("config.json", json!({"text_config": {"eos_token_id": 4}}))]).unwrap(), [4]);
    assert_eq!(eos(&[]).unwrap(), [0u32; 0]);
}

#[test]
fn the_tokenizers_own_end_token_is_always_one() {
    let tokenizer = |token: Value| ("tokenizer_config.json", json!({"eos_token": token}));
    let generation = ("generation_config.json", json!({"eos_token_id": 1}));
    assert_eq!(eos(&[generation.clone(), tokenizer(json!("<|turn|>"))]).unwrap(), [1, 2]);
    assert_eq!(eos(&[tokenizer(json!({"content": "</s>"}))]).unwrap(), [1]);
    assert_eq!(eos(&[generation, tokenizer(json!("<absent>"))]).unwrap(), [1]);
}

#[test]
fn an_end_id_that_is_none_names_its_file() {
    for bad in [json!("</s>"), json!(-1), json!([1, "x"]), json!(1.5), json!(1u64 << 40)] {
        let error = eos(&[("generation_config.json", json!({"eos_token_id": bad}))]).unwrap_err().to_string();
        assert!(error.contains("generation_config.json") && error.contains(&bad.to_string()), "{error}");
    }
}

#[test]
fn the_fixtures_have_their_end_ids() {
    assert_eq!(tiny_llama().eos_ids(), [0, 2]);
    assert_eq!(smollm2().eos_ids(), [0, 2]);
    assert_eq!(sentencepiece().eos_ids(), [2]);
}

#[test]
fn gguf_metadata_adds_end_of_turn_ids_and_tokens_known_by_name() {
    let with = |changes: &[(usize, &str, i64)], keys: &[(&str, i128)]| {
        let mut gguf = metadata("tokenizers/sentencepiece.gguf.json");
        let mut tokens = gguf.strings("tokenizer.ggml.tokens").unwrap().to_vec();
        let mut kinds = gguf.ints("tokenizer.ggml.token_type").unwrap().to_vec();
        for &(id, token, kind) in changes {
            tokens[id] = token.to_owned();
            kinds[id] = kind;
        }
        gguf.insert("tokenizer.ggml.tokens", GgufValue::Strings(tokens));
        gguf.insert("tokenizer.ggml.token_type", GgufValue::Ints(kinds));
        for &(key, id) in keys {
            gguf.insert(key, GgufValue::Int(id));
        }
        from_metadata(gguf).eos_ids().to_vec()
    };
    assert_eq!(with(&[], &[("tokenizer.ggml.eot_token_id", 300), ("tokenizer.ggml.eom_token_id", 301)]), [2, 300, 301]);
    assert_eq!(with(&[], &[("tokenizer.ggml.eot_token_id", 99_999)]), [2]);
    assert_eq!(with(&[(310, "<end_of_turn>", 3), (311, "<|end|>", 4)], &[]), [2, 310, 311]);
    // A piece of text that looks like one is none.
    assert_eq!(with(&[(310, "<end_of_turn>", 1)], &[]), [2]);
    // Harmony: a message ends with `<|end|>`, the turn does not.
    assert_eq!(with(&[(310, "<|end|>", 3), (311, "<|return|>", 3), (312, "<|call|>", 3)], &[]), [2, 311, 312]);
}
