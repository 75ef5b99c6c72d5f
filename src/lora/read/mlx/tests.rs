use std::{collections::BTreeMap, fs};

use llm_local_core::{
    ArtifactRef, Encoding, LoraAdapter, LoraModule, Result, TensorSource,
    lora::{AdapterFeature, DeclaredTargets, Floats, ModuleSelector},
    model::Layout,
};
use llm_local_weights::SafetensorsSource;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::lora::{
    AdapterOutline, ReadOptions, floats, read_with,
    testing::{RawTensor, f32_bytes, fixture, outline_folder, read_folder, safetensors},
};

/// An mlx-lm adapter of one module, q_proj in layer 1 with 3 inputs, rank 2 and 4 outputs, until it is changed.
struct TestAdapter {
    config: Value,
    tensors: Vec<RawTensor>,
}

const Q: &str = "model.layers.1.self_attn.q_proj";

impl TestAdapter {
    fn new() -> Self {
        let config = json!({"lora_parameters": {"rank": 2, "scale": 3.0, "dropout": 0.1, "keys": ["self_attn.q_proj"]},
            "num_layers": 1, "model": "org/base"});
        Self { config, tensors: Vec::new() }.with(&format!("{Q}.lora_a"), &[3, 2]).with(&format!("{Q}.lora_b"), &[2, 4])
    }

    /// Without tensors.
    fn empty() -> Self {
        Self { tensors: Vec::new(), ..Self::new() }
    }

    /// With a tensor whose values count up from 1.
    fn with(mut self, name: &str, shape: &[usize]) -> Self {
        let values: Vec<f32> = (1..=shape.iter().product()).map(|i| i as f32).collect();
        self.tensors.push((name.into(), "F32", shape.to_vec(), f32_bytes(&values)));
        self
    }

    fn set(mut self, field: &str, value: Value) -> Self {
        self.config[field] = value;
        self
    }

    fn parameter(mut self, field: &str, value: Value) -> Self {
        self.config["lora_parameters"][field] = value;
        self
    }

    fn unset(mut self, object: &str, field: &str) -> Self {
        self.config.pointer_mut(object).unwrap().as_object_mut().unwrap().remove(field).unwrap();
        self
    }

    fn files(&self) -> (TempDir, ArtifactRef, BTreeMap<String, std::path::PathBuf>) {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("adapter_config.json"), self.config.to_string()).unwrap();
        fs::write(folder.path().join("adapters.safetensors"), safetensors(&self.tensors)).unwrap();
        let files = ["adapter_config.json", "adapters.safetensors"];
        let files = files.into_iter().map(|name| (name.to_owned(), folder.path().join(name))).collect();
        let reference = ArtifactRef::file(folder.path()).unwrap();
        (folder, reference, files)
    }

    fn read_with(&self, options: ReadOptions) -> Result<LoraAdapter> {
        let (_folder, reference, files) = self.files();
        read_with(&reference, &files, options, &[])
    }

    /// Reads it, and checks that its outline says the same.
    fn read(&self) -> Result<LoraAdapter> {
        let (folder, ..) = self.files();
        let read = read_folder(folder.path());
        if let Ok(adapter) = &read {
            assert_eq!(outline_folder(folder.path()).unwrap(), AdapterOutline::from(adapter));
        }
        read
    }

    fn refused(&self, words: &[&str]) {
        let error = self.read().unwrap_err();
        assert_eq!(error.code(), "adapter_merge_failed", "{error}");
        for word in words {
            assert!(error.to_string().contains(word), "`{word}` is not in: {error}");
        }
    }
}

fn f32s(values: &Floats) -> &[f32] {
    let Floats::F32(values) = values else { panic!("it is stored as {}", values.float_type()) };
    values
}

