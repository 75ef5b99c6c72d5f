//! Fields that are refused.

use serde_json::{Value, json};

use super::refused;

#[test]
fn every_feature_that_cannot_be_merged_is_refused_by_name_and_why() {
    for (key, value, words) in [
        ("layer_replication", json!([[0, 2]]), &["`layer_replication`", "another model"][..]),
        ("alora_invocation_tokens", json!([1, 2]), &["`alora_invocation_tokens`", "aLoRA"]),
        ("use_qalora", json!(true), &["`use_qalora` is true", "QA-LoRA", "groups of inputs"]),
        ("use_bdlora", json!({"nblocks": 2}), &["`use_bdlora`", "BD-LoRA"]),
        ("arrow_config", json!({"top_k": 3}), &["`arrow_config`", "Arrow", "for each token"]),
        ("kasa_config", json!({"beta": 1}), &["`kasa_config`", "KaSA", "changes the base"]),
        ("velora_config", json!({"scale": 1}), &["`velora_config`"]),
        ("monteclora_config", json!({"num_samples": 1}), &["`monteclora_config`"]),
        ("megatron_config", json!({"a": 1}), &["`megatron_config`"]),
        ("loftq_config", json!({"loftq_bits": 4}), &["`loftq_config`"]),
        ("corda_config", json!({"corda_method": "ipm"}), &["`corda_config`"]),
        ("lora_ga_config", json!({"scale": "stable"}), &["`lora_ga_config`"]),
        ("init_lora_weights", json!("pissa"), &["\"pissa\"", "changes the base"]),
        ("init_lora_weights", json!("pissa_niter_16"), &["\"pissa_niter_16\"", "changes the base"]),
        ("init_lora_weights", json!("OLoRA"), &["changes the base"]),
        ("init_lora_weights", json!("corda"), &["changes the base"]),
        ("init_lora_weights", json!("loftq"), &["changes the base"]),
        ("init_lora_weights", json!("lora_ga"), &["changes the base"]),
        ("init_lora_weights", json!("future"), &["\"future\"", "not supported"]),
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
        ("use_dora", json!("yes"), &["`use_dora`", "true or false"]),
        ("bias", json!(true), &["`bias`", "\"lora_only\"", "found true"]),
        ("bias", json!("some"), &["`bias`", "found \"some\""]),
        ("rank_pattern", json!([4]), &["`rank_pattern`", "found [4]"]),
        ("rank_pattern", json!({"q_proj": 0}), &["`rank_pattern.q_proj`", "found 0"]),
        ("rank_pattern", json!({"(": 2}), &["`rank_pattern`", "`(`", "broken"]),
        ("alpha_pattern", json!(16), &["`alpha_pattern`", "found 16"]),
        ("alpha_pattern", json!({"q_proj": 0}), &["`alpha_pattern.q_proj` is 0"]),
        ("alpha_pattern", json!({"q_proj": "8"}), &["`alpha_pattern.q_proj`", "found \"8\""]),
        ("modules_to_save", json!("lm_head"), &["`modules_to_save`", "a list of names"]),
        ("modules_to_save", json!([""]), &["`modules_to_save`", "found \"\""]),
        ("target_parameters", json!("experts.down_proj"), &["`target_parameters`", "a list of names"]),
        ("trainable_token_indices", json!([1, -1]), &["`trainable_token_indices`", "found -1"]),
        ("trainable_token_indices", json!({"embed_tokens": 3}), &["`trainable_token_indices.embed_tokens`", "found 3"]),
        ("trainable_token_indices", json!(3), &["`trainable_token_indices`", "found 3"]),
        ("peft_version", json!(0.19), &["`peft_version`", "text or null"]),
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
fn what_peft_does_not_put_together_is_refused() {
    for (first, second) in [
        (("use_dora", json!(true)), ("lora_bias", json!(true))),
        (("use_dora", json!(true)), ("target_parameters", json!(["experts.down_proj"]))),
        (("lora_bias", json!(true)), ("target_parameters", json!(["experts.down_proj"]))),
        (("fan_in_fan_out", json!(true)), ("target_parameters", json!(["experts.down_proj"]))),
    ] {
        let words = [&*format!("`{}` and `{}` are both set", first.0, second.0)];
        refused(
            first.0,
            |t| {
                t.set(first.0, first.1).set(second.0, second.1);
            },
            &words,
        );
    }
}

#[test]
fn a_pattern_that_says_a_key_twice_is_refused() {
    let test = crate::lora::testing::TestAdapter::new();
    let config = Value::Object(test.config.clone()).to_string();
    let config = config.replacen('{', r#"{"rank_pattern": {"q_proj": 2, "v_proj": 2, "q_proj": 4}, "#, 1);
    let weights = crate::lora::testing::safetensors(&test.tensors);
    let error = test.read_with(config.as_bytes(), &weights).unwrap_err().to_string();
    assert!(error.contains("adapter_config.json") && error.contains("`q_proj` stands there twice"), "{error}");
}
