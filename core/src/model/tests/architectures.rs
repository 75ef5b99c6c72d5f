//! What config.json means for one architecture and not for another.

use super::*;

/// The sizes alone, for `model_type`, with heads that every default for kv heads divides.
fn sizes(model_type: &str, changes: Value) -> Value {
    let mut config = json!({
        "model_type": model_type, "vocab_size": 384, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 64, "rms_norm_eps": 1e-6, "max_position_embeddings": 8192,
    });
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config
}

fn of(model_type: &str, changes: Value) -> DecoderConfig {
    read(&sizes(model_type, changes))
}

#[track_caller]
fn refused(model_type: &str, changes: Value, expected: &[&str]) {
    let config = sizes(model_type, changes);
    let message = DecoderConfig::from_config("m", &config).expect_err(&config.to_string()).to_string();
    for part in expected {
        assert!(message.contains(part), "{config}\nlacks {part:?}: {message}");
    }
}

fn windowed(decoder: &DecoderConfig) -> Option<(usize, Vec<bool>)> {
    decoder.sliding_window.as_ref().map(|w| (w.size, w.layers.clone()))
}

#[test]
fn absent_fields_have_the_defaults_of_their_class_in_transformers() {
    // Name, kv heads, width of a head where that has a default, theta, whether the head is tied, window.
    let none = [false; 3];
    for (name, kv_heads, head_dim, theta, tied, window) in [
        ("llama", 64, None, 1e4, false, none),
        ("mistral", 8, None, 1e4, false, [true; 3]),
        ("qwen2", 32, None, 1e4, false, none),
        ("qwen3", 32, Some(128), 1e4, false, none),
        ("gemma", 16, Some(256), 1e4, true, none),
        ("gemma2", 4, Some(256), 1e4, true, [true, false, true]),
        ("gemma3_text", 4, Some(256), 1e6, true, [true; 3]),
        ("phi3", 64, None, 1e4, false, none),
        ("granite", 64, None, 1e4, false, none),
        ("olmo2", 64, None, 1e4, false, none),
    ] {
        let decoder = of(name, if head_dim.is_none() { json!({ "head_dim": 16 }) } else { json!({}) });
        let head_dim = head_dim.unwrap_or(16);
        assert_eq!((decoder.kv_heads, decoder.head_dim), (kv_heads, head_dim), "{name}");
        assert_eq!((decoder.rope.theta, decoder.tied_embeddings), (theta, tied), "{name}");
        let expected = window.contains(&true).then(|| (4096, window.to_vec()));
        assert_eq!(windowed(&decoder), expected, "{name}");
        assert_eq!(decoder.architecture.name(), name);
        let is_gemma = name.starts_with("gemma");
        let activation = if is_gemma { Activation::GeluTanh } else { Activation::Silu };
        assert_eq!((decoder.activation, decoder.norm_offset), (activation, f64::from(is_gemma)), "{name}");
        assert_eq!(decoder.embedding_scale, if is_gemma { 8.0 } else { 1.0 }, "{name}");
        let scale = match name {
            "gemma2" | "gemma3_text" => 1.0 / 16.0,
            "granite" => 1.0,
            _ => 1.0 / (head_dim as f64).sqrt(),
        };
        assert_eq!(decoder.attention_scale, scale, "{name}");
        let caps = if name == "gemma2" { (Some(50.0), Some(30.0)) } else { (None, None) };
        assert_eq!((decoder.attention_soft_cap, decoder.logit_soft_cap), caps, "{name}");
        assert_eq!(decoder.attention_bias, AttentionBias::new(name == "qwen2", false), "{name}");
    }
    assert_eq!(of("gemma3_text", json!({})).local_rope, Some(Rope::new(1e4, 256)));
}

#[test]
fn a_null_is_none_and_not_the_default() {
    let gemma2 = of("gemma2", json!({ "attn_logit_softcapping": null, "final_logit_softcapping": null }));
    assert_eq!((gemma2.attention_soft_cap, gemma2.logit_soft_cap), (None, None));
    let mistral = of("mistral", json!({ "sliding_window": null, "num_key_value_heads": null, "head_dim": 16 }));
    assert_eq!((windowed(&mistral), mistral.kv_heads), (None, 64));
}

#[test]
fn an_architecture_is_found_by_its_class_where_there_is_no_model_type() {
    for architecture in Architecture::ALL {
        let class = architecture.family().class;
        let decoder = of("", json!({ "model_type": null, "architectures": [class], "head_dim": 16 }));
        assert_eq!(decoder.architecture, architecture);
        let wrong = json!({ "architectures": [class.replace("CausalLM", "SequenceClassification")] });
        refused(architecture.name(), wrong, &["architectures", "SequenceClassification", class]);
    }
}

