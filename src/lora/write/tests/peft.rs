use llm_local_core::{
    LoraModule,
    lora::{AdapterFeature, BaseHint, DeclaredTargets, Floats, ModuleSelector, ReplacementTensor},
};
use serde_json::{Value, json};

use super::*;

/// Every adapter of the fixtures that PEFT, or a script in its format, has saved.
fn of_peft() -> Vec<String> {
    let names = fs::read_dir(fixture("adapters")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let is_peft = |name: &String| fixture("adapters").join(name).join("adapter_model.safetensors").exists();
    let mut names: Vec<_> = names.filter(is_peft).collect();
    names.sort();
    names
}

fn config(adapter: &LoraAdapter) -> Value {
    let folder = TempDir::new().unwrap();
    let written = write(adapter, WriteFormat::Peft, None, &folder.path().join("into")).unwrap();
    serde_json::from_slice(&fs::read(&written.files[0]).unwrap()).unwrap()
}

#[test]
fn every_adapter_of_peft_is_the_same_there_and_back() {
    let names = of_peft();
    assert!(names.len() > 30, "{names:?}");
    for name in names {
        let adapter = adapter(&name);
        let (back, notes) = there_and_back(&adapter, WriteFormat::Peft, None).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_same_values(&back, &adapter, &name);
        let (mut targets, expected) = (back.targets.clone().unwrap(), whole_parameters(&adapter).unwrap());
        if name == "peft-resized" {
            assert_eq!(std::mem::take(&mut targets.saved), ["lm_head", "model.embed_tokens"]);
        }
        assert_eq!(targets, expected, "{name}");
        // A `modules_to_save` is told by its tensors alone, as is a vocabulary that was resized.
        assert_eq!(back.features, patterns_as_needed(&adapter), "{name}");
        assert_eq!(notes, Vec::<String>::new(), "{name}");
    }
}

/// The targets of the adapter, where bare parameters are declared without a path by their whole names.
fn whole_parameters(adapter: &LoraAdapter) -> Option<DeclaredTargets> {
    let mut targets = adapter.targets.clone()?;
    if targets.parameters.iter().any(|name| !name.contains('.')) {
        let parameters = adapter.modules.iter().filter(|module| module.is_parameter);
        targets.parameters = parameters.map(|module| module.name.clone()).collect();
    }
    Some(targets)
}

/// The features of the adapter, of the patterns only those that its modules need.
fn patterns_as_needed(adapter: &LoraAdapter) -> Vec<AdapterFeature> {
    let alpha = |m: &LoraModule| (m.scale * m.rank as f64 * 1e6).round();
    let differ = |of: &dyn Fn(&LoraModule) -> f64| adapter.modules.iter().any(|m| of(m) != of(&adapter.modules[0]));
    let needed = |feature: &AdapterFeature| match feature {
        AdapterFeature::RankPattern => differ(&|m| m.rank as f64),
        AdapterFeature::AlphaPattern => differ(&alpha),
        _ => true,
    };
    adapter.features.iter().copied().filter(needed).collect()
}

#[test]
fn an_adapter_of_mlx_becomes_its_twin_of_peft_and_back() {
    let (mlx, twin) = (adapter("tiny-llama-lora-mlx-trained"), adapter("tiny-llama-lora-mlx-trained-as-peft"));
    let (back, notes) = there_and_back(&mlx, WriteFormat::Peft, None).unwrap();
    assert_same_values(&back, &twin, "mlx as peft");
    assert_eq!(notes, Vec::<String>::new());
    for (name, twin) in
        [("tiny-llama-lora-mlx", "tiny-llama-lora-peft"), ("tiny-llama-lora-dora-mlx", "tiny-llama-lora-dora")]
    {
        let (back, _) = there_and_back(&adapter(name), WriteFormat::Peft, None).unwrap();
        assert_same_values(&back, &adapter(twin), name);
    }
    let (back, _) = there_and_back(&twin, WriteFormat::MlxLm, Some(&base("tiny-llama"))).unwrap();
    assert_same_values(&back, &mlx, "peft as mlx");
    assert_eq!(back.targets.unwrap().last_layers, Some(3));
}

#[test]
fn an_adapter_of_gguf_becomes_its_twin_of_peft() {
    let path = fixture("gguf/tiny-llama-lora-peft-f32.gguf");
    let gguf = read_files(&[path]).unwrap();
    let (mut back, _) = there_and_back(&gguf, WriteFormat::Peft, Some(&base("tiny-llama"))).unwrap();
    back.base = BaseHint::new(Some("tiny-llama".into()), None);
    assert_same_values(&back, &adapter("tiny-llama-lora-peft"), "gguf as peft");
    let error = there_and_back(&gguf, WriteFormat::Peft, None).unwrap_err().to_string();
    assert!(error.contains("GGUF's order") && error.contains("give the base model"), "{error}");
    let error = there_and_back(&gguf, WriteFormat::Peft, Some(&base("arch-qwen2"))).unwrap_err().to_string();
    assert!(error.contains("it is for another base"), "{error}");
}

#[test]
fn the_config_says_what_peft_needs() {
    let config = config(&adapter("tiny-llama-lora-patterns"));
    for (key, value) in [
        ("peft_type", json!("LORA")),
        ("task_type", json!("CAUSAL_LM")),
        ("base_model_name_or_path", json!("tiny-llama")),
        ("r", json!(4)),
        ("lora_alpha", json!(8)),
        ("use_dora", json!(false)),
        ("use_rslora", json!(false)),
        ("lora_bias", json!(false)),
        ("fan_in_fan_out", json!(false)),
        ("bias", json!("none")),
        ("modules_to_save", Value::Null),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
    assert_eq!(config["rank_pattern"][r"model\.layers\.3\.self_attn\.q_proj"], json!(2));
    assert_eq!(config["alpha_pattern"][r"model\.layers\.2\.mlp\.down_proj"], json!(32));
    assert_eq!(config["target_modules"].as_array().unwrap().len(), 7);
    // Of a list that does not choose all modules with pairs, the whole names are taken.
    let mut narrow = adapter("tiny-llama-lora-peft");
    narrow.targets = Some(DeclaredTargets::new(ModuleSelector::Names(vec!["q_proj".into()])));
    let names: Vec<_> = narrow.modules.iter().map(|module| json!(module.name)).collect();
    assert_eq!(self::config(&narrow)["target_modules"], Value::Array(names));
}

#[test]
fn pairs_of_several_parameters_are_nested_as_peft_nests_them() {
    let module = |name: &str| {
        let (a, b) = (vec![0.5f32; 2 * 2 * 3], (1u8..=16).map(f32::from).collect::<Vec<_>>());
        LoraModule::of_experts(format!("model.layers.0.mlp.experts.{name}"), 2, (2, 3, 4), a, b, 2.0).of_parameter()
    };
    let adapter = LoraAdapter::new("x", "", vec![module("down_proj"), module("gate_up_proj")]);
    let folder = TempDir::new().unwrap();
    let written = write(&adapter, WriteFormat::Peft, None, &folder.path().join("into")).unwrap();
    let bytes = fs::read(&written.files[1]).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let inner = tensors.tensor("base_model.model.model.layers.0.mlp.experts.base_layer.lora_B.weight").unwrap();
    // (out, r * experts), with the experts innermost.
    let first: Vec<_> = inner.data()[..16].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    assert_eq!((inner.shape(), first), (&[4, 4][..], vec![1.0, 9.0, 2.0, 10.0]));
    let (back, _) = there_and_back(&adapter, WriteFormat::Peft, None).unwrap();
    assert_same_values(&back, &adapter, "experts");
}

#[test]
fn a_scale_that_no_alpha_gives_is_the_nearest_and_is_noted() {
    let scale = (0..1000).map(|i| 0.7 + f64::from(i) * 1e-3 / 3.0);
    let unreachable = scale.into_iter().find(|s| {
        let near = [s * 3.0, (s * 3.0).next_up(), (s * 3.0).next_down()];
        near.iter().all(|alpha| alpha / 3.0 != *s)
    });
    let module = LoraModule::new("a.q", (3, 1, 1), vec![1.0; 3], vec![1.0; 3], unreachable.unwrap());
    let (back, notes) = there_and_back(&LoraAdapter::new("x", "", vec![module]), WriteFormat::Peft, None).unwrap();
    assert!((back.modules[0].scale / unreachable.unwrap() - 1.0).abs() < 4.0 * f64::EPSILON);
    assert!(notes[0].contains("`a.q`"), "{notes:?}");
}

#[test]
fn biases_and_full_tensors_are_told_apart() {
    let pair = |name: &str| LoraModule::new(name, (1, 1, 1), vec![1.0], vec![1.0], 1.0);
    let full = |name: &str| ReplacementTensor::new(name, vec![1], Floats::F32(vec![2.0]));
    let adapter = LoraAdapter::new("x", "", vec![pair("m.q")]).with_replacements(vec![
        full("m.q.bias"),
        full("m.k.bias"),
        full("m.norm.weight"),
    ]);
    // Without the feature, a bias of no pair is that of a module that is saved in full.
    let said = config(&adapter);
    assert_eq!((&said["bias"], &said["modules_to_save"]), (&json!("lora_only"), &json!(["m.k", "m.norm"])));
    let said = config(&adapter.clone().with_features([AdapterFeature::TrainedBias]));
    assert_eq!((&said["bias"], &said["modules_to_save"]), (&json!("all"), &json!(["m.norm"])));
    let (back, _) = there_and_back(&adapter, WriteFormat::Peft, None).unwrap();
    assert_same_values(&back, &adapter, "biases");
}
