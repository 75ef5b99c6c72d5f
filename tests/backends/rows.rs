//! The models of the fixtures with their adapters, the references of each, and how far from them a backend may be.

use std::{fs, path::Path};

use llm_local::{
    AdapterPolicy, ArtifactRef, BackendPreference, ComputeDtype, Engine, GenerateRequest, LogitsRequest, ModelSpec,
};
use pollster::block_on;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;
use tempfile::TempDir;

use super::common::{Case, Reference, engine, fixture, fixture_ref, merged_reference, reference, tiny};

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

/// Measured: 9e-6.
pub(super) const TINY: Bounds = Bounds::all(2e-5);
/// Measured: 0.007 of each, 0.008 between them.
pub(super) const TINY_F16: Bounds = Bounds::all(0.02);
/// Measured: 0.052 of candle, 0.063 of MLX, 0.053 between them; mlx-lm rounds in its own places too.
pub(super) const TINY_BF16: Bounds = Bounds::all(0.1);
/// Measured: 2.4e-5.
const ARCHITECTURE: Bounds = Bounds::all(5e-5);
/// Measured: 7e-6.
const QUANTIZED: Bounds = Bounds { candle: None, mlx: Some(2e-5), between: 0.0 };

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

/// tiny-llama computed in this type, alone and with plain pairs, both ways.
pub(super) fn tiny_llama(dtype: ComputeDtype, bounds: Bounds) -> Vec<Row> {
    let base = tiny(None).with_dtype(dtype);
    let mut rows = vec![row("tiny-llama", base.clone(), bounds)];
    for adapter in ["peft", "rslora", "qv-last2"] {
        let adapter = format!("tiny-llama-lora-{adapter}");
        rows.extend(both(&format!("tiny-llama__{adapter}"), &base, &adapter, bounds));
    }
    rows
}

/// As mlx-lm computes tiny-llama and its adapters in float32, and in the type that they are stored in.
pub(super) fn mlx_lm() -> Vec<Row> {
    let mut rows = Vec::new();
    for (dtype, suffix, bounds) in [(ComputeDtype::F32, "f32", TINY), (ComputeDtype::Bf16, "bf16", TINY_BF16)] {
        let base = tiny(None).with_dtype(dtype);
        let name = format!("mlx__tiny-llama.{suffix}");
        rows.push(row(&name, base.clone(), bounds));
        for (adapter, reference) in [
            ("mlx", "tiny-llama-lora-mlx"),
            ("dora-mlx", "tiny-llama-lora-dora-mlx"),
            ("mlx-trained", "lora-mlx-trained"),
        ] {
            let adapter = format!("tiny-llama-lora-{adapter}");
            rows.extend(both(&format!("{name}__{reference}"), &base, &adapter, bounds));
            let fused = format!("{name}__{reference}.fused");
            if fixture(&format!("reference/{fused}.json")).exists() {
                rows.extend(both(&fused, &base, &adapter, bounds));
            }
        }
    }
    rows
}

/// Adapters of PEFT, but those of a tied embedding.
const KINDS: [&str; 9] = [
    "peft",
    "rslora",
    "qv-last2",
    "dora",
    "patterns",
    "bias-lora_only",
    "modules-to-save-lm_head",
    "modules-to-save-embed_tokens",
    "mlx-trained-as-peft",
];

/// Adapters of every kind on tiny-llama in f32.
pub(super) fn adapters() -> Vec<Row> {
    let base = tiny(None).with_dtype(ComputeDtype::F32);
    let mut rows = Vec::new();
    for adapter in KINDS {
        let adapter = format!("tiny-llama-lora-{adapter}");
        rows.extend(both(&format!("tiny-llama__{adapter}"), &base, &adapter, TINY));
    }
    // Pairs of a tied embedding change the head too, as in PEFT's merge. Beside the weights, PEFT leaves the head as it is, which
    // is 3.5 away in logits.
    let name = "tiny-llama__tiny-llama-lora-embed";
    rows.extend(
        both(name, &base, "tiny-llama-lora-embed", TINY).map(|row| Row { expected: merged_reference(name), ..row }),
    );
    rows
}

/// What MLX quantized, with an adapter beside it, and merged into what it touches.
pub(super) fn quantized() -> Vec<Row> {
    let mut rows = Vec::new();
    for bits in [4, 8] {
        let (base, spec) = packed(bits);
        rows.push(row(&format!("mlx__{base}.quant.f32"), spec.clone(), QUANTIZED));
        rows.extend(both(&format!("mlx__{base}.quant.f32__lora"), &spec, "tiny-llama-lora-mlx", QUANTIZED));
    }
    rows
}

