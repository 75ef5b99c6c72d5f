//! The models of the fixtures with their adapters, the references of each, and how far from them a backend may be.

use std::{fs, path::Path};

use llm_local::{AdapterPolicy, ArtifactRef, ComputeDtype, ModelSpec};
use tempfile::TempDir;

use super::common::{Reference, fixture, fixture_ref, merged_reference, reference, tiny};

/// The largest differences of logits that pass. A backend without one must refuse the spec.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) candle: Option<f32>,
    pub(super) mlx: Option<f32>,
    /// Between the two.
    pub(super) between: f32,
}

impl Bounds {
    const fn all(bound: f32) -> Self {
        Self { candle: Some(bound), mlx: Some(bound), between: bound }
    }
}

pub(super) const TINY: Bounds = Bounds::all(2e-5);
pub(super) const TINY_F16: Bounds = Bounds { candle: Some(0.02), mlx: Some(0.02), between: 0.02 };
pub(super) const TINY_BF16: Bounds = Bounds { candle: Some(0.1), mlx: Some(0.1), between: 0.1 };
pub(super) const ARCHITECTURE: Bounds = Bounds::all(1e-4);
pub(super) const QUANTIZED: Bounds = Bounds { candle: None, mlx: Some(1e-3), between: 0.0 };

/// A spec, and what it is to give.
pub(super) struct Row {
    pub(super) name: String,
    pub(super) spec: ModelSpec,
    pub(super) expected: Reference,
    pub(super) bounds: Bounds,
    /// Where its files are, if they were put together.
    _folder: Option<TempDir>,
}

const POLICIES: [AdapterPolicy; 2] = [AdapterPolicy::MergeDequantized, AdapterPolicy::KeepUnmerged];

fn row(name: &str, spec: ModelSpec, bounds: Bounds) -> Row {
    Row { name: name.to_owned(), spec, expected: reference(name), bounds, _folder: None }
}

/// The spec with an adapter, both ways.
fn both<'a>(name: &'a str, spec: &'a ModelSpec, adapter: &str, bounds: Bounds) -> impl Iterator<Item = Row> + 'a {
    let spec = spec.clone().with_adapter(fixture_ref(&format!("adapters/{adapter}")));
    POLICIES.into_iter().map(move |policy| row(name, spec.clone().with_adapter_policy(policy), bounds))
}

/// tiny-llama in each type that it can be computed in.
pub(super) fn types() -> Vec<Row> {
    let mut rows = Vec::new();
    for (dtype, bounds) in [(ComputeDtype::F32, TINY), (ComputeDtype::F16, TINY_F16), (ComputeDtype::Bf16, TINY_BF16)] {
        for adapter in [None, Some("peft"), Some("rslora"), Some("qv-last2")] {
            let name = adapter.map_or("tiny-llama".into(), |name| format!("tiny-llama__tiny-llama-lora-{name}"));
            rows.push(row(&name, tiny(adapter).with_dtype(dtype), bounds));
        }
    }
    rows.push(row("mlx__tiny-llama.f32", tiny(None).with_dtype(ComputeDtype::F32), TINY));
    rows
}