/// `scale * B @ A`, of shape (out, in).
fn delta(module: &LoraModule) -> Vec<f64> {
    let (a, b) = (f32s(&module.a), f32s(&module.b));
    let (rank, inputs) = (module.rank, module.in_features);
    let term = |o: usize, i: usize, k: usize| f64::from(b[o * rank + k]) * f64::from(a[k * inputs + i]);
    let all = (0..module.out_features).flat_map(|o| (0..inputs).map(move |i| (o, i)));
    all.map(|(o, i)| module.scale * (0..rank).map(|k| term(o, i, k)).sum::<f64>()).collect()
}

fn names(names: &[&str]) -> DeclaredTargets {
    DeclaredTargets::new(ModuleSelector::Names(names.iter().map(|n| (*n).to_owned()).collect()))
}

#[test]
fn a_trained_adapter_is_the_same_as_its_twin_in_pefts_format() {
    for (mlx, peft, modules, scale) in [
        ("tiny-llama-lora-mlx-trained", "tiny-llama-lora-mlx-trained-as-peft", 9, 6.0),
        ("tiny-llama-lora-mlx", "tiny-llama-lora-peft", 28, 2.0),
    ] {
        let read = |name: &str| read_folder(&fixture("adapters").join(name)).unwrap();
        let (adapter, twin) = (read(mlx), read(peft));
        assert_eq!((&*adapter.format, adapter.row_order), ("mlx-lm", Layout::HuggingFace));
        assert_eq!(adapter.base.name.as_deref(), Some("tiny-llama"));
        assert_eq!(adapter.modules.len(), modules);
        assert_eq!((&adapter.features[..], &adapter.notes[..]), (&[][..], &[][..]));
        for (module, twin) in adapter.modules.iter().zip(&twin.modules) {
            assert_eq!(module.scale, scale);
            assert_eq!(module, twin, "{mlx}");
        }
        assert_eq!(adapter.modules.len(), twin.modules.len());
    }
}

#[test]
fn a_dora_adapter_has_the_magnitudes_of_its_twin() {
    let folder = fixture("adapters/tiny-llama-lora-dora-mlx");
    let adapter = read_folder(&folder).unwrap();
    assert_eq!(outline_folder(&folder).unwrap(), AdapterOutline::from(&adapter));
    assert_eq!(adapter.features, [AdapterFeature::Dora]);
    assert_eq!(adapter.modules.len(), 28);
    let twin = fixture("adapters/tiny-llama-lora-dora/adapter_model.safetensors");
    let twin = SafetensorsSource::open(&twin).unwrap();
    for module in &adapter.modules {
        let tensor = |part: &str| {
            let name = format!("base_model.model.{}.{part}", module.name);
            let Encoding::Float(stored) = twin.entry(&name).unwrap().encoding else { panic!("{name}") };
            floats::own(twin.read(&name, None).unwrap(), stored).unwrap()
        };
        assert_eq!(module.a, tensor("lora_A.weight"), "{}", module.name);
        assert_eq!(module.b, tensor("lora_B.weight"), "{}", module.name);
        assert_eq!(module.magnitude, Some(floats::widened(&tensor("lora_magnitude_vector"))), "{}", module.name);
        assert_eq!((module.rank, module.scale), (4, 2.0));
    }
}

#[test]
fn factors_are_turned_and_the_scale_is_taken_as_it_stands() {
    let adapter = TestAdapter::new().read().unwrap();
    let [module] = &adapter.modules[..] else { panic!() };
    assert_eq!((module.name.as_str(), module.rank, module.in_features, module.out_features), (Q, 2, 3, 4));
    // lora_a is [[1, 2], [3, 4], [5, 6]], lora_b [[1, 2, 3, 4], [5, 6, 7, 8]]; W' = W + scale * lora_b^T @ lora_a^T.
    let naive = |o: usize, i: usize| 3.0 * ((2 * i + 1) * (o + 1) + (2 * i + 2) * (o + 5)) as f64;
    let expected: Vec<f64> = (0..4).flat_map(|o| (0..3).map(move |i| naive(o, i))).collect();
    assert_eq!(delta(module), expected);
    assert_eq!(adapter.targets, Some(names(&["self_attn.q_proj"]).with_last_layers(1)));
}

