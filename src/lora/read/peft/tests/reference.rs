//! Adapters of PEFT itself, against what it makes of them: adapters on random models of a few hundred parameters, and of
//! every tensor that PEFT's `merge_and_unload` changes the values before and after (`scripts/make_peft.py`).

use std::{collections::BTreeMap, fs};

use half::{bf16, f16};
use llm_local_core::{
    LoraAdapter, LoraModule, TensorSource,
    lora::{AdapterFeature as F, Floats},
};
use llm_local_weights::SafetensorsSource;

use crate::lora::{
    AdapterOutline,
    testing::{fixture, outline_folder, read_folder},
};

/// Shape and values of a tensor.
type Tensor = (Vec<usize>, Vec<f64>);

fn wide(values: &Floats) -> Vec<f64> {
    match values {
        Floats::F32(v) => v.iter().map(|v| f64::from(*v)).collect(),
        Floats::F16(v) => v.iter().map(|v| f16::from_bits(*v).to_f64()).collect(),
        Floats::Bf16(v) => v.iter().map(|v| bf16::from_bits(*v).to_f64()).collect(),
        other => panic!("{other:?}"),
    }
}

/// The tensors whose names begin with `prefix`, without it.
fn tensors(source: &SafetensorsSource, prefix: &str) -> BTreeMap<String, Tensor> {
    let entries = source.entries().iter().filter_map(|entry| Some((entry.name.strip_prefix(prefix)?, entry)));
    let read = |entry: &llm_local_core::TensorEntry| {
        let data = source.read(&entry.name, None).unwrap();
        wide(&crate::lora::floats::own(data, llm_local_core::FloatType::F32).unwrap())
    };
    entries.map(|(name, entry)| (name.to_owned(), (entry.shape.clone(), read(entry)))).collect()
}

/// Applies a pair to its weight, by the definition of the internal form.
fn apply(module: &LoraModule, weight: &mut [f64]) {
    let (r, inputs, outputs) = (module.rank, module.in_features, module.out_features);
    let (a, b) = (wide(&module.a), wide(&module.b));
    let experts = module.experts.unwrap_or(1);
    assert_eq!(weight.len(), experts * inputs * outputs, "{}", module.name);
    for e in 0..experts {
        let at = |o: usize, i: usize| {
            e * inputs * outputs + if module.transposed { i * outputs + o } else { o * inputs + i }
        };
        for o in 0..outputs {
            for i in 0..inputs {
                let product = |k| b[(e * outputs + o) * r + k] * a[(e * r + k) * inputs + i];
                weight[at(o, i)] += module.scale * (0..r).map(product).sum::<f64>();
            }
            if let Some(magnitude) = &module.magnitude {
                let norm = (0..inputs).map(|i| weight[at(o, i)].powi(2)).sum::<f64>().sqrt();
                (0..inputs).for_each(|i| weight[at(o, i)] *= f64::from(magnitude[o]) / norm);
            }
        }
    }
}

/// What `adapter` makes of `base`, by the definition of the internal form.
fn merged(adapter: &LoraAdapter, mut base: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    for replacement in &adapter.replacements {
        base.insert(replacement.name.clone(), (replacement.shape.clone(), wide(&replacement.values)));
    }
    for rows in &adapter.rows {
        let (shape, values) = base.get_mut(&rows.name).unwrap();
        for (row, new) in rows.rows.iter().zip(wide(&rows.values).chunks(shape[1])) {
            values[row * shape[1]..][..shape[1]].copy_from_slice(new);
        }
    }
    for module in &adapter.modules {
        apply(module, &mut base.get_mut(&module.weight_name()).unwrap().1);
        if let Some(bias) = &module.bias {
            let (_, values) = base.get_mut(&format!("{}.bias", module.name)).unwrap();
            values.iter_mut().zip(bias).for_each(|(value, b)| *value += module.scale * f64::from(*b));
        }
    }
    base
}

/// The largest difference, PEFT computing in f32, that was measured is 2.9e-7.
const TOLERANCE: f64 = 1e-6;

