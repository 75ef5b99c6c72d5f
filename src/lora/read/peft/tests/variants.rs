//! Every variant that can be merged, as the internal form has it.

use llm_local_core::{
    LoraAdapter,
    lora::{AdapterFeature as F, Floats, ModuleSelector},
};
use serde_json::{Value, json};

use super::refused;
use crate::lora::testing::{TestAdapter, f32_bytes};

const PREFIX: &str = "base_model.model.";
const EMBEDDING: &str = "model.embed_tokens";

/// An adapter without tensors, of rank 2 and with the scale 2, that targets these modules.
fn empty(targets: Value) -> TestAdapter {
    let mut test = TestAdapter::new();
    test.unset("layers_to_transform").unset("layers_pattern").set("target_modules", targets);
    test.tensors.clear();
    test
}

/// Adds a tensor whose values count from `first` on.
fn counting(test: &mut TestAdapter, name: &str, shape: &[usize], first: f32) {
    let name = format!("{PREFIX}{name}");
    test.tensor(name.clone(), shape);
    let values: Vec<_> = (0..shape.iter().product()).map(|i| first + i as f32).collect();
    test.at(&name).3 = f32_bytes(&values);
}

/// An adapter with a pair of an embedding of 3 tokens, of 4 dimensions.
fn embedding() -> TestAdapter {
    let mut test = empty(json!(["embed_tokens"]));
    counting(&mut test, &format!("{EMBEDDING}.lora_embedding_A"), &[2, 3], 1.0);
    counting(&mut test, &format!("{EMBEDDING}.lora_embedding_B"), &[4, 2], 11.0);
    test
}

fn f32s(values: &Floats) -> &[f32] {
    let Floats::F32(values) = values else { panic!("the test writes f32") };
    values
}

/// Rank and scale of the module, or parameter, with this end.
fn rank_and_scale(adapter: &LoraAdapter, end: &str) -> (usize, f64) {
    let module = adapter.modules.iter().find(|m| m.name.ends_with(end)).unwrap();
    (module.rank, module.scale)
}

/// Asserts that the changed adapter is refused, with `words` in the message.
fn refused_with(label: &str, test: &TestAdapter, words: &[&str]) {
    refused(label, |t| (t.config, t.tensors) = (test.config.clone(), test.tensors.clone()), words);
}

#[test]
fn ranks_and_alphas_are_those_of_the_first_key_that_matches_in_the_order_of_the_file() {
    let mut test = empty(json!(["q_proj", "v_proj", "o_proj"]));
    for (name, rank) in [("q_proj", 4), ("v_proj", 3), ("o_proj", 2)] {
        test.pair(&TestAdapter::module(0, name), rank, 8, 8);
    }
    test.set("use_rslora", json!(true));
    let config = Value::Object(test.config.clone()).to_string();
    // Sorted by name, `layers.0...` would come first; the first of `zz|v_proj` and `v_proj` counts.
    let patterns = r#"{"rank_pattern": {"q_proj": 4, "layers.0.self_attn.q_proj": 16, "zz|v_proj": 3, "v_proj": 8},
        "alpha_pattern": {"v_proj": 6, "^model\\.layers\\.0\\..*": 5}, "#;
    let weights = crate::lora::testing::safetensors(&test.tensors);
    let adapter = test.read_with(config.replacen('{', patterns, 1).as_bytes(), &weights).unwrap();
    assert_eq!(rank_and_scale(&adapter, "q_proj"), (4, 5.0 / 2.0));
    assert_eq!(rank_and_scale(&adapter, "v_proj"), (3, 6.0 / 3f64.sqrt()));
    assert_eq!(rank_and_scale(&adapter, "o_proj"), (2, 5.0 / 2f64.sqrt()));
    assert_eq!(adapter.features, [F::RankStabilized, F::RankPattern, F::AlphaPattern]);
    let wrong = r#"{"rank_pattern": {"layers.0.self_attn.q_proj": 16, "q_proj": 4, "v_proj": 3}, "#;
    let error = test.read_with(config.replacen('{', wrong, 1).as_bytes(), &weights).unwrap_err().to_string();
    assert!(error.contains("so rank 4; expected (16, in)") && error.contains("`rank_pattern` says"), "{error}");
}