#[test]
fn granite_has_four_multipliers() {
    let granite = of(
        "granite",
        json!({
            "head_dim": 16, "embedding_multiplier": 12, "attention_multiplier": 0.015625, "residual_multiplier": 0.22,
            "logits_scaling": 8,
        }),
    );
    assert_eq!((granite.embedding_scale, granite.attention_scale), (12.0, 0.015625));
    assert_eq!((granite.residual_scale, granite.logit_scale), (0.22, 0.125));
    for name in ["embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"] {
        for value in [json!(0), json!(-1.5), json!("2")] {
            refused("granite", json!({ "head_dim": 16, name: value }), &[name, &value.to_string()]);
        }
    }
}

#[test]
fn olmo2_has_norms_after_its_blocks_and_over_whole_projections() {
    let olmo2 = of("olmo2", json!({ "num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": true }));
    assert_eq!((olmo2.norms, olmo2.qk_norm), (NormPlacement::After, Some(QkNorm::WholeProjection)));
    assert_eq!(olmo2.attention_bias, AttentionBias::new(true, true));
    let tensors = olmo2.base_tensors(Layout::HuggingFace);
    let shape = |name: &str| tensors.iter().find(|t| t.name == name).map(|t| t.shape.clone());
    assert_eq!(shape("model.layers.2.self_attn.q_norm.weight"), Some(vec![64]));
    assert_eq!(shape("model.layers.2.self_attn.k_norm.weight"), Some(vec![32]));
    assert_eq!(shape("model.layers.2.self_attn.o_proj.bias"), Some(vec![64]));
    assert_eq!(shape("model.layers.2.post_feedforward_layernorm.weight"), Some(vec![64]));
    assert_eq!(shape("model.layers.2.input_layernorm.weight"), None);
}

#[test]
fn gemma_scales_scores_by_a_field_of_its_own() {
    for name in ["gemma2", "gemma3_text"] {
        assert_eq!(of(name, json!({ "query_pre_attn_scalar": 144 })).attention_scale, 1.0 / 12.0);
        refused(name, json!({ "query_pre_attn_scalar": 0 }), &["query_pre_attn_scalar is 0"]);
    }
    assert_eq!(of("gemma3_text", json!({ "final_logit_softcapping": 30 })).logit_soft_cap, Some(30.0));
}

#[test]
fn gelu_of_the_first_gemma_configs_is_its_approximation() {
    let activation = |name: &str, changes| of(name, changes).activation;
    assert_eq!(activation("gemma", json!({ "hidden_act": "gelu" })), Activation::GeluTanh);
    assert_eq!(
        activation("gemma2", json!({ "hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh" })),
        Activation::GeluTanh
    );
    assert_eq!(activation("gemma2", json!({ "hidden_activation": "gelu" })), Activation::Gelu);
    assert_eq!(activation("llama", json!({ "hidden_act": "gelu", "head_dim": 16 })), Activation::Gelu);
}

#[test]
fn the_window_of_qwen_holds_on_upper_layers_and_only_if_it_is_used() {
    let qwen = |changes: Value| {
        let mut config = json!({ "head_dim": 16, "sliding_window": 8, "use_sliding_window": true });
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        config
    };
    for name in ["qwen2", "qwen3"] {
        let window = |changes| windowed(&of(name, qwen(changes)));
        assert_eq!(window(json!({ "max_window_layers": 2 })), Some((8, vec![false, false, true])));
        assert_eq!(window(json!({ "max_window_layers": 0 })), Some((8, vec![true; 3])));
        assert_eq!(window(json!({})), None, "max_window_layers is 28");
        assert_eq!(window(json!({ "max_window_layers": 0, "use_sliding_window": false })), None);
        assert_eq!(window(json!({ "max_window_layers": 0, "sliding_window": null })), None);
        let types = json!(["sliding_attention", "full_attention", "full_attention"]);
        assert_eq!(window(json!({ "layer_types": types })), Some((8, vec![true, false, false])));
        for off in [json!({ "use_sliding_window": false }), json!({ "use_sliding_window": null })] {
            let mut config = qwen(json!({ "layer_types": types }));
            config.as_object_mut().unwrap().extend(off.as_object().unwrap().clone());
            refused(name, config, &["use_sliding_window", "expected true", "layer_types"]);
        }
        refused(name, qwen(json!({ "layer_types": types, "sliding_window": null })), &["sliding_window is missing"]);
        refused(name, qwen(json!({ "layer_types": types, "sliding_window": 0 })), &["sliding_window is 0"]);
    }
}