#[test]
fn a_square_factor_is_told_by_its_spelling() {
    let square = TestAdapter::empty().with(&format!("{Q}.lora_a"), &[2, 2]).with(&format!("{Q}.lora_b"), &[2, 2]);
    let module = &square.read().unwrap().modules[0];
    assert_eq!((f32s(&module.a), f32s(&module.b)), (&[1., 3., 2., 4.][..], &[1., 3., 2., 4.][..]));
}

#[test]
fn an_embeddings_pair_becomes_one_of_vocabulary_by_width() {
    let name = "model.embed_tokens";
    let adapter = TestAdapter::empty()
        .parameter("keys", json!([name]))
        .with(&format!("{name}.lora_a"), &[5, 2])
        .with(&format!("{name}.lora_b"), &[2, 3])
        .read()
        .unwrap();
    let module = adapter.module(name).unwrap();
    assert_eq!((module.rank, module.in_features, module.out_features), (2, 3, 5));
    // lora_a @ lora_b, with lora_a [[1, 2], [3, 4], ..] and lora_b [[1, 2, 3], [4, 5, 6]].
    let naive = |v: usize, d: usize| 3.0 * ((2 * v + 1) * (d + 1) + (2 * v + 2) * (d + 4)) as f64;
    let expected: Vec<f64> = (0..5).flat_map(|v| (0..3).map(move |d| naive(v, d))).collect();
    assert_eq!(delta(module), expected);
    assert_eq!(adapter.features, [AdapterFeature::Embedding]);
}

#[test]
fn switch_layers_keep_a_pair_for_each_expert_as_it_is_stored() {
    let name = "model.layers.1.mlp.switch_mlp.up_proj";
    let adapter = TestAdapter::empty()
        .parameter("keys", json!(["mlp.switch_mlp.up_proj"]))
        .with(&format!("{name}.lora_a"), &[3, 2, 5])
        .with(&format!("{name}.lora_b"), &[3, 4, 2])
        .read()
        .unwrap();
    let module = adapter.module(name).unwrap();
    assert_eq!((module.experts, module.rank, module.in_features, module.out_features), (Some(3), 2, 5, 4));
    assert_eq!(f32s(&module.a), (1..=30).map(|i| i as f32).collect::<Vec<_>>());
    assert_eq!(f32s(&module.b), (1..=24).map(|i| i as f32).collect::<Vec<_>>());
    assert_eq!(adapter.features, [AdapterFeature::Experts]);
}

#[test]
fn layers_are_counted_from_the_last_and_zero_or_less_is_all_of_them() {
    let targets = |test: TestAdapter| test.read().unwrap().targets.unwrap().last_layers;
    assert_eq!(targets(TestAdapter::new().set("num_layers", json!(3))), Some(3));
    assert_eq!(targets(TestAdapter::new().set("num_layers", json!(0))), None);
    assert_eq!(targets(TestAdapter::new().set("num_layers", json!(-1))), None);
    // What older versions call it, and what mlx-lm trains if nothing is said.
    let unsaid = || TestAdapter::new().unset("", "num_layers");
    assert_eq!(targets(unsaid().set("lora_layers", json!(4))), Some(4));
    assert_eq!(targets(unsaid()), Some(16));
    TestAdapter::new().set("num_layers", json!("all")).refused(&["`num_layers`", "an integer", "\"all\""]);
}