/// Adapters of every kind on tiny-llama in f32, of PEFT and of mlx-lm.
pub(super) fn adapters() -> Vec<Row> {
    let base = tiny(None).with_dtype(ComputeDtype::F32);
    let mut rows = Vec::new();
    for adapter in [
        "peft",
        "rslora",
        "qv-last2",
        "dora",
        "patterns",
        "bias-lora_only",
        "modules-to-save-lm_head",
        "modules-to-save-embed_tokens",
        "mlx-trained-as-peft",
    ] {
        let adapter = format!("tiny-llama-lora-{adapter}");
        rows.extend(both(&format!("tiny-llama__{adapter}"), &base, &adapter, TINY));
    }
    // Pairs of a tied embedding change the head too, as in PEFT's merge. Beside the weights, PEFT leaves the head as it is, which
    // is 3.5 away in logits.
    let name = "tiny-llama__tiny-llama-lora-embed";
    rows.extend(
        both(name, &base, "tiny-llama-lora-embed", TINY).map(|row| Row { expected: merged_reference(name), ..row }),
    );
    for (adapter, name) in [
        ("mlx", "tiny-llama-lora-mlx"),
        ("mlx", "tiny-llama-lora-mlx.fused"),
        ("dora-mlx", "tiny-llama-lora-dora-mlx"),
        ("dora-mlx", "tiny-llama-lora-dora-mlx.fused"),
        ("mlx-trained", "lora-mlx-trained"),
    ] {
        rows.extend(both(&format!("mlx__tiny-llama.f32__{name}"), &base, &format!("tiny-llama-lora-{adapter}"), TINY));
    }
    rows
}

/// What MLX quantized, with an adapter beside it, and merged into what it touches.
pub(super) fn quantized() -> Vec<Row> {
    let mut rows = Vec::new();
    for bits in [4, 8] {
        let base = format!("tiny-llama-mlx-{bits}bit");
        let spec = ModelSpec::new(fixture_ref(&format!("models/{base}"))).with_dtype(ComputeDtype::F32);
        rows.push(row(&format!("mlx__{base}.quant.f32"), spec.clone(), QUANTIZED));
        rows.extend(both(&format!("mlx__{base}.quant.f32__lora"), &spec, "tiny-llama-lora-mlx", QUANTIZED));
    }
    rows
}

/// Architectures that both backends compute, and which of them have an adapter.
const ARCHITECTURES: [(&str, bool); 11] = [
    ("llama3rope", true),
    ("mistral", true),
    ("qwen2", true),
    ("qwen3", true),
    ("gemma2", true),
    ("gemma3", true),
    ("phi3", true),
    ("gemma", false),
    ("granite", false),
    ("olmo2", false),
    ("llama-bias", false),
];

/// Architectures that only candle-transformers computes; `tests/specs/architectures.rs` has their references.
pub(super) const OTHERS: [&str; 5] = ["phi", "starcoder2", "stablelm", "mixtral", "olmo"];

/// Every architecture in f32, with and without its adapter.
pub(super) fn architectures() -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, has_adapter) in ARCHITECTURES {
        let spec = architecture(name);
        rows.push(row(&format!("arch-{name}"), spec.clone(), ARCHITECTURE));
        if has_adapter {
            let adapter = format!("arch-{name}-lora");
            rows.extend(both(&format!("arch-{name}__{adapter}"), &spec, &adapter, ARCHITECTURE));
        }
    }
    rows
}

/// The model of the fixtures that has this architecture.
pub(super) fn architecture(name: &str) -> ModelSpec {
    ModelSpec::new(fixture_ref(&format!("models/arch-{name}"))).with_dtype(ComputeDtype::F32)
}

/// Configs that change what is computed of an architecture's weights.
pub(super) fn variants() -> Vec<Row> {
    let configs = fs::read_dir(fixture("models/variants")).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = configs.map(|file| file.into_string().unwrap().replace(".config.json", "")).collect();
    names.sort();
    names.iter().map(|name| variant(name)).collect()
}

fn variant(name: &str) -> Row {
    let (base, _) = name.split_once('.').unwrap();
    let folder = tempfile::tempdir().unwrap();
    let copy = |from: &Path, name: &str| fs::copy(from, folder.path().join(name)).unwrap();
    for file in ["model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        copy(&fixture(&format!("models/{base}/{file}")), file);
    }
    copy(&fixture(&format!("models/variants/{name}.config.json")), "config.json");
    let spec = ModelSpec::new(ArtifactRef::file(folder.path()).unwrap()).with_dtype(ComputeDtype::F32);
    Row { _folder: Some(folder), ..row(name, spec, ARCHITECTURE) }
}
