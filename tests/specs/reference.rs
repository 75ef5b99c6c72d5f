//! From a spec to logits and tokens, against transformers + PEFT in f32: GGUF files, shards, and what adapters change. Every
//! checkpoint on every backend is compared in `tests/backends`.

#![cfg(all(feature = "candle", feature = "local"))]

use std::{collections::BTreeMap, fs, path::Path};

use crate::common::{compare, engine, fixture, fixture_ref, max_difference, reference, tiny};
use llm_local::{
    ArtifactRef, ComputeDtype, Engine, LogitsRequest, ModelSpec,
    core::{LoadOptions, ModelWeights},
};
use llm_local_weights::Checkpoint;
use pollster::block_on;
use safetensors::{SafeTensors, tensor::TensorView};

#[test]
fn an_adapter_is_really_applied() {
    let engine = engine();
    let case = &reference("tiny-llama").cases[0];
    let request = || LogitsRequest::new(case.prompt_ids.clone());
    let base = block_on(engine.logits(&tiny(None), request())).unwrap();
    let full = block_on(engine.logits(&tiny(Some("peft")), request())).unwrap();
    let adapter = fixture_ref("adapters/tiny-llama-lora-peft");
    let half = block_on(engine.logits(&tiny(None).with_weighted_adapter(adapter.clone(), 0.5), request())).unwrap();
    // Two halves of one adapter are the whole.
    let halves = tiny(None).with_weighted_adapter(adapter.clone(), 0.5).with_weighted_adapter(adapter, 0.5);
    let halves = block_on(engine.logits(&halves, request())).unwrap();
    assert!(max_difference(&base, &full) > 0.1);
    assert!(max_difference(&half, &full) > 0.05 && max_difference(&half, &base) > 0.05);
    assert!(max_difference(&halves, &full) < 2e-5, "{}", max_difference(&halves, &full));
}

#[test]
fn gguf_files_give_the_logits_of_their_weights() {
    let gguf = |kind: &str| ModelSpec::new(fixture_ref(&format!("gguf/tiny-llama-{kind}.gguf")));
    compare(&gguf("f16").with_dtype(ComputeDtype::F32), "tiny-llama", 1e-4, 4);
    // By itself it is held in f16.
    compare(&gguf("f16"), "tiny-llama", 0.02, 1);
    compare(&gguf("bf16"), "tiny-llama", 1e-4, 4);
    // What 8-bit activations cost, measured: 0.079 and 0.158.
    compare(&gguf("q8_0"), "tiny-llama-q8_0.dequantized", 0.1, 1);
    compare(&gguf("q4_0"), "tiny-llama-q4_0.dequantized", 0.2, 1);
    compare(&gguf("q8_0"), "tiny-llama", 0.13, 0);
    compare(&gguf("q4_0"), "tiny-llama", 0.95, 0);
}

/// Architectures, with the bound that their references are held to. Gemma's is tighter: the exact GELU in place of the
/// tanh approximation moves its logits by 0.002.
const ARCHITECTURES: [(&str, f32); 7] = [
    ("llama3rope", 1e-3),
    ("mistral", 1e-3),
    ("qwen2", 1e-3),
    ("qwen3", 1e-3),
    ("gemma2", 5e-4),
    ("gemma3", 5e-4),
    ("phi3", 1e-3),
];

#[test]
fn every_gguf_twin_gives_the_logits_of_its_checkpoint() {
    for (name, bound) in ARCHITECTURES {
        // llama.cpp has no sliding window for Mistral, so its file is one of the variant without.
        let name = if name == "mistral" { "mistral.full-attention" } else { name };
        compare(&ModelSpec::new(fixture_ref(&format!("gguf/arch-{name}.gguf"))), &format!("arch-{name}"), bound, 2);
    }
    compare(&ModelSpec::new(fixture_ref("gguf/arch-phi3.longrope.gguf")), "arch-phi3.longrope", 1e-3, 2);
}

fn logits(engine: &Engine, spec: &ModelSpec) -> Vec<Vec<f32>> {
    reference("tiny-llama")
        .cases
        .into_iter()
        .map(|case| block_on(engine.logits(spec, LogitsRequest::new(case.prompt_ids))).unwrap())
        .collect()
}

/// Splits the weights of tiny-llama into two shards with an index.
fn shard(folder: &Path) {
    let from = fixture("models/tiny-llama");
    let bytes = fs::read(from.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut shards = [BTreeMap::new(), BTreeMap::new()];
    let mut map = serde_json::Map::new();
    for (i, (name, tensor)) in tensors.tensors().into_iter().enumerate() {
        map.insert(name.clone(), format!("model-0000{}-of-00002.safetensors", i % 2 + 1).into());
        shards[i % 2].insert(name, tensor);
    }
    for (i, shard) in shards.into_iter().enumerate() {
        let path = folder.join(format!("model-0000{}-of-00002.safetensors", i + 1));
        let shard: Vec<(String, TensorView<'_>)> = shard.into_iter().collect();
        safetensors::serialize_to_file(shard, None, &path).unwrap();
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": map });
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        fs::write(folder.join(name), fs::read(from.join(name)).unwrap()).unwrap();
    }
}

#[test]
fn sharded_and_single_file_give_identical_bits() {
    let folder = tempfile::tempdir().unwrap();
    shard(folder.path());
    let sharded = ArtifactRef::file(folder.path()).unwrap();
    let engine = engine();
    for adapter in [None, Some("peft")] {
        let single = tiny(adapter);
        let mut spec = single.clone();
        spec.base = sharded.clone();
        assert_eq!(logits(&engine, &spec), logits(&engine, &single), "{adapter:?}");
    }
}

#[test]
fn a_spec_without_adapters_gives_the_bits_of_the_bare_base() {
    let engine = engine();
    let files = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    let files = files.map(|name| (name.to_owned(), fixture("models/tiny-llama").join(name)));
    let checkpoint = Checkpoint::open("bare", &files.into()).unwrap();
    let backend = engine.registry().backend("candle").unwrap();
    let weights = ModelWeights::new(checkpoint.info, Some(checkpoint.tensors), checkpoint.text);
    let bare = block_on(backend.load(weights, LoadOptions::new(512))).unwrap();
    for (case, logits) in reference("tiny-llama").cases.into_iter().zip(logits(&engine, &tiny(None))) {
        assert_eq!(block_on(bare.logits(LogitsRequest::new(case.prompt_ids))).unwrap(), logits);
    }
}