#[test]
fn layer_types_are_one_per_layer_and_of_two_kinds() {
    let types = |names: &[&str]| json!({ "layer_types": names });
    for name in ["gemma2", "gemma3_text"] {
        let all_full = of(name, types(&["full_attention"; 3]));
        assert_eq!(windowed(&all_full), None, "{name}");
        refused(name, types(&["full_attention"; 2]), &["layer_types", "num_hidden_layers, which is 3"]);
        refused(name, types(&["full_attention", "full_attention", "linear_attention"]), &["linear_attention"]);
        refused(name, json!({ "layer_types": [1, 2, 3] }), &["layer_types is [1,2,3]", "list of texts"]);
    }
    // These have none: what is written must be what they compute.
    let mixed = types(&["sliding_attention", "full_attention", "sliding_attention"]);
    for (name, expected) in [
        ("mistral", "sliding_attention on every layer"),
        ("phi3", "no sliding_window"),
        ("olmo2", "every layer of olmo2"),
    ] {
        let mut config = mixed.clone();
        config["head_dim"] = json!(16);
        refused(name, config, &["layer_types", expected]);
    }
    let mistral = of("mistral", json!({ "head_dim": 16, "layer_types": vec!["sliding_attention"; 3] }));
    assert_eq!(windowed(&mistral), Some((4096, vec![true; 3])));
}

#[test]
fn the_pattern_of_gemma_3_is_a_period() {
    let window = |changes| windowed(&of("gemma3_text", changes)).unwrap().1;
    assert_eq!(window(json!({ "sliding_window_pattern": 2 })), [true, false, true]);
    assert_eq!(window(json!({ "_sliding_window_pattern": 3 })), [true, true, false]);
    let types = json!(["full_attention", "sliding_attention", "full_attention"]);
    assert_eq!(
        window(json!({ "_sliding_window_pattern": 6, "layer_types": types })),
        [false, true, false],
        "transformers writes 6 whatever the layers are"
    );
    refused(
        "gemma3_text",
        json!({ "sliding_window_pattern": 6, "layer_types": types }),
        &["layer_types", "sliding_window_pattern"],
    );
    refused("gemma3_text", json!({ "sliding_window_pattern": 0 }), &["sliding_window_pattern is 0"]);
}

#[test]
fn the_two_rotations_of_gemma_3_are_read_from_both_forms() {
    let linear = json!({ "rope_type": "linear", "factor": 8 });
    let new = json!({
        "rope_parameters": {
            "full_attention": { "rope_type": "linear", "factor": 8, "rope_theta": 2e6 },
            "sliding_attention": { "rope_type": "default", "rope_theta": 2e4 },
        },
    });
    let old = json!({ "rope_theta": 2e6, "rope_local_base_freq": 2e4, "rope_scaling": linear });
    let expected = Rope::new(2e6, 256).with_scaling(RopeScaling::Linear { factor: 8.0 });
    let mut both = new.clone();
    both.as_object_mut().unwrap().extend(old.as_object().unwrap().clone());
    for form in [&new, &old, &both] {
        let decoder = of("gemma3_text", form.clone());
        assert_eq!((decoder.rope, decoder.local_rope), (expected.clone(), Some(Rope::new(2e4, 256))), "{form}");
    }
    let conflict = |changes: Value, expected: &[&str]| {
        let mut config = both.clone();
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        refused("gemma3_text", config, expected);
    };
    conflict(
        json!({ "rope_local_base_freq": 1e4 }),
        &["rope_local_base_freq is 10000", "sliding_attention.rope_theta"],
    );
    conflict(json!({ "rope_theta": 1e6 }), &["rope_theta is 1000000", "full_attention.rope_theta is 2000000"]);
    conflict(json!({ "rope_scaling": { "rope_type": "linear", "factor": 4 } }), &["disagree", "4.0", "8.0"]);
    conflict(
        json!({ "rope_scaling": { "rope_type": "linear", "factor": 8, "rope_theta": 1e6 } }),
        &["rope_scaling.rope_theta"],
    );
    refused("gemma3_text", json!({ "rope_local_base_freq": 0 }), &["rope_local_base_freq is 0"]);
    refused("gemma3_text", json!({ "rope_parameters": linear }), &["rope_parameters.factor", "full_attention"]);
    let scaled = json!({ "rope_parameters": { "sliding_attention": linear } });
    let scaled = of("gemma3_text", scaled).local_rope.unwrap();
    assert_eq!(scaled, Rope::new(1e4, 256).with_scaling(RopeScaling::Linear { factor: 8.0 }));
}