/// Compares what is made of the adapter `name` with what PEFT makes of it, but for the tensors `tied`, which PEFT changes
/// because they are tied to others.
fn compare(name: &str, features: &[F], tied: &[&str], change: impl FnOnce(&mut LoraAdapter)) {
    let mut adapter = read_folder(&fixture("adapters").join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(adapter.features, features, "{name}");
    change(&mut adapter);
    let source = SafetensorsSource::open(&fixture(&format!("peft_merged/{name}.safetensors"))).unwrap();
    let found = merged(&adapter, tensors(&source, "base."));
    for (tensor, (shape, expected)) in tensors(&source, "merged.") {
        if tied.contains(&tensor.as_str()) {
            continue;
        }
        let (found_shape, values) = &found[&tensor];
        assert_eq!(*found_shape, shape, "{name}: {tensor}");
        let worst = values.iter().zip(&expected).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
        assert!(worst <= TOLERANCE, "{name}: {tensor} is off by {worst:e}");
    }
}

#[test]
fn what_is_read_makes_of_a_base_what_peft_makes_of_it() {
    let head = &["lm_head.weight"][..];
    for (name, features, tied) in [
        ("peft-experts", &[F::RankPattern, F::TargetParameters, F::Experts][..], &[][..]),
        ("peft-experts-and-modules", &[F::TargetParameters, F::Experts], &[]),
        ("peft-router", &[F::RankStabilized, F::TargetParameters], &[]),
        ("peft-lora-bias", &[F::LoraBias], &[]),
        ("peft-bias-all", &[F::TrainedBias], &[]),
        ("peft-bias-lora-only", &[F::TrainedBias], &[]),
        ("peft-tokens", &[F::TrainableTokens], head),
        ("peft-tokens-untied", &[F::TrainableTokens], &[]),
        ("peft-dora-embedding", &[F::Dora, F::Embedding], &[]),
        ("peft-fan-in-fan-out", &[F::Dora, F::Embedding, F::FanInFanOut], head),
        ("peft-resized", &[F::ModulesToSave], &[]),
        ("peft-modules-to-save", &[F::ModulesToSave], &[]),
        ("peft-patterns-in-order", &[F::RankPattern, F::AlphaPattern], &[]),
        ("peft-mica", &[], &[]),
    ] {
        compare(name, features, tied, |_| {});
    }
    // The model says that it stores them so, which its adapter does not.
    compare("peft-experts-in-out", &[F::TargetParameters, F::Experts], &[], |adapter| {
        for module in &mut adapter.modules {
            module.transposed = true;
        }
    });
}

#[test]
fn a_tied_pair_is_saved_as_that_of_the_embedding_and_of_the_head() {
    let adapter = read_folder(&fixture("adapters/peft-weight-tying")).unwrap();
    assert_eq!(adapter.features, [F::Embedding, F::WeightTying]);
    let [head, embedding] = &adapter.modules[..] else { panic!("{:?}", adapter.modules) };
    assert_eq!((head.name.as_str(), embedding.name.as_str()), ("lm_head", "model.embed_tokens"));
    assert_eq!((&head.a, &head.b, head.scale), (&embedding.a, &embedding.b, embedding.scale));
}

#[test]
fn each_adapter_of_peft_is_read_and_outlined_alike() {
    let mut seen = 0;
    for folder in fs::read_dir(fixture("adapters")).unwrap().map(|entry| entry.unwrap().path()) {
        if !fs::read_to_string(folder.join("adapter_config.json")).is_ok_and(|config| config.contains("\"peft_type\""))
        {
            continue;
        }
        let adapter = read_folder(&folder).unwrap_or_else(|e| panic!("{folder:?}: {e}"));
        assert_eq!(outline_folder(&folder).unwrap(), AdapterOutline::from(&adapter), "{folder:?}");
        assert!(!adapter.modules.is_empty());
        seen += 1;
    }
    assert!(seen >= 30, "only {seen} were there");
}

#[test]
fn variants_on_the_larger_fixtures_are_read() {
    let read = |name: &str| read_folder(&fixture("adapters").join(name)).unwrap();
    let adapter = read("tiny-llama-lora-dora");
    assert_eq!(adapter.features, [F::Dora]);
    assert!(adapter.modules.iter().all(|m| m.magnitude.as_ref().is_some_and(|m| m.iter().all(|v| *v > 0.0))));
    let adapter = read("tiny-llama-lora-patterns");
    assert_eq!(adapter.features, [F::RankPattern, F::AlphaPattern]);
    for (module, rank, scale) in [
        ("model.layers.0.mlp.down_proj", 8, 4.0),
        ("model.layers.3.self_attn.q_proj", 2, 4.0),
        ("model.layers.2.self_attn.q_proj", 4, 2.0),
        ("model.layers.1.self_attn.v_proj", 4, 3.0),
        ("model.layers.2.self_attn.v_proj", 4, 2.0),
    ] {
        let module = adapter.module(module).unwrap();
        assert_eq!((module.rank, module.scale), (rank, scale), "{}", module.name);
    }
    let adapter = read("tiny-llama-lora-embed");
    assert_eq!(adapter.features, [F::Embedding]);
    let embedding = adapter.module("model.embed_tokens").unwrap();
    assert_eq!((embedding.in_features, embedding.out_features), (128, 896));
    assert_eq!(adapter.replacements[0].name, "model.embed_tokens.weight");
    let adapter = read("tiny-llama-lora-modules-to-save-lm_head");
    assert_eq!(adapter.features, [F::ModulesToSave]);
    assert_eq!(adapter.replacements[0].name, "lm_head.weight");
    assert_eq!(read("tiny-llama-lora-bias-lora_only").features, []);
}
