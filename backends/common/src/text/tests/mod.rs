//! Tests of the text side as a whole, on the fixtures.

mod chat;
mod decode;
mod encode;
mod end;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use llm_local_core::{
    TextFiles,
    model::{GgufMetadata, GgufValue},
};
use serde_json::{Value, json};

use super::TextPipeline;

/// The path of a fixture.
fn fixture(name: &str) -> PathBuf {
    [concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures"), name].iter().collect()
}

fn read_json(name: &str) -> Value {
    serde_json::from_slice(&fs_err::read(fixture(name)).unwrap()).unwrap()
}

/// GGUF metadata written as JSON.
fn metadata(name: &str) -> GgufMetadata {
    let Value::Object(pairs) = read_json(name) else { panic!("{name} is not an object") };
    pairs.into_iter().map(|(key, value)| (key, gguf_value(value))).collect()
}

fn gguf_value(value: Value) -> GgufValue {
    match value {
        Value::Bool(b) => GgufValue::Bool(b),
        Value::String(s) => GgufValue::String(s),
        Value::Number(n) => match n.as_i64() {
            Some(n) => GgufValue::Int(n.into()),
            None => GgufValue::Float(n.as_f64().unwrap()),
        },
        Value::Array(a) if a.iter().all(Value::is_string) => {
            GgufValue::Strings(a.into_iter().map(|v| v.as_str().unwrap().to_owned()).collect())
        }
        Value::Array(a) if a.iter().all(Value::is_i64) => {
            GgufValue::Ints(a.iter().map(|v| v.as_i64().unwrap()).collect())
        }
        Value::Array(a) => GgufValue::Floats(a.iter().map(|v| v.as_f64().unwrap() as f32).collect()),
        other => panic!("{other} is no value of GGUF metadata"),
    }
}

/// The text side of GGUF metadata.
fn from_metadata(gguf: GgufMetadata) -> TextPipeline {
    TextPipeline::open("model", &TextFiles::from_gguf(Arc::new(gguf))).unwrap()
}

/// SmolLM2-135M-Instruct, from the metadata of its GGUF file.
fn smollm2() -> TextPipeline {
    from_metadata(metadata("tokenizers/smollm2-135m.gguf.json"))
}

/// A SentencePiece tokenizer with 256 byte tokens.
fn sentencepiece() -> TextPipeline {
    from_metadata(metadata("tokenizers/sentencepiece.gguf.json"))
}

/// The files of tiny-llama.
fn tiny_llama_files() -> BTreeMap<String, PathBuf> {
    ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"]
        .into_iter()
        .map(|name| (name.to_owned(), fixture("models/tiny-llama").join(name)))
        .collect()
}

fn tiny_llama() -> TextPipeline {
    TextPipeline::open("tiny-llama", &TextFiles::from_files(tiny_llama_files())).unwrap()
}

/// A folder with the given files, and its text side.
fn from_files(files: &[(&str, Value)]) -> llm_local_core::Result<TextPipeline> {
    let folder = tempfile::tempdir().unwrap();
    let mut map = BTreeMap::new();
    for (name, value) in files {
        let path = folder.path().join(name);
        let text = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        fs_err::write(&path, text).unwrap();
        map.insert((*name).to_owned(), path);
    }
    TextPipeline::open("model", &TextFiles::from_files(map))
}

/// A `tokenizer.json` of whole words: `<s>`, `</s>`, `<|turn|>`, `hello`, `world`.
fn word_tokenizer() -> Value {
    let special = |id: u32, token: &str| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<s>"), special(1, "</s>"), special(2, "<|turn|>")],
        "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "decoder": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
        "model": {"type": "WordLevel", "unk_token": "hello",
            "vocab": {"<s>": 0, "</s>": 1, "<|turn|>": 2, "hello": 3, "world": 4}},
    })
}
