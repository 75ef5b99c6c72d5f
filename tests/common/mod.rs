//! What the cross-crate tests share: fixtures, references, and engines that leave nothing behind.

#![allow(dead_code, unreachable_pub)] // each test binary uses its part of a module of its own

use std::path::PathBuf;

use llm_local::{ArtifactRef, Engine, ModelSpec};

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
    pub prompt: String,
    pub prompt_ids: Vec<u32>,
    /// After the last token of the prompt, shape (vocab,).
    pub logits: Vec<f32>,
    pub greedy_ids: Vec<u32>,
    /// The smallest gap between the two best logits on the greedy path.
    pub min_margin: f32,
}

/// Reads `tests/fixtures/reference/<name>.json` and its logits.
pub fn reference(name: &str) -> Reference {
    let text = std::fs::read_to_string(fixture(&format!("reference/{name}.json"))).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let bytes = std::fs::read(fixture(&format!("reference/{name}.logits.safetensors"))).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let ids = |value: &serde_json::Value| -> Vec<u32> {
        value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    let cases = json["results"].as_array().unwrap().iter().map(|case| {
        let tensor = tensors.tensor(case["logits_key"].as_str().unwrap()).unwrap();
        assert_eq!(tensor.dtype(), safetensors::Dtype::F32);
        Case {
            prompt: case["prompt"].as_str().unwrap().into(),
            prompt_ids: ids(&case["prompt_ids"]),
            logits: tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            greedy_ids: ids(&case["greedy_ids"]),
            min_margin: case["min_margin"].as_f64().unwrap() as f32,
        }
    });
    Reference { cases: cases.collect() }
}

/// The largest absolute difference.
pub fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d.is_nan() { f32::NAN } else { m.max(d) })
}
