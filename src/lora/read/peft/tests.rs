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
        ("modules_to_save", json!([])),
        ("loftq_config", json!({})),
        ("some_new_field", Value::Null),
        ("another_new_field", json!("")),
    ] {
        test.set(key, value);
    }
    test.read().unwrap();
    for init in [json!(true), json!(false), json!("gaussian"), json!("orthogonal"), Value::Null] {
        test.set("init_lora_weights", init);
        test.read().unwrap();
    }
}

#[test]
fn every_feature_that_is_not_supported_is_refused_by_name() {
    for (key, value, words) in [
        ("use_dora", json!(true), &["`use_dora` is true", "DoRA"][..]),
        ("rank_pattern", json!({"q_proj": 4}), &["`rank_pattern`", "q_proj"]),
        ("alpha_pattern", json!({"q_proj": 4}), &["`alpha_pattern`"]),
        (
            "modules_to_save",
            json!(["lm_head"]),
            &["`modules_to_save` is [\"lm_head\"]: it asks for modules saved in full, and llm-local does not support"],
        ),
        ("bias", json!("all"), &["`bias` is \"all\"", "none"]),
        ("bias", json!(true), &["`bias`"]),
        ("lora_bias", json!(true), &["`lora_bias`"]),
        ("fan_in_fan_out", json!(true), &["`fan_in_fan_out`"]),
        ("target_parameters", json!(["experts.gate_up_proj"]), &["`target_parameters`"]),
        ("trainable_token_indices", json!([1]), &["`trainable_token_indices`"]),
        ("layer_replication", json!([[0, 2]]), &["`layer_replication`"]),
        ("alora_invocation_tokens", json!([1, 2]), &["`alora_invocation_tokens`", "aLoRA"]),
        ("use_qalora", json!(true), &["`use_qalora`"]),
        ("use_bdlora", json!({"nblocks": 2}), &["`use_bdlora`"]),
        ("arrow_config", json!({"top_k": 3}), &["`arrow_config`"]),
        ("kasa_config", json!({"beta": 1}), &["`kasa_config`", "KaSA"]),
        ("velora_config", json!({"scale": 1}), &["`velora_config`"]),
        ("monteclora_config", json!({"num_samples": 1}), &["`monteclora_config`"]),
        ("megatron_config", json!({"a": 1}), &["`megatron_config`"]),
        ("loftq_config", json!({"loftq_bits": 4}), &["`loftq_config`"]),
        ("corda_config", json!({"corda_method": "ipm"}), &["`corda_config`"]),
        ("lora_ga_config", json!({"scale": "stable"}), &["`lora_ga_config`"]),
        ("ensure_weight_tying", json!(true), &["`ensure_weight_tying`"]),
        ("init_lora_weights", json!("pissa"), &["\"pissa\"", "changes the base"]),
        ("init_lora_weights", json!("pissa_niter_16"), &["\"pissa_niter_16\"", "changes the base"]),
        ("init_lora_weights", json!("OLoRA"), &["changes the base"]),
        ("init_lora_weights", json!("corda"), &["changes the base"]),
        ("init_lora_weights", json!("loftq"), &["changes the base"]),
        ("init_lora_weights", json!("lora_ga"), &["changes the base"]),
        ("init_lora_weights", json!("mica"), &["\"mica\"", "not supported"]),
        ("init_lora_weights", json!(3), &["`init_lora_weights` is 3"]),
        ("peft_type", json!("LOHA"), &["`peft_type` is \"LOHA\""]),
        ("peft_type", Value::Null, &["`peft_type` is null"]),
        ("some_new_field", json!(0.5), &["unknown field `some_new_field` is 0.5"]),
        ("some_new_field", json!(0), &["unknown field `some_new_field` is 0"]),
    ] {
        refused(
            key,
            |t| {
                t.set(key, value);
            },
            words,
        );
    }
}