#[test]
fn a_magnitude_belongs_to_each_pair_in_either_spelling() {
    for ending in ["", ".weight", ".default", ".default.weight"] {
        let mut test = empty(json!(["q_proj"]));
        test.set("use_dora", json!(true));
        let name = if ending.contains("default") { ".default" } else { "" };
        counting(&mut test, &format!("m.q_proj.lora_A{name}.weight"), &[2, 4], 1.0);
        counting(&mut test, &format!("m.q_proj.lora_B{name}.weight"), &[3, 2], 0.0);
        counting(&mut test, &format!("m.q_proj.lora_magnitude_vector{ending}"), &[3], 7.0);
        let adapter = test.read().unwrap();
        assert_eq!(adapter.modules[0].magnitude.as_deref(), Some(&[7.0, 8.0, 9.0][..]), "{ending}");
        assert_eq!(adapter.features, [F::Dora]);
        let key = format!("{PREFIX}m.q_proj.lora_magnitude_vector{ending}");
        test.at(&key).2 = vec![1, 3];
        refused_with("shape", &test, &[&key, "(1, 3)", "expected (3)"]);
        test.remove(&key);
        refused_with("none", &test, &["`use_dora` is set", "no `lora_magnitude_vector`", "m.q_proj.lora_A"]);
    }
}

#[test]
fn a_bias_of_b_belongs_to_each_pair() {
    let mut test = empty(json!(["q_proj"]));
    test.set("lora_bias", json!(true)).pair("m.q_proj", 2, 4, 3);
    refused_with("none", &test, &["`lora_bias` is set", "no `lora_B.bias`"]);
    counting(&mut test, "m.q_proj.lora_B.bias", &[3], 1.0);
    let adapter = test.read().unwrap();
    assert_eq!(adapter.modules[0].bias.as_deref(), Some(&[1.0, 2.0, 3.0][..]));
    assert_eq!(adapter.features, [F::LoraBias]);
    // It does something where the product is zero.
    test.at(&format!("{PREFIX}m.q_proj.lora_B.weight")).3.fill(0);
    test.read().unwrap();
    test.at(&format!("{PREFIX}m.q_proj.lora_B.bias")).3.fill(0);
    refused_with("zero", &test, &["`B @ A` is zero in its one module"]);
}

#[test]
fn an_embeddings_pair_is_turned_to_its_matrix() {
    let mut test = embedding();
    counting(&mut test, &format!("{EMBEDDING}.base_layer.weight"), &[3, 4], 0.0);
    let adapter = test.read().unwrap();
    let module = adapter.module(EMBEDDING).unwrap();
    assert_eq!((module.rank, module.in_features, module.out_features), (2, 4, 3));
    assert_eq!(f32s(&module.b), [1., 4., 2., 5., 3., 6.]);
    assert_eq!(f32s(&module.a), [11., 13., 15., 17., 12., 14., 16., 18.]);
    assert!(!module.transposed);
    assert_eq!(adapter.features, [F::Embedding]);
    assert_eq!(adapter.replacements[0].name, "model.embed_tokens.weight");
    assert_eq!(adapter.replacements[0].shape, [3, 4]);
}

#[test]
fn an_embedding_with_a_magnitude_stays_as_peft_has_it_for_that_goes_by_its_columns() {
    let mut test = embedding();
    test.set("use_dora", json!(true));
    counting(&mut test, &format!("{EMBEDDING}.lora_magnitude_vector"), &[4], 1.0);
    let adapter = test.read().unwrap();
    let module = adapter.module(EMBEDDING).unwrap();
    assert!(module.transposed);
    assert_eq!((module.in_features, module.out_features), (3, 4));
    assert_eq!(f32s(&module.a), [1., 2., 3., 4., 5., 6.]);
    assert_eq!(module.magnitude.as_ref().unwrap().len(), 4);
    assert_eq!(adapter.features, [F::Dora, F::Embedding]);
}

