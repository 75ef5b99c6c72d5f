//! PEFT adapters that are written by the tests, and those of PEFT itself.

mod fields;
mod reference;
mod tensors;
mod variants;

use llm_local_core::lora::{DeclaredTargets, Floats, ModuleSelector};
use serde_json::{Value, json};

use crate::lora::testing::{TestAdapter, f32_bytes, safetensors};

/// Asserts that the changed adapter is refused, with `words` in the message.
fn refused(label: &str, change: impl FnOnce(&mut TestAdapter), words: &[&str]) {
    let mut adapter = TestAdapter::new();
    change(&mut adapter);
    let error = adapter.read().err().unwrap_or_else(|| panic!("{label} was read"));
    assert_eq!(error.code(), "adapter_merge_failed", "{label}: {error}");
    for word in words {
        assert!(error.to_string().contains(word), "{label}: `{word}` is not in: {error}");
    }
}

#[test]
fn the_internal_form_holds_what_the_files_say() {
    let mut test = TestAdapter::new();
    test.set("revision", json!("abc")).set("exclude_modules", json!(["lm_head"]));
    test.at(&TestAdapter::key(2, "q_proj", "lora_A")).3 = f32_bytes(&(0..256).map(|i| i as f32).collect::<Vec<_>>());
    let adapter = test.read().unwrap();
    let names: Vec<_> = adapter.modules.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(
        names,
        ["2.self_attn.q_proj", "2.self_attn.v_proj", "3.self_attn.q_proj", "3.self_attn.v_proj"]
            .map(|n| format!("model.layers.{n}"))
    );
    let module = adapter.module("model.layers.2.self_attn.v_proj").unwrap();
    assert_eq!((module.rank, module.in_features, module.out_features), (2, 128, 64));
    assert_eq!(module.scale, 2.0);
    let Floats::F32(a) = &adapter.modules[0].a else { panic!("it is stored as f32") };
    assert_eq!(a[130], 130.0);
    assert_eq!(adapter.byte_len(), 4 * 2 * (2 * (128 + 128) + 2 * (128 + 64)));
    assert_eq!(adapter.base.revision.as_deref(), Some("abc"));
    assert_eq!(
        adapter.targets,
        Some(
            DeclaredTargets::new(ModuleSelector::Names(vec!["q_proj".into(), "v_proj".into()]))
                .with_exclude(ModuleSelector::Names(vec!["lm_head".into()]))
                .with_layers(vec![2, 3], vec!["layers".into()])
        )
    );
}

#[test]
fn rank_stabilized_scale_divides_by_the_root_of_the_rank() {
    let mut test = TestAdapter::new();
    test.set("use_rslora", json!(true)).set("lora_alpha", json!(3.5));
    assert_eq!(test.read().unwrap().modules[0].scale, 3.5 / 2f64.sqrt());
}

#[test]
fn half_precision_factors_stay_as_they_are_stored() {
    let mut test = TestAdapter::new();
    for (name, dtype, shape, data) in &mut test.tensors {
        *dtype = if name.contains("lora_A") { "F16" } else { "BF16" };
        *data = [1u8, 0x3c].repeat(shape.iter().product());
    }
    let adapter = test.read().unwrap();
    assert_eq!(adapter.modules[0].a, Floats::F16(vec![0x3c01; 256]));
    assert_eq!(adapter.modules[0].b, Floats::Bf16(vec![0x3c01; 256]));
}

#[test]
fn the_digest_tells_configs_and_weights_apart() {
    let digest = |change: &dyn Fn(&mut TestAdapter)| {
        let mut test = TestAdapter::new();
        change(&mut test);
        test.read().unwrap().digest
    };
    let plain = digest(&|_| {});
    assert_eq!(plain, digest(&|_| {}));
    assert_ne!(
        plain,
        digest(&|t| {
            t.set("lora_alpha", json!(5));
        })
    );
    assert_ne!(plain, digest(&|t| t.tensors[0].3[0] ^= 1));
}

