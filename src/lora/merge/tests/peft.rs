//! What PEFT's own merge makes of small weights (`tests/fixtures/scripts/make_peft_merges.py`).

use std::{collections::BTreeMap, fs, sync::Arc};

use llm_local_core::{FloatType, LoraAdapter, LoraModule, ModelFormat, ModelInfo, TensorSource};
use llm_local_weights::SafetensorsSource;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{MergedSource, bytes, decode, naive::Tensors, variants::unknown};
use crate::lora::testing::{fixture, read_folder};

#[derive(Deserialize)]
struct Case {
    name: String,
    rank: usize,
    scale: f64,
    base: BTreeMap<String, Values>,
    parts: BTreeMap<String, Values>,
    merged: BTreeMap<String, Values>,
}

#[derive(Deserialize, Clone)]
struct Values {
    shape: Vec<usize>,
    values: Vec<f64>,
}

impl Values {
    fn f32(&self) -> Vec<f32> {
        self.values.iter().map(|v| *v as f32).collect()
    }

    fn transposed(&self) -> Vec<f32> {
        let (rows, columns) = (self.shape[0], self.shape[1]);
        (0..columns * rows).map(|i| self.values[i % rows * columns + i / rows] as f32).collect()
    }
}

/// The pair as readers bring it into the one internal form.
fn module(case: &Case) -> LoraModule {
    let part = |name: &str| case.parts.get(name);
    let (rank, scale) = (case.rank, case.scale);
    let weight = case.base.values().find(|v| v.shape.len() > 1).unwrap();
    let module = match (part("embedding_A"), part("embedding_B")) {
        // As a weight of (in, out), whose magnitudes are of columns.
        (Some(a), Some(b)) if case.name.ends_with("dora") => {
            LoraModule::new("embed_tokens", (rank, 6, 4), a.f32(), b.f32(), scale).with_transposed(true)
        }
        (Some(a), Some(b)) => LoraModule::new("embed_tokens", (rank, 4, 6), b.transposed(), a.transposed(), scale),
        _ => {
            let (a, b) = (part("A.weight").unwrap(), part("B.weight").unwrap());
            let (inputs, outputs) = (a.shape[1], b.shape[0]);
            if let [experts, ..] = weight.shape[..]
                && weight.shape.len() == 3
            {
                // B is (out, rank, experts).
                let index = |e: usize, o: usize, k: usize| o * rank * experts + k * experts + e;
                let b = (0..experts * outputs * rank)
                    .map(|i| b.values[index(i / (outputs * rank), i / rank % outputs, i % rank)] as f32)
                    .collect::<Vec<_>>();
                LoraModule::of_experts("m.weights", experts, (rank, inputs, outputs), a.f32(), b, scale)
                    .with_transposed(case.name.ends_with("transposed"))
                    .of_parameter()
            } else {
                LoraModule::new("m", (rank, inputs, outputs), a.f32(), b.f32(), scale)
                    .with_transposed(case.name.starts_with("conv1d"))
            }
        }
    };
    let module = match part("magnitude_vector.weight").or(part("magnitude_vector")) {
        Some(magnitude) => module.with_magnitude(magnitude.f32()),
        None => module,
    };
    match part("B.bias") {
        Some(bias) => module.with_bias(bias.f32()),
        None => module,
    }
}

#[test]
fn every_kind_of_pair_is_merged_as_by_peft() {
    let cases: Vec<Case> = serde_json::from_slice(&fs::read(fixture("reference/peft_merges.json")).unwrap()).unwrap();
    assert_eq!(cases.len(), 9);
    for case in cases {
        let module = module(&case);
        let name = |parameter: &str| match parameter {
            "weight" => module.weight_name(),
            "weights" => "m.weights".into(),
            other => format!("{}.{other}", module.name),
        };
        let tensors = case.base.iter().map(|(parameter, v)| (name(parameter), v.shape.clone(), v.values.clone()));
        let base = Arc::new(Tensors::new(FloatType::F32, tensors));
        let adapter = Arc::new(LoraAdapter::new(case.name.clone(), "", vec![module.clone()]));
        let source = MergedSource::new(base.clone(), vec![(adapter, 1.0)], &unknown(&base)).unwrap();
        for (parameter, expected) in &case.merged {
            let found: Vec<_> = decode(&bytes(&source.read(&name(parameter), None).unwrap()), FloatType::F32).collect();
            assert_eq!(found.len(), expected.values.len());
            for (found, expected) in found.iter().zip(&expected.values) {
                // Measured: 7e-7, with values up to 9.
                assert!((found - expected).abs() < 2e-6, "{}: {parameter}: {found} is not {expected}", case.name);
            }
        }
    }
}