#[test]
fn weights_stored_as_in_out_are_all_but_heads_and_embeddings() {
    let mut test = embedding();
    test.set("fan_in_fan_out", json!(true)).set("target_modules", json!(["c_attn", "lm_head", "embed_tokens"]));
    test.pair("h.0.c_attn", 2, 4, 12).pair("lm_head", 2, 4, 3);
    let adapter = test.read().unwrap();
    let transposed: Vec<_> = adapter.modules.iter().map(|m| (m.name.as_str(), m.transposed)).collect();
    assert_eq!(transposed, [("h.0.c_attn", true), ("lm_head", false), (EMBEDDING, false)]);
    assert_eq!(adapter.features, [F::Embedding, F::FanInFanOut]);
}

#[test]
fn trained_biases_are_those_that_the_config_asks_for() {
    let own = "base_model.model.m.q_proj.base_layer.bias";
    let old = "base_model.model.m.q_proj.bias";
    let other = "base_model.model.m.up_proj.bias";
    for (bias, keys, names) in [
        ("lora_only", &[own][..], &["m.q_proj.bias"][..]),
        ("lora_only", &[old], &["m.q_proj.bias"]),
        ("all", &[own, other], &["m.q_proj.bias", "m.up_proj.bias"]),
        ("all", &[], &[]),
    ] {
        let mut test = empty(json!(["q_proj"]));
        test.set("bias", json!(bias)).pair("m.q_proj", 2, 4, 3);
        for key in keys {
            test.tensor(*key, &[3]);
        }
        let adapter = test.read().unwrap();
        assert_eq!(adapter.replacements.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), names);
        assert_eq!(adapter.features.contains(&F::TrainedBias), !keys.is_empty());
        assert!(!adapter.features.contains(&F::ModulesToSave));
    }
    for (bias, key, word) in [
        ("none", own, "base layer of `m.q_proj`"),
        ("none", old, "neither `bias` nor `modules_to_save`"),
        ("lora_only", other, "neither `bias` nor `modules_to_save`"),
        ("all", "base_model.model.m.up_proj.weight", "full weight"),
    ] {
        let mut test = empty(json!(["q_proj"]));
        test.set("bias", json!(bias)).pair("m.q_proj", 2, 4, 3).tensor(key, &[3]);
        refused_with(bias, &test, &[key, word]);
    }
}

#[test]
fn modules_that_are_saved_in_full_are_read_in_each_spelling() {
    for spelling in ["", "modules_to_save.", "modules_to_save.default."] {
        let mut test = empty(json!(["q_proj"]));
        test.set("modules_to_save", json!(["lm_head", "norm"]));
        let name = if spelling.contains("default") { ".default" } else { "" };
        counting(&mut test, &format!("m.q_proj.lora_A{name}.weight"), &[2, 4], 1.0);
        counting(&mut test, &format!("m.q_proj.lora_B{name}.weight"), &[3, 2], 0.0);
        for (module, tensor, shape) in
            [("lm_head", "weight", &[5, 4][..]), ("lm_head", "bias", &[5]), ("m.input_layernorm", "weight", &[4])]
        {
            counting(&mut test, &format!("{module}.{spelling}{tensor}"), shape, 0.0);
        }
        let adapter = test.read().unwrap();
        let names: Vec<_> = adapter.replacements.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names, ["lm_head.bias", "lm_head.weight", "m.input_layernorm.weight"], "{spelling}");
        assert_eq!(adapter.replacements[1].shape, [5, 4]);
        assert_eq!(f32s(&adapter.replacements[0].values), [0., 1., 2., 3., 4.]);
        assert_eq!(adapter.features, [F::ModulesToSave]);
    }
}

