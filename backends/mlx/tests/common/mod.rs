//! Models of the fixtures, loaded with MLX.

// Each test program uses some of it.
#![allow(dead_code)]

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use llm_local_core::{InferenceBackend, LoadOptions, LoadedModel, ModelWeights, Result};
use llm_local_mlx::MlxBackend;
use llm_local_weights::Checkpoint;
use pollster::block_on;
use serde_json::Value;

pub(crate) fn fixture(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")).join(path)
}

/// The checkpoint of a folder of Hugging Face's layout.
pub(crate) fn checkpoint(name: &str) -> Checkpoint {
    const FILES: [&str; 6] = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ];
    let path = |file: &str| fixture(&format!("models/{name}")).join(file);
    let files: BTreeMap<_, _> = FILES.map(|file| (file.to_owned(), path(file))).into();
    Checkpoint::open(name, &files.into_iter().filter(|(_, path)| path.exists()).collect()).unwrap()
}

pub(crate) fn dense() -> Checkpoint {
    checkpoint("tiny-llama")
}

pub(crate) fn packed() -> Checkpoint {
    checkpoint("tiny-llama-mlx-4bit")
}

pub(crate) fn weights(c: Checkpoint) -> ModelWeights {
    ModelWeights::new(c.info, Some(c.tensors), c.text)
}

pub(crate) fn load(c: Checkpoint, o: LoadOptions) -> Result<Arc<dyn LoadedModel>> {
    block_on(MlxBackend::new().load(weights(c), o))
}

/// Prompt and greedy continuation of the first prompt of a reference.
pub(crate) fn reference(name: &str) -> (Vec<u32>, Vec<u32>) {
    let path = fixture(&format!("reference/{name}.json"));
    let json: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let ids = |v: &Value| v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect();
    (ids(&json["results"][0]["prompt_ids"]), ids(&json["results"][0]["greedy_ids"]))
}
