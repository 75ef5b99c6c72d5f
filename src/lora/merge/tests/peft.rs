//! What PEFT's own merge makes of small weights (`tests/fixtures/scripts/make_peft_merges.py`).

use std::{fs, sync::Arc};

use llm_local_core::{FloatType, LoraAdapter, LoraModule, TensorSource};
use serde::Deserialize;
use std::collections::BTreeMap;

use super::{MergedSource, bytes, decode, naive::Tensors, variants::unknown};
use crate::lora::testing::fixture;

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