#[test]
fn full_weights_that_nothing_accounts_for_and_ones_that_are_not_there_are_refused() {
    let of = |modules: Value, keys: &[&str]| {
        let mut test = empty(json!(["q_proj"]));
        test.set("modules_to_save", modules).pair("m.q_proj", 2, 4, 3);
        for key in keys {
            test.tensor(format!("{PREFIX}{key}"), &[3]);
        }
        test
    };
    for (modules, keys, words) in [
        (json!([]), &["m.norm.weight"][..], &["m.norm.weight", "full weight"][..]),
        (json!(["lm_head"]), &[], &["`modules_to_save` names `lm_head`", "no tensor"]),
        (json!(["lm_head", "score"]), &["lm_head.weight"], &["`modules_to_save` names `score`"]),
        (json!(["lm_head"]), &["m.norm.modules_to_save.weight"], &["`m.norm`", "it names `lm_head`"]),
        (json!(["norm"]), &["m.norm.weight", "m.norm.modules_to_save.weight"], &["the same tensor of the base"]),
        (json!(["norm"]), &["m.norm.original_module.weight"], &["original_module", "save_pretrained"]),
        (json!(["norm"]), &["m.norm.weight", "m.up_proj.base_layer.weight"], &["base layer of `m.up_proj`"]),
        (json!(["norm"]), &["m.norm.weight", "m.A_log"], &["m.A_log", "neither"]),
        (json!(["norm"]), &["m.norm.modules_to_save.pirate.weight"], &["different adapters", "pirate"]),
    ] {
        refused_with(&format!("{keys:?}"), &of(modules, keys), words);
    }
    // Heads that PEFT names for its tasks, whether the model has them or not.
    let mut test = of(json!(["classifier", "score"]), &["score.weight"]);
    test.set("task_type", json!("SEQ_CLS")).read().unwrap();
    test.set("task_type", json!("CAUSAL_LM"));
    refused_with("no task", &test, &["`modules_to_save` names `classifier`"]);
}

#[test]
fn an_embedding_and_a_head_are_saved_in_full_where_the_vocabulary_was_resized() {
    let mut test = empty(json!(["q_proj"]));
    test.pair("m.q_proj", 2, 4, 3);
    counting(&mut test, "model.embed_tokens.weight", &[7, 4], 0.0);
    counting(&mut test, "lm_head.weight", &[7, 4], 0.0);
    let adapter = test.read().unwrap();
    assert_eq!(adapter.replacements.len(), 2);
    assert_eq!(adapter.replacements[1].shape, [7, 4]);
    assert_eq!(adapter.features, [F::ModulesToSave]);
}

#[test]
fn trained_rows_are_put_in_order() {
    let delta = |module: &str| format!("{module}.token_adapter.trainable_tokens_delta");
    let mut test = empty(json!(["q_proj"]));
    test.pair("m.q_proj", 2, 4, 3).set("trainable_token_indices", json!([5, 3, 20]));
    counting(&mut test, &delta(EMBEDDING), &[3, 2], 0.0);
    let adapter = test.read().unwrap();
    assert_eq!(adapter.rows[0].name, "model.embed_tokens.weight");
    assert_eq!(adapter.rows[0].rows, [3, 5, 20]);
    assert_eq!(f32s(&adapter.rows[0].values), [2., 3., 0., 1., 4., 5.]);
    assert_eq!(adapter.features, [F::TrainableTokens]);

    // By module; what is tied to another, with the same tokens, is saved with that.
    test.set("trainable_token_indices", json!({"embed_tokens": [5, 3, 20], "lm_head": [5, 3, 20]}));
    assert_eq!(test.read().unwrap().rows, adapter.rows);
    test.set("trainable_token_indices", json!({"embed_tokens": [5, 3, 20], "lm_head": [1, 2]}));
    refused_with("no rows", &test, &["`trainable_token_indices`", "`lm_head`"]);
    counting(&mut test, &delta("lm_head"), &[2, 2], 0.0);
    assert_eq!(
        test.read().unwrap().rows.iter().map(|r| r.rows.as_slice()).collect::<Vec<_>>(),
        [&[1, 2][..], &[3, 5, 20]]
    );

    test.set("trainable_token_indices", json!([5, 3, 20]));
    refused_with("too few", &test, &["lm_head.token_adapter", "(2, 2)", "expected (3, columns)"]);
    test.remove(&format!("{PREFIX}{}", delta("lm_head"))).set("trainable_token_indices", json!([5, 3, 5]));
    refused_with("twice", &test, &["`trainable_token_indices`", "token 5 twice"]);
    test.set("trainable_token_indices", Value::Null);
    refused_with("not asked for", &test, &["trainable_tokens_delta", "names no tokens"]);
    test.remove(&format!("{PREFIX}{}", delta(EMBEDDING))).set("trainable_token_indices", json!([5]));
    refused_with("none", &test, &["asks for trained rows"]);
}