#[test]
fn phi_3_rotates_a_part_of_its_heads_by_longrope_of_any_name() {
    let (short, long) = (vec![1.0; 6], vec![2.0; 6]);
    for name in ["su", "yarn", "longrope"] {
        let phi3 = of(
            "phi3",
            json!({
                "head_dim": 16, "partial_rotary_factor": 0.75, "original_max_position_embeddings": 64,
                "rope_scaling": { "type": name, "short_factor": short, "long_factor": long },
            }),
        );
        let scaling = RopeScaling::LongRope {
            short_factor: short.clone(),
            long_factor: long.clone(),
            original_max_positions: 64,
            attention_factor: None,
            factor: None,
        };
        assert_eq!(phi3.rope, Rope::new(1e4, 12).with_scaling(scaling), "{name}");
    }
    let absent = of(
        "phi3",
        json!({ "head_dim": 12, "rope_scaling": { "type": "longrope", "short_factor": short, "long_factor": long } }),
    );
    let RopeScaling::LongRope { original_max_positions, .. } = absent.rope.scaling else { panic!("{:?}", absent.rope) };
    assert_eq!(original_max_positions, 4096);
    refused("phi3", json!({ "head_dim": 16, "rope_scaling": { "type": "yarn", "factor": 2 } }), &["short_factor"]);
}

#[test]
fn what_an_architecture_does_not_have_is_refused_by_name() {
    // Each with a value that would change the computation, and who has the field.
    for (name, value, owners) in [
        ("attention_bias", json!(true), &["llama", "qwen3", "gemma", "gemma2", "gemma3_text", "granite", "olmo2"][..]),
        ("mlp_bias", json!(true), &["llama", "granite"]),
        ("lm_head_bias", json!(true), &[]),
        ("sliding_window", json!(16), &["mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"]),
        ("use_sliding_window", json!(true), &["qwen2", "qwen3"]),
        ("sliding_window_pattern", json!(2), &["gemma3_text"]),
        ("_sliding_window_pattern", json!(2), &["gemma3_text"]),
        ("attention_chunk_size", json!(16), &[]),
        ("use_bidirectional_attention", json!(true), &[]),
        ("is_causal", json!(false), &[]),
        ("is_encoder_decoder", json!(true), &[]),
        ("add_cross_attention", json!(true), &[]),
        ("parallel_attn", json!(true), &[]),
        ("per_layer_config", json!({ "0": {} }), &[]),
        ("use_qk_norm", json!(true), &[]),
        ("qk_norm", json!(true), &[]),
        ("clip_qkv", json!(8), &[]),
        ("query_pre_attn_scalar", json!(64), &["gemma2", "gemma3_text"]),
        ("attn_logit_softcapping", json!(50), &["gemma2"]),
        ("final_logit_softcapping", json!(30), &["gemma2", "gemma3_text"]),
        ("embedding_multiplier", json!(2), &["granite"]),
        ("attention_multiplier", json!(0.5), &["granite"]),
        ("residual_multiplier", json!(0.5), &["granite"]),
        ("logits_scaling", json!(2), &["granite"]),
        ("logit_scale", json!(0.5), &[]),
        ("alibi", json!(true), &[]),
        ("full_attn_mod", json!(2), &[]),
        ("interpolate_factor", json!(2.0), &[]),
        ("use_mrope", json!(true), &[]),
        ("rope_interleaved", json!(true), &[]),
        ("rope_local_base_freq", json!(2e4), &["gemma3_text"]),
        ("no_rope_layers", json!([1, 1, 0]), &[]),
        ("partial_rotary_factor", json!(0.5), &["phi3"]),
    ] {
        for architecture in Architecture::ALL.map(Architecture::name) {
            let config = json!({ "head_dim": 16, name: value });
            if owners.contains(&architecture) {
                let _ = of(architecture, config);
            } else {
                refused(architecture, config, &[name, architecture]);
            }
        }
    }
}

#[test]
fn what_changes_nothing_passes() {
    let harmless = json!({
        "head_dim": 16, "dtype": "bfloat16", "torch_dtype": "float16", "attention_dropout": 0.1, "initializer_range": 0.02,
        "bos_token_id": 1, "eos_token_id": [1, 2], "pad_token_id": null, "use_cache": true, "cache_implementation": "hybrid",
        "transformers_version": "5.23.0", "pretraining_tp": 1, "rope_scaling": null, "rope_parameters": null,
        "attention_chunk_size": null, "mlp_bias": false, "logits_scaling": 1.0, "is_causal": true, "use_mrope": false,
        "layer_types": null, "lm_head_bias": false, "embd_pdrop": 0.1, "quantization_config": null,
    });
    for architecture in Architecture::ALL.map(Architecture::name) {
        assert_eq!(of(architecture, harmless.clone()), of(architecture, json!({ "head_dim": 16 })), "{architecture}");
    }
}
