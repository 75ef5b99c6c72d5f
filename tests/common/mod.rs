//! What the cross-crate tests share: fixtures, references, and engines that leave nothing behind.

#![allow(dead_code, unreachable_pub, clippy::print_stdout)] // each test binary uses its part of a module of its own

use std::{path::PathBuf, sync::mpsc};

use llm_local::{ArtifactRef, Engine, GenerateRequest, Generation, GenerationEvent, LogitsRequest, ModelSpec};
use pollster::block_on;
use tracing::{
    Event, Metadata, Subscriber,
    span::{Attributes, Id, Record},
};

/// A path below `tests/fixtures`.
pub fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

/// A ref to a path below `tests/fixtures`.
pub fn fixture_ref(path: &str) -> ArtifactRef {
    ArtifactRef::file(fixture(path)).unwrap()
}

/// The spec of tiny-llama, with the adapter `tiny-llama-lora-<adapter>` if one is named.
pub fn tiny(adapter: Option<&str>) -> ModelSpec {
    let spec = ModelSpec::new(fixture_ref("models/tiny-llama"));
    match adapter {
        Some(name) => spec.with_adapter(fixture_ref(&format!("adapters/tiny-llama-lora-{name}"))),
        None => spec,
    }
}

/// An engine with the built-in plugins that keeps nothing on disk: every source used with it is local.
pub fn engine() -> Engine {
    Engine::builder().cache_dir(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("cache")).build().unwrap()
}

/// Outputs of a reference implementation for one base and adapter.
pub struct Reference {
    pub cases: Vec<Case>,
}

/// One prompt of a reference.
pub struct Case {
    /// As text, where the reference was computed from that.
    pub prompt: Option<String>,
    pub prompt_ids: Vec<u32>,
    /// After the last token of the prompt, shape (vocab,).
    pub logits: Vec<f32>,
    pub greedy_ids: Vec<u32>,
    /// The smallest gap between the two best logits on the greedy path; 0 where it was not recorded.
    pub min_margin: f32,
}

/// Reads `tests/fixtures/reference/<name>.json` and its logits.
pub fn reference(name: &str) -> Reference {
    results(name, "")
}

/// As [`reference`], what PEFT gave after its own merge.
pub fn merged_reference(name: &str) -> Reference {
    results(name, "merged_")
}

/// The results, and the tensors, whose names begin so.
fn results(name: &str, prefix: &str) -> Reference {
    let text = std::fs::read_to_string(fixture(&format!("reference/{name}.json"))).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let bytes = std::fs::read(fixture(&format!("reference/{name}.logits.safetensors"))).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let ids = |value: &serde_json::Value| -> Vec<u32> {
        value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    let cases = json[format!("{prefix}results")].as_array().unwrap().iter().enumerate().map(|(i, case)| {
        let tensor = tensors.tensor(&format!("{prefix}logits.{i}")).unwrap();
        assert_eq!(tensor.dtype(), safetensors::Dtype::F32);
        // mlx-lm's were computed from tokens, and their margins not recorded; all others have both.
        let is_whole = case["prompt"].is_string() && case["min_margin"].is_number();
        assert!(is_whole || name.starts_with("mlx__"), "{name}: case {i} has no `prompt` or no `min_margin`");
        Case {
            prompt: case["prompt"].as_str().map(str::to_owned),
            prompt_ids: ids(&case["prompt_ids"]),
            logits: tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            greedy_ids: ids(&case["greedy_ids"]),
            min_margin: case["min_margin"].as_f64().unwrap_or(0.0) as f32,
        }
    });
    Reference { cases: cases.collect() }
}

/// The first `count` tokens of a generation that goes on.
pub async fn first_tokens(generation: &mut Generation, count: usize) -> Vec<u32> {
    let mut tokens = Vec::new();
    while tokens.len() < count {
        if let GenerationEvent::Token { id, .. } = generation.next().await.unwrap().unwrap() {
            tokens.push(id);
        }
    }
    tokens
}

/// The largest absolute difference.
pub fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d.is_nan() { f32::NAN } else { m.max(d) })
}

/// Compares logits of all prompts, and greedy tokens wherever the margin is more than twice the prompt's error. At least
/// `greedy` prompts must have been compared that way.
pub fn compare(spec: &ModelSpec, name: &str, bound: f32, greedy: usize) {
    compare_with(spec, name, &reference(name), bound, greedy);
}

/// As [`compare`], with outputs that were read already, of the reference `name`.
pub fn compare_with(spec: &ModelSpec, name: &str, reference: &Reference, bound: f32, greedy: usize) {
    let engine = engine();
    assert!(!reference.cases.is_empty());
    let mut worst = 0f32;
    let mut compared = 0;
    for case in &reference.cases {
        // Once from the text, so that the tokenizer is in it, and once from the ids.
        let logits = block_on(engine.logits(spec, LogitsRequest::new(case.prompt_ids.clone()))).unwrap();
        if let Some(prompt) = &case.prompt {
            let from_text = block_on(engine.logits(spec, LogitsRequest::new(prompt.as_str()))).unwrap();
            assert_eq!(from_text, logits, "{name}: {prompt:?} is tokenized otherwise");
        }
        let difference = max_difference(&logits, &case.logits);
        assert!(difference <= bound, "{name}: {:?}: {difference} > {bound}", case.prompt);
        worst = worst.max(difference);
        if case.min_margin <= 2.0 * difference {
            continue;
        }
        // The reference also takes ids that no token has; they are masked here, so what follows one is another text.
        let greedy = case.greedy_ids.split(|id| !has_token(name, *id)).next().unwrap();
        if greedy.len() < 7 {
            continue;
        }
        let request = GenerateRequest::new(case.prompt_ids.clone()).with_max_tokens(greedy.len()).with_ignore_eos(true);
        let completion = block_on(async { engine.generate(spec, request).await?.complete().await }).unwrap();
        assert_eq!(completion.tokens, greedy, "{name}: {:?}", case.prompt);
        assert_eq!(completion.usage.prompt_tokens, case.prompt_ids.len());
        assert_eq!(completion.usage.generated_tokens, greedy.len());
        compared += 1;
    }
    println!("{name}: largest difference {worst:e}, greedy tokens of {compared} prompts equal");
    assert!(compared >= greedy, "{name}: greedy tokens of only {compared} prompts could be compared");
}

/// Whether the tokenizer of the reference's model has a token with this id; the vocabularies are padded beyond.
pub fn has_token(name: &str, id: u32) -> bool {
    id < if name.starts_with("arch-") { 380 } else { 838 }
}

/// Tells when work that is dropped has given up, and begins to wait for its thread.
pub struct ToldOfWaiting(pub mpsc::Sender<()>);

impl Subscriber for ToldOfWaiting {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "llm_local::blocking"
    }

    fn event(&self, _: &Event<'_>) {
        self.0.send(()).unwrap();
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}