#[test]
fn keys_are_relative_or_whole_and_without_them_the_kinds_that_there_are() {
    let keys = |keys: Value| TestAdapter::new().parameter("keys", keys).read().unwrap().targets.unwrap().modules;
    let of = |list: &[&str]| names(list).modules;
    assert_eq!(keys(json!([Q, "self_attn.v_proj"])), of(&[Q, "self_attn.v_proj"]));
    assert_eq!(keys(json!([format!("language_model.{Q}")])), of(&[Q]));
    assert_eq!(keys(Value::Null), of(&["self_attn.q_proj"]));
    TestAdapter::new().parameter("keys", json!([])).refused(&["lora_parameters.keys", "applies to nothing"]);
    TestAdapter::new().parameter("keys", json!("q_proj")).refused(&["lora_parameters.keys", "a list of names"]);
}

#[test]
fn a_prefix_of_models_with_several_parts_is_left_out_and_no_module_stands_there_twice() {
    let prefixed = |test: TestAdapter| {
        test.with(&format!("language_model.{Q}.lora_a"), &[3, 2]).with(&format!("language_model.{Q}.lora_b"), &[2, 4])
    };
    assert_eq!(prefixed(TestAdapter::empty()).read().unwrap().modules[0].name, Q);
    prefixed(TestAdapter::new()).refused(&[&format!("`{Q}.lora_a`"), "the same part of one module"]);
}

#[test]
fn what_is_read_but_not_as_the_config_says_is_reported() {
    let adapter = TestAdapter::new().parameter("rank", json!(8)).set("frobnicate", json!(3)).read().unwrap();
    assert_eq!((adapter.modules[0].rank, adapter.modules[0].scale), (2, 3.0));
    let [unknown, rank] = &adapter.notes[..] else { panic!("{:?}", adapter.notes) };
    assert!(unknown.contains("`frobnicate` is 3"), "{unknown}");
    assert!(rank.contains("`rank` is 8") && rank.contains(Q) && rank.contains("rank 2"), "{rank}");
    let silent = TestAdapter::new().set("frobnicate", json!([])).set("batch_size", json!(8)).read().unwrap();
    assert!(silent.notes.is_empty(), "{:?}", silent.notes);
}

#[test]
fn a_scale_that_the_config_does_not_say_must_be_given() {
    let unsaid = TestAdapter::new().unset("/lora_parameters", "scale");
    unsaid.refused(&["lora_parameters.scale", "is missing", "20.0"]);
    assert_eq!(unsaid.read_with(ReadOptions::new().with_scale(0.5)).unwrap().modules[0].scale, 0.5);
    let error = TestAdapter::new().read_with(ReadOptions::new().with_scale(0.5)).unwrap_err().to_string();
    assert!(error.contains("0.5") && error.contains("`lora_parameters.scale` is 3"), "{error}");
    let error = unsaid.read_with(ReadOptions::new().with_scale(f64::NAN)).unwrap_err().to_string();
    assert!(error.contains("NaN"), "{error}");
    // A scale that is given is a part of what the adapter is.
    let digest = |scale| unsaid.read_with(ReadOptions::new().with_scale(scale)).unwrap().digest;
    assert_ne!(digest(0.5), digest(1.0));
}

#[test]
fn fields_that_would_make_another_adapter_are_refused() {
    for (test, words) in [
        (TestAdapter::new().parameter("scale", json!(0)), &["lora_parameters.scale", "do nothing"][..]),
        (TestAdapter::new().parameter("scale", json!("2")), &["lora_parameters.scale", "a finite number", "\"2\""]),
        (TestAdapter::new().parameter("rank", json!(0)), &["lora_parameters.rank", "found 0"]),
        (TestAdapter::new().parameter("alpha", json!(16)), &["`scale` 3", "`alpha` 16", "24", "remove `alpha`"]),
        (TestAdapter::new().parameter("use_rslora", json!(true)), &["lora_parameters.use_rslora", "not known"]),
        (TestAdapter::new().set("fine_tune_type", json!("prefix")), &["fine_tune_type", "\"prefix\""]),
        (TestAdapter::new().set("lora_parameters", json!([])), &["`lora_parameters` must be an object"]),
        (TestAdapter::new().set("model", json!(3)), &["`model` must be text"]),
    ] {
        test.refused(words);
    }
    // What says the same as there is no other way to read is let pass.
    assert_eq!(TestAdapter::new().parameter("alpha", json!(2)).read().unwrap().modules[0].scale, 3.0);
}