fn packed(bits: u32) -> (String, ModelSpec) {
    let base = format!("tiny-llama-mlx-{bits}bit");
    let spec = ModelSpec::new(fixture_ref(&format!("models/{base}"))).with_dtype(ComputeDtype::F32);
    (base, spec)
}

/// What MLX quantized with adapters of every kind. Of these there is no reference: what is expected is what candle computes of the
/// values that the integers stand for.
pub(super) fn quantized_with_adapters() -> Vec<Row> {
    let engine = engine();
    let prompts: Vec<Case> = reference("tiny-llama").cases.into_iter().take(2).collect();
    let mut rows = Vec::new();
    for bits in [4, 8] {
        let (base, spec) = packed(bits);
        let folder = unpacked(&fixture(&format!("models/{base}")));
        let values = ModelSpec::new(ArtifactRef::file(folder.path()).unwrap()).with_dtype(ComputeDtype::F32);
        for kind in KINDS.into_iter().chain(["embed", "mlx", "dora-mlx"]) {
            let adapter = fixture_ref(&format!("adapters/tiny-llama-lora-{kind}"));
            let dense =
                values.clone().with_adapter(adapter.clone()).with_backend(BackendPreference::Named("candle".into()));
            for policy in POLICIES {
                let cases = prompts.iter().map(|case| computed(&engine, &dense, case)).collect();
                rows.push(Row {
                    name: format!("{base} with {kind}"),
                    spec: spec.clone().with_adapter(adapter.clone()).with_adapter_policy(policy),
                    expected: Reference { cases },
                    bounds: QUANTIZED,
                    _folder: None,
                });
            }
        }
    }
    rows
}

/// The prompt of a case with what the spec gives for it.
fn computed(engine: &Engine, spec: &ModelSpec, case: &Case) -> Case {
    let ids = case.prompt_ids.clone();
    let logits = block_on(engine.logits(spec, LogitsRequest::new(ids.clone()))).unwrap();
    let request = GenerateRequest::new(ids.clone()).with_max_tokens(16).with_ignore_eos(true);
    let greedy_ids = block_on(async { engine.generate(spec, request).await?.complete().await }).unwrap().tokens;
    Case { prompt: case.prompt.clone(), prompt_ids: ids, logits, greedy_ids, min_margin: 0.0 }
}

/// A copy of a checkpoint of MLX in which each group of integers is the float32 values `scale * integer + bias`.
fn unpacked(model: &Path) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        fs::copy(model.join(file), folder.path().join(file)).unwrap();
    }
    let mut config: Value = serde_json::from_slice(&fs::read(model.join("config.json")).unwrap()).unwrap();
    let bits = config["quantization"]["bits"].as_u64().unwrap() as usize;
    let group_size = config["quantization"]["group_size"].as_u64().unwrap() as usize;
    for field in ["quantization", "quantization_config"] {
        config.as_object_mut().unwrap().remove(field);
    }
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();

    let bytes = fs::read(model.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let bf16 = |name: &str| -> Vec<f32> {
        let tensor = tensors.tensor(name).unwrap();
        assert_eq!(tensor.dtype(), Dtype::BF16, "{name}");
        tensor.data().chunks_exact(2).map(|b| f32::from_le_bytes([0, 0, b[0], b[1]])).collect()
    };
    let mut values = Vec::new();
    for name in tensors.names() {
        let tensor = tensors.tensor(name).unwrap();
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let (shape, floats) = match tensor.dtype() {
            Dtype::U32 => {
                let (scales, biases) = (bf16(&format!("{module}.scales")), bf16(&format!("{module}.biases")));
                // As many integers to a byte as fit, the first in its lowest bits.
                let integers = tensor
                    .data()
                    .iter()
                    .flat_map(|byte| (0..8).step_by(bits).map(move |at| byte >> at & (u8::MAX >> (8 - bits))));
                let floats = integers
                    .enumerate()
                    .map(|(i, integer)| scales[i / group_size] * f32::from(integer) + biases[i / group_size]);
                (vec![tensor.shape()[0], tensor.shape()[1] * 32 / bits], floats.collect())
            }
            _ if name.ends_with(".scales") || name.ends_with(".biases") => continue,
            _ => (tensor.shape().to_vec(), bf16(name)),
        };
        let bytes: Vec<u8> = floats.iter().flat_map(|value: &f32| value.to_le_bytes()).collect();
        values.push((name.to_owned(), shape, bytes));
    }
    let views =
        values.iter().map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    fs::write(folder.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    folder
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