/// The base that PEFT's adapters on small random models (`scripts/make_peft.py`) were made for.
fn config(kind: &str, tied: bool, layers: usize) -> Value {
    if kind != "llama" {
        return json!({"model_type": kind});
    }
    json!({
        "model_type": kind, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": layers, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 24, "rms_norm_eps": 1e-6, "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
    })
}

#[test]
fn adapters_of_peft_are_merged_as_by_peft() {
    for (name, kind, tied) in [
        ("all-linear-excluded", "llama", false),
        ("bias-all", "llama", true),
        ("bias-lora-only", "llama", true),
        ("dora-embedding", "llama", false),
        ("dora-patterns", "llama", true),
        ("dora-rslora", "llama", true),
        ("embedding-rslora", "llama", false),
        ("excluded-by-pattern", "llama", true),
        ("experts", "mixtral", false),
        ("experts-all-linear", "mixtral", false),
        ("experts-and-modules", "mixtral", false),
        ("experts-in-out", "gpt_oss", false),
        ("experts-stored", "mixtral", false),
        ("fan-in-fan-out", "gpt2", true),
        ("layers", "llama", true),
        ("lora-bias", "llama", true),
        ("lora-bias-rslora", "llama", true),
        ("modules-to-save", "llama", true),
        ("patterns-in-order", "llama", true),
        ("resized", "llama", false),
        ("resized", "llama", true),
        ("resized-and-saved", "llama", false),
        ("router", "mixtral", false),
        ("saved-embedding", "llama", false),
        ("saved-tied", "llama", true),
        ("tokens", "llama", true),
        ("tokens-tied", "llama", true),
        ("tokens-untied", "llama", false),
        ("weight-tying", "llama", true),
    ] {
        let stored = SafetensorsSource::open(&fixture(&format!("peft_merged/peft-{name}.safetensors"))).unwrap();
        let values =
            |name: &str| -> Vec<f64> { decode(&bytes(&stored.read(name, None).unwrap()), FloatType::F32).collect() };
        let tensors = stored.entries().iter().filter_map(|entry| {
            // Its checkpoints do not have the head, which is tied.
            let own = entry.name.strip_prefix("base.").filter(|own| kind != "gpt2" || *own != "lm_head.weight")?;
            Some((own.to_owned(), entry.shape.clone(), values(&entry.name)))
        });
        let base = Arc::new(Tensors::new(FloatType::F32, tensors));
        let layer = |name: &str| name.split('.').nth(2).and_then(|index| index.parse::<usize>().ok());
        let layers = base.entries().iter().filter_map(|entry| layer(&entry.name)).max().map_or(1, |last| last + 1);
        let format = ModelFormat::Safetensors { config: Arc::new(config(kind, tied, layers)) };
        let info = ModelInfo::new(name, format, base.entries().to_vec());
        let adapter = Arc::new(read_folder(&fixture(&format!("adapters/peft-{name}"))).unwrap());
        let source =
            MergedSource::new(base.clone(), vec![(adapter, 1.0)], &info).unwrap_or_else(|e| panic!("{name}: {e}"));
        for entry in source.entries() {
            let expected = values(&format!("merged.{}", entry.name));
            let found: Vec<_> = decode(&bytes(&source.read(&entry.name, None).unwrap()), FloatType::F32).collect();
            assert_eq!(found.len(), expected.len(), "{name}: {}", entry.name);
            let base = if name == "weight-tying" { base.values(&entry.name) } else { expected.clone() };
            for ((found, expected), base) in found.iter().zip(&expected).zip(base) {
                // PEFT adds the one delta twice, which is not what was trained.
                let expected = (expected + base) / 2.0;
                assert!((found - expected).abs() < 2e-6, "{name}: {}: {found} is not {expected}", entry.name);
            }
        }
        assert_eq!(source.report().vocab_size, name.starts_with("resized").then_some(27));
    }
}