#[test]
fn tensors_that_make_no_pair_are_refused_by_name() {
    let (a, b, m) = (&*format!("{Q}.lora_a"), &*format!("{Q}.lora_b"), &*format!("{Q}.m"));
    let dora = |test: TestAdapter| test.set("fine_tune_type", json!("dora"));
    for (test, words) in [
        (TestAdapter::empty(), &["adapters.safetensors", "no tensors"][..]),
        (TestAdapter::empty().with(a, &[3, 2]), &["q_proj.lora_b` is missing", "only `lora_a`"]),
        (TestAdapter::empty().with(b, &[2, 4]), &["q_proj.lora_a` is missing", "only `lora_b`"]),
        (TestAdapter::empty().with(a, &[3, 2]).with(b, &[3, 4]), &["(3, 2), so rank 2", "(3, 4), so rank 3"]),
        (TestAdapter::empty().with(a, &[3]).with(b, &[3, 4]), &["(3)", "expected (in, r) and (r, out)"]),
        (TestAdapter::empty().with(a, &[2, 2, 3]).with(b, &[3, 4, 2]), &["(2, 2, 3)", "(3, 4, 2)"]),
        (TestAdapter::empty().with(a, &[3, 0]).with(b, &[0, 4]), &["q_proj.lora_a`", "empty"]),
        (TestAdapter::new().with("model.norm.weight", &[4]), &["`model.norm.weight`", "full weight"]),
        (TestAdapter::new().with("x.q.lora_A.weight", &[2, 4]), &["x.q.lora_A.weight", "as PEFT does"]),
        (TestAdapter::new().with(m, &[4]), &["q_proj.m`", "`fine_tune_type` is not \"dora\""]),
        (dora(TestAdapter::new()), &["q_proj.m` is missing"]),
        (dora(TestAdapter::new().with(m, &[3])), &["q_proj.m` has the shape (3)", "expected (4,)"]),
        (dora(TestAdapter::empty().with(m, &[4])), &["q_proj.lora_a` and", "only `m`"]),
        (
            dora(TestAdapter::empty().with(a, &[2, 2, 3]).with(b, &[2, 4, 2]).with(m, &[4])),
            &["q_proj.m`", "experts", "mlx-lm does not have"],
        ),
    ] {
        test.refused(words);
    }
    assert_eq!(dora(TestAdapter::new().with(m, &[4])).read().unwrap().modules[0].magnitude, Some(vec![1., 2., 3., 4.]));
    // Before `fine_tune_type` there was a flag.
    let flag = TestAdapter::new().with(m, &[4]).set("use_dora", json!(true));
    assert_eq!(flag.read().unwrap().features, [AdapterFeature::Dora]);
}

