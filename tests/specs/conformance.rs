//! The suites for plugin authors, over the built-in plugins.

#![cfg(all(feature = "candle", feature = "local"))]

use std::sync::Arc;

use llm_local::{
    ArtifactRef, ComputeDtype, builtin,
    core::{
        FetchContext, LoadOptions, LoadedModel, ModelWeights, Opened, Want,
        backend::{Capabilities, Support},
    },
    lora::{self, LoraAdapter, MergedSource},
};
use llm_local_testkit::conformance::{self, UnmergedCase};
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

/// An adapter of the fixtures, read.
fn adapter(path: &str) -> Arc<LoraAdapter> {
    let reference = fixture(path);
    let folder = std::path::Path::new(reference.locator());
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = files.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path)).collect();
    Arc::new(lora::read(&reference, &files).unwrap())
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

/// Merged, the touched tensors of a quantized base are floats, and their products with activations too; beside the weights,
/// products with blocks round activations to 8 bits.
#[test]
fn candle_keeps_the_contract_of_adapters_beside_the_weights() {
    let backend = builtin::registry().unwrap().backend("candle").unwrap();
    for (path, lora, tokens, tolerance, rounding) in [
        ("models/tiny-llama", "adapters/tiny-llama-lora-peft", 896, 2e-5, 2e-5),
        // Measured: 0.19, of one token.
        ("gguf/tiny-llama-q8_0.gguf", "adapters/tiny-llama-lora-peft", 896, 1e-4, 0.25),
        // Queries, keys and values are one module, and gate and up.
        ("models/arch-phi3", "adapters/arch-phi3-lora", 380, 2e-5, 2e-5),
        // No adapter runs where candle-transformers computes.
        ("models/arch-phi", "adapters/arch-phi-lora", 380, 2e-5, 2e-5),
    ] {
        let lora = adapter(lora);
        let base = || {
            let checkpoint = pollster::block_on(open(path));
            ModelWeights::new(checkpoint.info, Some(checkpoint.tensors), checkpoint.text)
        };
        let merged = || {
            let checkpoint = pollster::block_on(open(path));
            let merged = MergedSource::new(checkpoint.tensors, vec![(lora.clone(), 1.0)], &checkpoint.info).unwrap();
            ModelWeights::new(merged.info().clone(), Some(Arc::new(merged)), checkpoint.text)
        };
        let case = UnmergedCase::new(&base, &merged, lora.clone(), "Once upon a time there was a");
        let options = LoadOptions::new(96).with_device("cpu").with_dtype(ComputeDtype::F32);
        let case = case.with_tolerance(tolerance).with_rounding(rounding).with_tokens(tokens);
        pollster::block_on(conformance::unmerged(backend.as_ref(), &options, &case));
    }
}
