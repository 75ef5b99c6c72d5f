//! Adapters beside the weights as an application sees them: loaded with a model, named by requests, and swapped.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use llm_local_candle::CandleBackend;
use llm_local_core::{
    AdapterSet, FloatType, GenerateRequest, GenerationEvent, InferenceBackend, LoadOptions, LoadedModel, LogitsRequest,
    LoraAdapter, LoraModule, ModelWeights, Result, SessionId, Support, TensorData, TensorSource,
};
use llm_local_weights::{Checkpoint, SafetensorsSource};
use pollster::block_on;
use serde_json::Value;

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")).join(path)
}

fn dense(name: &str) -> Checkpoint {
    let files = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    let path = |file: &str| fixture(&format!("models/{name}")).join(file);
    let files: BTreeMap<_, _> = files.iter().map(|file| (file.to_string(), path(file))).collect();
    Checkpoint::open(name, &files.into_iter().filter(|(_, path)| path.exists()).collect()).unwrap()
}

fn gguf(name: &str) -> Checkpoint {
    let path = fixture("gguf").join(name);
    Checkpoint::open(name, &BTreeMap::from([(name.to_owned(), path)])).unwrap()
}

fn options() -> LoadOptions {
    LoadOptions::new(256).with_device("cpu")
}

fn load(c: Checkpoint, set: &AdapterSet) -> Result<Arc<dyn LoadedModel>> {
    let weights = ModelWeights::new(c.info, Some(c.tensors), c.text).with_adapters(set.adapters.clone());
    block_on(CandleBackend::new().load(weights, options()))
}