#[test]
fn fields_of_the_wrong_kind_are_refused_with_what_was_expected() {
    for (key, value, words) in [
        ("r", json!(0), &["`r` must be a rank of at least 1", "found 0"][..]),
        ("r", json!(-8), &["`r`", "found -8"]),
        ("r", json!("2"), &["`r`", "found \"2\""]),
        ("r", json!(2.0), &["`r`", "found 2.0"]),
        ("r", json!(true), &["`r`", "found true"]),
        ("r", json!(1u64 << 40), &["(2, 128)", "1099511627776"]),
        ("r", json!(3), &["rank 2", "rank 3"]),
        ("r", Value::Null, &["rank 8"]),
        ("lora_alpha", json!("16"), &["`lora_alpha`", "found \"16\""]),
        ("lora_alpha", json!([16]), &["`lora_alpha`"]),
        ("lora_alpha", json!(0), &["`lora_alpha` is 0"]),
        ("lora_alpha", Value::Null, &["`lora_alpha` is missing"]),
        ("use_rslora", json!("true"), &["`use_rslora`", "true or false"]),
        ("use_rslora", json!(1), &["`use_rslora`"]),
        ("target_modules", json!([]), &["`target_modules`", "empty"]),
        ("target_modules", json!(["q_proj", 3]), &["`target_modules`", "found 3"]),
        ("target_modules", json!(["q_proj", ""]), &["`target_modules`", "found \"\""]),
        ("target_modules", json!({"q_proj": 1}), &["`target_modules`"]),
        ("exclude_modules", json!(3), &["`exclude_modules`"]),
        ("layers_to_transform", json!("2"), &["`layers_to_transform`", "found \"2\""]),
        ("layers_to_transform", json!([2, -1]), &["`layers_to_transform`", "found -1"]),
        ("layers_to_transform", Value::Null, &["`layers_pattern`", "without `layers_to_transform`"]),
        ("layers_pattern", json!(7), &["`layers_pattern`"]),
        ("base_model_name_or_path", json!(7), &["`base_model_name_or_path`", "text or null"]),
        ("revision", json!(false), &["`revision`"]),
    ] {
        refused(
            key,
            |t| {
                t.set(key, value);
            },
            words,
        );
    }
    refused(
        "no alpha",
        |t| {
            t.unset("lora_alpha");
        },
        &["`lora_alpha` is missing"],
    );
    for targets in ["all-linear", ".*q_proj"] {
        let words = ["`layers_to_transform` goes only with a list"];
        refused(
            targets,
            |t| {
                t.set("target_modules", json!(targets));
            },
            &words,
        );
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
fn tensors_that_are_no_whole_pair_of_float_matrices_are_refused_by_name() {
    let q = |factor: &str| TestAdapter::key(2, "q_proj", factor);
    let named = |factor: &str, adapter: &str| q(factor).replace(".weight", &format!(".{adapter}.weight"));
    refused(
        "no B",
        |t| {
            t.remove(&q("lora_B"));
        },
        &[&q("lora_B"), "is missing", "only lora_A"],
    );
    refused(
        "no A",
        |t| {
            t.remove(&q("lora_A"));
        },
        &[&q("lora_A"), "is missing", "only lora_B"],
    );
    refused("none", |t| t.tensors.clear(), &["no tensors"]);
    refused(
        "same factor",
        |t| {
            t.tensor(named("lora_A", "default"), &[2, 128]);
        },
        &["same factor", &q("lora_A")],
    );
    let words = ["different adapters", "lora_A.pirate.weight"];
    refused("two adapters", |t| t.at(&q("lora_A")).0 = named("lora_A", "pirate"), &words);
    let extra = "base_model.model.model.norm.weight";
    refused(
        "full weight",
        |t| {
            t.tensor(extra, &[128]);
        },
        &[extra, "modules_to_save"],
    );
    let extra = "base_model.model.model.embed_tokens.lora_embedding_A";
    refused(
        "embedding",
        |t| {
            t.tensor(extra, &[2, 896]);
        },
        &[extra, "embedding"],
    );
    let extra = "base_model.model.model.layers.2.self_attn.q_proj.lora_magnitude_vector";
    refused(
        "magnitude",
        |t| {
            t.tensor(extra, &[128]);
        },
        &[extra, "DoRA"],
    );
    let extra = "base_model.model.model.layers.2.self_attn.q_proj.lora_B.bias";
    refused(
        "bias",
        |t| {
            t.tensor(extra, &[128]);
        },
        &[extra, "lora_bias"],
    );
    let bare = "model.layers.2.self_attn.q_proj.lora_A.weight";
    refused("no prefix", |t| t.at(&q("lora_A")).0 = bare.into(), &[bare, "base_model.model."]);
    for (dtype, size, name) in [("I64", 8, "i64"), ("U8", 1, "u8"), ("F64", 8, "f64"), ("BOOL", 1, "bool")] {
        let change = |t: &mut TestAdapter| {
            let tensor = t.at(&q("lora_A"));
            (tensor.1, tensor.3) = (dtype, vec![1; 256 * size]);
        };
        refused(dtype, change, &[&q("lora_A"), name, "expected floats"]);
    }
    let reshape = |shape: &'static [usize]| move |t: &mut TestAdapter| t.at(&q("lora_A")).2 = shape.to_vec();
    refused("vector", reshape(&[256]), &[&q("lora_A"), "(256)", "2 dimensions"]);
    refused("convolution", reshape(&[2, 128, 1, 1]), &[&q("lora_A"), "convolution"]);
    refused("transposed A", reshape(&[128, 2]), &[&q("lora_A"), "(128, 2)", "expected (2, in)"]);
    refused("empty", |t| (t.at(&q("lora_A")).2, t.at(&q("lora_A")).3) = (vec![2, 0], Vec::new()), &["(2, 0)", "empty"]);
    let ranks = |t: &mut TestAdapter| {
        t.remove(&q("lora_A")).remove(&q("lora_B"));
        t.pair("model.layers.2.self_attn.q_proj", 3, 128, 128);
    };
    refused("a pair of another rank", ranks, &["(3, 128)", "rank 3", "expected (2, in)", "(128, 3)"]);
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