/// An adapter of the stacked weights of 2 experts, of 3 inputs and 5 outputs, and back: rank 2.
fn experts(parameters: Value) -> TestAdapter {
    let mut test = empty(json!([]));
    test.set("target_parameters", parameters).set("peft_version", json!("0.21.2"));
    let module = "m.layers.0.mlp.experts";
    counting(&mut test, &format!("{module}.base_layer.lora_A.weight"), &[4, 3], 1.0);
    counting(&mut test, &format!("{module}.base_layer.lora_B.weight"), &[5, 4], 0.0);
    counting(&mut test, &format!("{module}.lora_A.weight"), &[4, 5], 0.0);
    counting(&mut test, &format!("{module}.lora_B.weight"), &[3, 4], 0.0);
    test
}

#[test]
fn pairs_of_experts_are_split_by_expert_and_named_by_their_parameters() {
    for parameters in [json!(["mlp.experts.down_proj", "experts.gate_up_proj"]), json!(["down_proj", "gate_up_proj"])] {
        let adapter = experts(parameters.clone()).read().unwrap();
        let names: Vec<_> = adapter.modules.iter().map(|m| (m.name.as_str(), m.in_features, m.out_features)).collect();
        assert_eq!(names, [("m.layers.0.mlp.experts.down_proj", 5, 3), ("m.layers.0.mlp.experts.gate_up_proj", 3, 5)]);
        let module = &adapter.modules[1];
        assert_eq!((module.experts, module.rank, module.is_parameter, module.transposed), (Some(2), 2, true, false));
        assert_eq!(module.weight_name(), module.name);
        assert_eq!(f32s(&module.a), (1..=12).map(|i| i as f32).collect::<Vec<_>>());
        // Row o of B is (r0e0, r0e1, r1e0, r1e1).
        assert_eq!(f32s(&module.b)[..4], [0., 2., 4., 6.]);
        assert_eq!(f32s(&module.b)[10..14], [1., 3., 5., 7.]);
        assert_eq!(adapter.features, [F::TargetParameters, F::Experts]);
        let targets = adapter.targets.unwrap();
        assert_eq!(json!(targets.parameters), parameters);
        assert_eq!(targets.modules, ModuleSelector::Names(Vec::new()));
    }
}

#[test]
fn ranks_of_parameters_go_by_their_names() {
    let mut test = experts(json!(["experts.down_proj", "experts.gate_up_proj"]));
    test.set("rank_pattern", json!({"experts.down_proj": 4})).set("alpha_pattern", json!({"gate_up_proj": 3}));
    let adapter = test.read().unwrap();
    assert_eq!((adapter.modules[0].experts, adapter.modules[1].experts), (None, Some(2)));
    assert_eq!(rank_and_scale(&adapter, "down_proj"), (4, 1.0));
    assert_eq!(rank_and_scale(&adapter, "gate_up_proj"), (2, 1.5));
    test.set("rank_pattern", json!({"experts.down_proj": 3}));
    refused_with("rank", &test, &["experts.lora_A", "(4, 5)", "rank 3", "number of experts", "`rank_pattern`"]);
}