/// The main adapter of tiny-llama: plain pairs of rank 8, alpha 16.
fn pirate() -> Arc<LoraAdapter> {
    static ADAPTER: OnceLock<Arc<LoraAdapter>> = OnceLock::new();
    let read = || {
        let source =
            SafetensorsSource::open(&fixture("adapters/tiny-llama-lora-peft/adapter_model.safetensors")).unwrap();
        let floats = |name: &str| match source.read(name, Some(FloatType::F32)).unwrap() {
            TensorData::F32(v) => v,
            TensorData::Borrowed(bytes) => {
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            other => panic!("{other:?}"),
        };
        let modules = source.entries().iter().filter_map(|a| {
            let module = a.name.strip_suffix(".lora_A.weight")?;
            let b = source.entry(&format!("{module}.lora_B.weight"))?;
            let shape = (a.shape[0], a.shape[1], b.shape[0]);
            let name = module.strip_prefix("base_model.model.")?;
            Some(LoraModule::new(name, shape, floats(&a.name), floats(&b.name), 16.0 / shape.0 as f64))
        });
        Arc::new(LoraAdapter::new("file:/pirate", "pirate", modules.collect()))
    };
    ADAPTER.get_or_init(read).clone()
}

fn with_pirate(weight: f32) -> AdapterSet {
    AdapterSet::new().with(pirate(), weight)
}

/// The first prompt of a reference and its greedy continuation, from transformers and PEFT.
fn reference(name: &str) -> (Vec<u32>, Vec<u32>) {
    let path = fixture(&format!("reference/{name}.json"));
    let json: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let ids = |v: &Value| v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect();
    (ids(&json["results"][0]["prompt_ids"]), ids(&json["results"][0]["greedy_ids"]))
}

const PLAIN: &str = "tiny-llama";
const PIRATE: &str = "tiny-llama__tiny-llama-lora-peft";

fn request(name: &str) -> GenerateRequest {
    let (prompt, greedy) = reference(name);
    GenerateRequest::new(prompt).with_max_tokens(greedy.len()).with_ignore_eos(true)
}

#[track_caller]
fn says(model: &Arc<dyn LoadedModel>, request: GenerateRequest, name: &str) -> usize {
    let done = block_on(model.generate(request).complete()).unwrap();
    assert_eq!(done.tokens, reference(name).1, "{name}");
    done.usage.cached_tokens
}

#[test]
fn a_model_loaded_with_an_adapter_speaks_as_it_says() {
    let backend = CandleBackend::new();
    for checkpoint in [dense("tiny-llama"), gguf("tiny-llama-q8_0.gguf")] {
        let Support::Yes(can) = backend.supports(&checkpoint.info, &options()) else { panic!("not supported") };
        assert!(can.unmerged);
        let model = load(checkpoint, &with_pirate(1.0)).unwrap();
        says(&model, request(PIRATE), PIRATE);
        let adapter = pirate().byte_len() as u64;
        let weights = model.memory().weights;
        block_on(model.set_adapters(AdapterSet::new())).unwrap();
        assert_eq!(model.memory().weights, weights - adapter);
    }
}

#[test]
fn requests_name_their_adapters_and_the_models_own_are_swapped() {
    let model = load(dense("tiny-llama"), &AdapterSet::new()).unwrap();
    says(&model, request(PLAIN), PLAIN);
    says(&model, request(PIRATE).with_adapters(with_pirate(1.0)), PIRATE);
    // Half and half is the whole.
    let halves = with_pirate(0.5).with(pirate(), 0.5);
    says(&model, request(PIRATE).with_adapters(halves), PIRATE);
    says(&model, request(PLAIN), PLAIN);
    block_on(model.set_adapters(with_pirate(1.0))).unwrap();
    says(&model, request(PIRATE), PIRATE);
    says(&model, request(PLAIN).with_adapters(AdapterSet::new()), PLAIN);
    // Reweighted.
    let logits = |request: LogitsRequest| block_on(model.logits(request)).unwrap();
    let prompt = reference(PIRATE).0;
    let whole = logits(LogitsRequest::new(prompt.clone()));
    block_on(model.set_adapters(with_pirate(0.3))).unwrap();
    let less = logits(LogitsRequest::new(prompt.clone()));
    assert_eq!(logits(LogitsRequest::new(prompt.clone()).with_adapters(with_pirate(1.0))), whole);
    assert_ne!(less, whole);
    block_on(model.set_adapters(AdapterSet::new())).unwrap();
    says(&model, request(PLAIN), PLAIN);
}

#[test]
fn a_running_generation_keeps_its_adapters() {
    let model = load(dense("tiny-llama"), &with_pirate(1.0)).unwrap();
    let mut running = model.generate(request(PIRATE));
    let mut tokens = Vec::new();
    for _ in 0..5 {
        match block_on(running.next()) {
            Some(Ok(GenerationEvent::Token { id, .. })) => tokens.push(id),
            other => panic!("expected a token, found {other:?}"),
        }
    }
    block_on(model.set_adapters(AdapterSet::new())).unwrap();
    says(&model, request(PLAIN), PLAIN);
    tokens.extend(block_on(running.complete()).unwrap().tokens);
    assert_eq!(tokens, reference(PIRATE).1);
    says(&model, request(PLAIN), PLAIN);
}

#[test]
fn one_session_under_two_sets_is_two_caches() {
    let model = load(dense("tiny-llama"), &AdapterSet::new()).unwrap();
    let (prompt, _) = reference(PIRATE);
    let of_session = || request(PIRATE).with_session(SessionId::new("chat"));
    let plain = block_on(model.generate(request(PIRATE)).complete()).unwrap().tokens;
    let run = |request: GenerateRequest| {
        let done = block_on(model.generate(request).complete()).unwrap();
        (done.tokens, done.usage.cached_tokens)
    };
    assert_eq!(run(of_session()), (plain.clone(), 0));
    assert_eq!(run(of_session().with_adapters(with_pirate(1.0))), (reference(PIRATE).1, 0));
    assert_eq!(run(of_session()), (plain.clone(), prompt.len() - 1));
    block_on(model.set_adapters(with_pirate(1.0))).unwrap();
    assert_eq!(run(of_session()), (reference(PIRATE).1, prompt.len() - 1));
    block_on(model.set_adapters(with_pirate(0.999))).unwrap();
    assert_eq!(run(of_session()).1, 0);
}

#[test]
fn an_adapter_of_another_base_fails_by_name_at_the_load_and_in_a_request() {
    let module = LoraModule::new("model.layers.7.mlp.up_proj", (1, 128, 384), vec![0.1; 128], vec![0.1; 384], 1.0);
    let other = AdapterSet::new().with(LoraAdapter::new("file:/other", "other", vec![module]).into(), 1.0);
    let model = load(dense("tiny-llama"), &with_pirate(1.0)).unwrap();
    for error in [
        load(dense("tiny-llama"), &other).err().unwrap(),
        block_on(model.set_adapters(other.clone())).unwrap_err(),
        block_on(model.generate(request(PLAIN).with_adapters(other.clone())).complete()).unwrap_err(),
    ] {
        assert_eq!(error.code(), "adapter_merge_failed");
        let text = error.to_string();
        assert!(text.contains("file:/other") && text.contains("model.layers.7.mlp.up_proj"), "{text}");
    }
    says(&model, request(PIRATE), PIRATE);
}

#[test]
fn what_candle_transformers_computes_runs_no_adapters() {
    let checkpoint = dense("arch-stablelm");
    let Support::Yes(can) = CandleBackend::new().supports(&checkpoint.info, &options().with_device("cpu")) else {
        panic!("not supported")
    };
    assert!(!can.unmerged);
    let error = load(checkpoint, &with_pirate(1.0)).err().unwrap();
    assert_eq!(error.code(), "unsupported");
    assert!(error.to_string().contains("arch-stablelm") && error.to_string().contains("merge"), "{error}");
}

#[test]
fn of_the_adapters_that_it_was_loaded_with_a_model_keeps_its_own_form_alone() {
    let own = Arc::new(LoraAdapter::clone(&pirate()));
    let held = Arc::downgrade(&own);
    let model = load(dense("tiny-llama"), &AdapterSet::new().with(own, 1.0)).unwrap();
    assert_eq!(held.strong_count(), 0);
    drop(model);
}