#[test]
fn what_stands_in_the_config_without_effect_is_let_pass() {
    let mut test = TestAdapter::new();
    for (key, value) in [
        ("task_type", json!("CAUSAL_LM")),
        ("auto_mapping", json!({"a": 1})),
        ("inference_mode", json!(true)),
        ("peft_version", json!("0.21.2")),
        ("lora_dropout", json!(0.1)),
        ("megatron_core", json!("megatron.core")),
        ("qalora_group_size", json!(16)),
        ("eva_config", json!({"rho": 2.0})),
        ("init_lora_weights", json!("eva")),
        ("use_dora", json!(false)),
        ("rank_pattern", json!({})),
        ("alpha_pattern", Value::Null),
        ("modules_to_save", json!([])),
        ("trainable_token_indices", json!([])),
        ("target_parameters", json!([])),
        ("bias", json!("none")),
        ("loftq_config", json!({})),
        ("some_new_field", Value::Null),
        ("another_new_field", json!("")),
    ] {
        test.set(key, value);
    }
    test.read().unwrap();
    for init in [json!(true), json!(false), json!("gaussian"), json!("orthogonal"), json!("mica"), Value::Null] {
        test.set("init_lora_weights", init);
        test.read().unwrap();
    }
}

#[test]
fn files_that_no_reader_agrees_on_are_refused() {
    let test = TestAdapter::new();
    let config = Value::Object(test.config.clone()).to_string();
    let weights = safetensors(&test.tensors);
    let good = test.read_with(config.as_bytes(), &weights).unwrap();
    assert_eq!(good.modules.len(), 4);
    let mut same_name = TestAdapter::new();
    let first = same_name.tensors[0].clone();
    same_name.tensors.push(first);
    for (label, config, weights, words) in [
        ("field twice", config.replacen('{', "{\"r\": 4, ", 1), weights.clone(), &["`r` stands there twice"][..]),
        ("NaN", config.replace("\"lora_alpha\":4", "\"lora_alpha\":NaN"), weights.clone(), &["`lora_alpha` is NaN"]),
        ("out of range", config.replace("\"lora_alpha\":4", "\"lora_alpha\":1e999"), weights.clone(), &["range"]),
        ("empty config", String::new(), weights.clone(), &["adapter_config.json", "EOF"]),
        ("empty weights", config.clone(), Vec::new(), &["adapter_model.safetensors"]),
        ("cut off", config.clone(), weights[..weights.len() - 1].to_vec(), &["adapter_model.safetensors"]),
        ("bytes behind", config.clone(), [&weights[..], &[0; 8]].concat(), &["adapter_model.safetensors"]),
        ("name twice", config.clone(), safetensors(&same_name.tensors), &["q_proj.lora_A.weight", "twice"]),
    ] {
        let error = test.read_with(config.as_bytes(), &weights).err().unwrap_or_else(|| panic!("{label} was read"));
        assert_eq!(error.code(), "adapter_merge_failed", "{label}: {error}");
        for word in words {
            assert!(error.to_string().contains(word), "{label}: `{word}` is not in: {error}");
        }
    }
}

#[test]
fn values_that_are_not_finite_or_do_nothing_are_refused() {
    let q = |factor: &str| TestAdapter::key(3, "v_proj", factor);
    for (value, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let change = |t: &mut TestAdapter| t.at(&q("lora_B")).3[4 * 7..4 * 8].copy_from_slice(&value.to_le_bytes());
        refused(shown, change, &[&q("lora_B"), &format!("has {shown} at (3, 1)")]);
    }
    let zero = |factor: &'static str| {
        move |t: &mut TestAdapter| t.tensors.iter_mut().filter(|t| t.0.contains(factor)).for_each(|t| t.3.fill(0))
    };
    refused("B zero", zero("lora_B"), &["`B @ A` is zero in all 4 modules"]);
    refused("A zero", zero("lora_A"), &["`B @ A` is zero in all 4 modules"]);
    let mut partly = TestAdapter::new();
    partly.at(&q("lora_B")).3.fill(0);
    partly.read().unwrap();
}