#[test]
fn values_that_are_no_floats_not_finite_or_without_effect_are_refused() {
    let with = |change: fn(&mut RawTensor), index: usize| {
        let mut test = TestAdapter::new();
        change(&mut test.tensors[index]);
        test
    };
    let nan = |t: &mut RawTensor| t.3[20..24].copy_from_slice(&f32::NAN.to_le_bytes());
    with(nan, 0).refused(&["q_proj.lora_a` has NaN at (2, 1)"]);
    with(nan, 1).refused(&["q_proj.lora_b` has NaN at (1, 1)"]);
    with(|t| t.1 = "I32", 0).refused(&["q_proj.lora_a` is stored as i32", "expected floats"]);
    with(|t| t.3.fill(0), 1).refused(&["`B @ A` is zero in its one module"]);
    let mut dora = TestAdapter::new().with(&format!("{Q}.m"), &[4]).set("fine_tune_type", json!("dora"));
    dora.tensors[1].3.fill(0);
    assert!(dora.read().is_ok(), "a magnitude alone has an effect");
    dora.tensors[2].3[..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    dora.refused(&["q_proj.m` has inf at (0)"]);
}

#[test]
fn a_full_fine_tune_replaces_tensors() {
    let full = |test: TestAdapter| test.set("fine_tune_type", json!("full"));
    let weight = format!("{Q}.weight");
    let adapter = full(TestAdapter::empty().with(&weight, &[2, 3]).with("model.norm.weight", &[3])).read().unwrap();
    assert!(adapter.modules.is_empty() && adapter.targets.is_none());
    let replaced: Vec<_> = adapter.replacements.iter().map(|r| (r.name.as_str(), &r.shape[..])).collect();
    assert_eq!(replaced, [(weight.as_str(), &[2, 3][..]), ("model.norm.weight", &[3])]);
    assert_eq!(f32s(&adapter.replacements[0].values), [1., 2., 3., 4., 5., 6.]);
    full(TestAdapter::new()).refused(&["q_proj.lora_a` is of a pair", "\"full\""]);
    full(TestAdapter::empty().with(&weight, &[2, 3]).with(&format!("{Q}.scales"), &[2, 1]))
        .refused(&["q_proj.scales`", "quantized"]);
}

#[test]
fn mlx_vlms_own_format_is_read_where_its_scale_is_certain() {
    let vlm = |rank: usize| {
        let mut test = TestAdapter::empty();
        test.config = json!({"rank": rank, "alpha": 0.1, "dropout": 0.1});
        test.with(&format!("language_model.{Q}.A"), &[3, rank]).with(&format!("language_model.{Q}.B"), &[rank, 4])
    };
    vlm(2).refused(&["mlx-vlm", "`rank` and `alpha`", "0.1 up to 0.1, 0.05 later", "`--scale`"]);
    let adapter = vlm(2).read_with(ReadOptions::new().with_scale(0.05)).unwrap();
    assert_eq!((&*adapter.format, adapter.targets.as_ref()), ("mlx-vlm", None));
    let module = adapter.module(Q).unwrap();
    assert_eq!((module.scale, module.rank), (0.05, 2));
    assert_eq!(f32s(&module.a), [1., 3., 5., 2., 4., 6.]);
    // With rank 1 all versions agree.
    assert_eq!(vlm(1).read().unwrap().modules[0].scale, 0.1);
    assert_eq!(vlm(1).read_with(ReadOptions::new().with_scale(0.1)).unwrap().modules[0].scale, 0.1);
    let error = vlm(1).read_with(ReadOptions::new().with_scale(0.2)).unwrap_err().to_string();
    assert!(error.contains("scale 0.2 was given") && error.contains("`alpha` is 0.1"), "{error}");
    let mut unknown = vlm(1);
    unknown.config["use_rslora"] = json!(true);
    unknown.refused(&["`use_rslora`", "not known", "`unknown-fields`"]);
}

#[test]
fn checkpoints_beside_the_adapter_are_left_alone_and_one_alone_is_it() {
    let (folder, reference, mut files) = TestAdapter::new().files();
    let weights = files.remove("adapters.safetensors").unwrap();
    files.insert("0000100_adapters.safetensors".into(), weights.clone());
    let alone = crate::lora::read(&reference, &files).unwrap();
    files.insert("0000200_adapters.safetensors".into(), folder.path().join("none"));
    let error = crate::lora::read(&reference, &files).unwrap_err().to_string();
    assert!(
        error.contains("`0000100_adapters.safetensors`, `0000200") && error.contains("expected adapters.safe"),
        "{error}"
    );
    files.insert("adapters.safetensors".into(), weights);
    assert_eq!(crate::lora::read(&reference, &files).unwrap(), alone);
}