#[test]
fn old_versions_of_peft_take_the_stacked_weights_for_in_out() {
    let mut test = experts(json!(["experts.down_proj", "experts.gate_up_proj"]));
    for (version, transposed) in [
        (json!("0.18.1"), true),
        (json!("0.17.0.dev0"), true),
        (Value::Null, true),
        (json!("0.19.0"), false),
        (json!("1.0.0"), false),
    ] {
        let adapter = test.set("peft_version", version.clone()).read().unwrap();
        assert!(adapter.modules.iter().all(|m| m.transposed == transposed), "{version}");
    }
}

#[test]
fn parameters_that_cannot_be_told_apart_are_refused() {
    let mut test = experts(json!(["experts.down_proj"]));
    refused_with("one of two", &test, &["`target_parameters`", "`down_proj`", "m.layers.0.mlp.experts", "2 of them"]);
    test.set("target_parameters", json!(["experts.first", "experts.second"]));
    refused_with("order", &test, &["`first`, `second`", "order"]);
    test.set("target_parameters", json!(["router.weight"]));
    refused_with("none", &test, &["experts.base_layer.lora_A", "`target_parameters` names none"]);
    let mut test = experts(json!(["experts.down_proj", "experts.gate_up_proj"]));
    test.remove(&format!("{PREFIX}m.layers.0.mlp.experts.lora_A.weight"));
    test.remove(&format!("{PREFIX}m.layers.0.mlp.experts.lora_B.weight"));
    refused_with("nested in nothing", &test, &["base_layer.lora_A", "nested in `m.layers.0.mlp.experts`"]);
    let mut test = experts(json!(["experts.down_proj", "experts.gate_up_proj"]));
    test.at(&format!("{PREFIX}m.layers.0.mlp.experts.lora_B.weight")).2 = vec![4, 3];
    refused_with("B", &test, &["experts.lora_B", "(4, 3)", "expected (out, 4)"]);
}

#[test]
fn what_is_tied_to_an_embedding_is_a_target_with_it() {
    for targets in [json!(["embed_tokens"]), json!(".*embed_tokens")] {
        let mut test = embedding();
        test.set("ensure_weight_tying", json!(true)).set("target_modules", targets).pair("lm_head", 2, 4, 3);
        let adapter = test.read().unwrap();
        assert_eq!(adapter.features, [F::Embedding, F::WeightTying]);
        match adapter.targets.unwrap().modules {
            ModuleSelector::Names(names) => assert_eq!(names, ["embed_tokens", "lm_head"]),
            ModuleSelector::Pattern(pattern) => assert_eq!(pattern, "(?:.*embed_tokens)|lm_head"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn values_of_every_tensor_must_be_finite() {
    let mut test = embedding();
    test.set("use_dora", json!(true)).set("trainable_token_indices", json!({"head": [1]}));
    counting(&mut test, &format!("{EMBEDDING}.lora_magnitude_vector"), &[4], 1.0);
    counting(&mut test, &format!("{EMBEDDING}.base_layer.weight"), &[3, 4], 1.0);
    counting(&mut test, "lm_head.token_adapter.trainable_tokens_delta", &[1, 4], 1.0);
    test.read().unwrap();
    for index in 0..test.tensors.len() {
        let mut broken = TestAdapter { config: test.config.clone(), tensors: test.tensors.clone() };
        broken.tensors[index].3[8..12].copy_from_slice(&f32::NAN.to_le_bytes());
        let name = broken.tensors[index].0.clone();
        refused_with(&name, &broken, &[&name, "has NaN at ("]);
    }
}
