//! The suites for plugin authors, over the built-in plugins.

#![cfg(all(feature = "candle", feature = "local"))]

use std::sync::Arc;

use llm_local::{
    ArtifactRef, builtin,
    core::{
        FetchContext, LoadOptions, LoadedModel, ModelWeights, Opened, Want,
        backend::{Capabilities, Support},
    },
};
use llm_local_testkit::conformance;
use llm_local_weights::Checkpoint;

fn fixture(path: &str) -> ArtifactRef {
    ArtifactRef::file(format!("{}/tests/fixtures/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// A model of the fixtures, opened from where the local source says that its files are.
async fn open(path: &str) -> Checkpoint {
    let reference = fixture(path);
    let source = builtin::registry().unwrap().model_source(&reference).unwrap();
    let cx = FetchContext::new();
    let manifest = source.resolve(&reference, Want::Model, &cx).await.unwrap();
    let mut files = std::collections::BTreeMap::new();
    for file in &manifest.files {
        match source.open(&manifest, file, 0..file.size, &cx).await.unwrap() {
            Opened::Local(at) => files.insert(file.path.clone(), at),
            other => panic!("{} is local, but was opened as {other:?}", file.path),
        };
    }
    Checkpoint::open(path, &files).unwrap()
}

/// A model in memory, and what the backend says that it can do with it.
async fn load(path: &str, context: usize) -> (Arc<dyn LoadedModel>, Capabilities) {
    let checkpoint = open(path).await;
    let weights = ModelWeights::new(checkpoint.info, Some(checkpoint.tensors), checkpoint.text);
    let backend = builtin::registry().unwrap().backend("candle").unwrap();
    let options = LoadOptions::new(context);
    let capabilities = match backend.supports(&weights.info, &options) {
        Support::Yes(capabilities) => capabilities,
        other => panic!("{path}: {other:?}"),
    };
    (backend.load(weights, options).await.unwrap(), capabilities)
}

#[test]
fn the_local_source_keeps_the_contract() {
    let registry = builtin::registry().unwrap();
    pollster::block_on(async {
        for path in ["models/tiny-llama", "gguf/tiny-llama-q4_0.gguf"] {
            let reference = fixture(path);
            let source = registry.model_source(&reference).unwrap();
            conformance::model_source(source.as_ref(), &reference).await;
        }
        for path in ["adapters/tiny-llama-lora-peft", "adapters/tiny-llama-lora-peft/adapter_model.safetensors"] {
            let reference = fixture(path);
            let source = registry.adapter_source(&reference).unwrap();
            conformance::adapter_source(source.as_ref(), &reference).await;
        }
    });
}

#[test]
fn weights_keep_the_contract_in_every_format() {
    for path in
        ["models/tiny-llama", "gguf/tiny-llama-f16.gguf", "gguf/tiny-llama-bf16.gguf", "gguf/tiny-llama-q4_0.gguf"]
    {
        conformance::tensor_source(pollster::block_on(open(path)).tensors.as_ref());
    }
}

#[test]
fn candle_keeps_the_contract_for_every_kind_of_model() {
    // Dense, quantized, with windows and two rotary tables, and one that runs through candle-transformers.
    for (path, sessions) in [
        ("models/tiny-llama", true),
        ("gguf/tiny-llama-q8_0.gguf", true),
        ("models/arch-gemma3", true),
        ("models/arch-phi", false),
    ] {
        pollster::block_on(async {
            let (model, capabilities) = load(path, 96).await;
            assert_eq!(capabilities.sessions, sessions, "{path}");
            conformance::sessions(model.as_ref(), &capabilities, "Once upon a time there was a").await;
            conformance::loaded_model(model.as_ref(), "Once upon a time there was a").await;
        });
    }
}
