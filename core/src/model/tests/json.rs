//! What is read from config.json, and what is refused.

use super::*;

fn with(changes: Value) -> Value {
    let mut config = config();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn without(key: &str) -> Value {
    let mut config = config();
    config.as_object_mut().unwrap().remove(key);
    config
}

pub(super) fn refusal(config: &Value) -> String {
    let error = DecoderConfig::from_config("m", config).unwrap_err();
    assert_eq!(error.code(), "unsupported_model_format");
    error.to_string()
}

#[test]
fn every_field_of_config_json_is_read() {
    let decoder = read(&with(json!({
        "head_dim": 48, "rope_theta": 5e5, "hidden_act": "gelu_pytorch_tanh", "attention_bias": true, "mlp_bias": true,
        "num_local_experts": 8,
    })));
    assert_eq!(
        decoder,
        DecoderConfig {
            architecture: Architecture::Llama,
            vocab_size: 896,
            hidden_size: 128,
            intermediate_size: 384,
            layers: 4,
            heads: 4,
            kv_heads: 2,
            head_dim: 48,
            norms: NormPlacement::Before,
            norm_offset: 0.0,
            qk_norm: None,
            norm_eps: 1e-5,
            activation: Activation::GeluTanh,
            rope: Rope::new(5e5, 48),
            local_rope: None,
            max_positions: 512,
            sliding_window: None,
            attention_bias: AttentionBias::new(true, true),
            mlp_bias: true,
            attention_scale: 1.0 / 48f64.sqrt(),
            attention_soft_cap: None,
            embedding_scale: 1.0,
            residual_scale: 1.0,
            logit_scale: 1.0,
            logit_soft_cap: None,
            fused_projections: false,
            tied_embeddings: true,
            experts: 8,
        }
    );
    assert_eq!(decoder.kv_bytes_per_token(2), 2 * 4 * 2 * 48 * 2);
}

#[test]
fn absent_fields_have_the_defaults_of_transformers() {
    let decoder = read(&json!({
        "model_type": "llama", "vocab_size": 10, "hidden_size": 128, "intermediate_size": 4, "num_hidden_layers": 1,
        "num_attention_heads": 4, "rms_norm_eps": 1e-6, "max_position_embeddings": 8,
    }));
    assert_eq!((decoder.kv_heads, decoder.head_dim, decoder.tied_embeddings), (4, 32, false));
    assert_eq!((decoder.activation, decoder.rope), (Activation::Silu, Rope::new(10_000.0, 32)));
    assert!(!decoder.attention_bias.any() && !decoder.mlp_bias && decoder.sliding_window.is_none());
}

#[test]
fn both_forms_of_rope_are_read_alike() {
    let llama3 = json!({
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    let mut parameters = llama3.clone();
    parameters["rope_theta"] = json!(500000.0);
    let mut old_type = llama3.clone();
    old_type["type"] = old_type["rope_type"].take();
    let expected = Rope::new(5e5, 32).with_scaling(RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 8192,
    });
    for config in [
        with(json!({ "rope_theta": 5e5, "rope_scaling": llama3 })),
        with(json!({ "rope_theta": 5e5, "rope_scaling": old_type })),
        with(json!({ "rope_theta": null, "rope_parameters": parameters })),
        with(json!({ "rope_theta": 5e5, "rope_scaling": llama3, "rope_parameters": parameters })),
    ] {
        assert_eq!(read(&config).rope, expected, "{config}");
    }
}

#[test]
fn every_kind_of_rope_is_data() {
    for (scaling, expected) in [
        (json!({ "type": "linear", "factor": 2 }), RopeScaling::Linear { factor: 2.0 }),
        (
            json!({ "rope_type": "dynamic", "factor": 4.0 }),
            RopeScaling::Dynamic { factor: 4.0, original_max_positions: 512 },
        ),
        (
            json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 0.7 }),
            RopeScaling::Yarn {
                factor: 4.0,
                original_max_positions: 64,
                beta_fast: 32.0,
                beta_slow: 1.0,
                attention_factor: None,
                mscale: Some(0.7),
                mscale_all_dim: None,
                truncate: true,
            },
        ),
        (
            json!({ "type": "su", "short_factor": vec![1.0; 16], "long_factor": vec![2.0; 16], "original_max_position_embeddings": 64 }),
            RopeScaling::LongRope {
                short_factor: vec![1.0; 16],
                long_factor: vec![2.0; 16],
                original_max_positions: 64,
                attention_factor: None,
                factor: None,
            },
        ),
    ] {
        let config = with(json!({ "rope_scaling": scaling }));
        assert_eq!(read(&config).rope.scaling, expected, "{config}");
    }
}

#[test]
fn what_config_json_has_wrong_is_named_with_its_value() {
    let llama3 = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0 });
    let table: &[(Value, &[&str])] = &[
        (json!([1]), &["config.json", "[1]", "an object"]),
        (with(json!({ "model_type": "mamba" })), &["model_type", "\"mamba\"", "llama, mistral, qwen2"]),
        (with(json!({ "model_type": "gemma3" })), &["model_type", "\"gemma3\"", "gemma3_text", "GGUF"]),
        (with(json!({ "model_type": "mistral" })), &["architectures", "LlamaForCausalLM", "MistralForCausalLM"]),
        (with(json!({ "architectures": ["MistralForCausalLM"] })), &["architectures", "MistralForCausalLM", "llama"]),
        (json!({ "hidden_size": 8 }), &["model_type", "missing"]),
        (without("hidden_size"), &["hidden_size", "missing"]),
        (without("vocab_size"), &["vocab_size", "missing"]),
        (without("intermediate_size"), &["intermediate_size", "missing"]),
        (without("num_hidden_layers"), &["num_hidden_layers", "missing"]),
        (without("num_attention_heads"), &["num_attention_heads", "missing"]),
        (without("max_position_embeddings"), &["max_position_embeddings", "missing"]),
        (without("rms_norm_eps"), &["rms_norm_eps", "missing"]),
        (with(json!({ "hidden_size": "128" })), &["hidden_size", "\"128\"", "whole number"]),
        (with(json!({ "hidden_size": -1 })), &["hidden_size", "-1"]),
        (with(json!({ "hidden_size": 128.5 })), &["hidden_size", "128.5"]),
        (with(json!({ "hidden_size": 130 })), &["head_dim", "4 attention heads", "130"]),
        (with(json!({ "hidden_size": 0 })), &["hidden_size", "is 0"]),
        (with(json!({ "num_attention_heads": 0 })), &["head_dim", "0 attention heads"]),
        (with(json!({ "num_attention_heads": 0, "head_dim": 32 })), &["num_attention_heads", "is 0"]),
        (with(json!({ "num_key_value_heads": 3 })), &["num_key_value_heads", "is 3", "4 heads"]),
        (with(json!({ "num_key_value_heads": 0 })), &["num_key_value_heads", "is 0"]),
        (with(json!({ "num_hidden_layers": u64::MAX })), &["num_hidden_layers"]),
        (with(json!({ "head_dim": 33 })), &["head_dim", "33 rotated dimensions", "even"]),
        (with(json!({ "rms_norm_eps": 0 })), &["rms_norm_eps", "is 0"]),
        (with(json!({ "rms_norm_eps": true })), &["rms_norm_eps", "true", "a number"]),
        (with(json!({ "tie_word_embeddings": "yes" })), &["tie_word_embeddings", "\"yes\"", "true or false"]),
        (with(json!({ "hidden_act": "laplace" })), &["hidden_act", "\"laplace\"", "silu"]),
        (with(json!({ "sliding_window": 0 })), &["sliding_window", "is 0", "no such field", "llama"]),
        (with(json!({ "rope_theta": 0 })), &["rope_theta", "is 0"]),
        (with(json!({ "rope_theta": "1e4" })), &["rope_theta", "\"1e4\""]),
        (with(json!({ "partial_rotary_factor": 1.5 })), &["partial_rotary_factor", "1.5"]),
        (with(json!({ "partial_rotary_factor": 0.5 })), &["partial_rotary_factor is 0.5", "expected 1", "llama"]),
        (
            with(json!({ "hidden_activation": "gelu", "hidden_act": "silu" })),
            &["hidden_activation is \"gelu\"", "silu"],
        ),
        (with(json!({ "hidden_size": 1u64 << 40, "head_dim": 32 })), &["hidden_size", "1099511627776"]),
        (
            with(json!({
                "original_max_position_embeddings": 64,
                "rope_scaling": { "type": "yarn", "factor": 2, "original_max_position_embeddings": 32 },
            })),
            &["rope_scaling.original_max_position_embeddings is 32", "64"],
        ),
        (
            with(json!({ "rope_scaling": { "type": "yarn", "factor": 2, "original_max_position_embeddings": 0 } })),
            &["rope_scaling.original_max_position_embeddings is 0"],
        ),
        (
            with(json!({ "rope_scaling": { "type": "longrope", "short_factor": [1], "long_factor": [1] } })),
            &["rope_scaling.short_factor is [1]", "16 numbers above 0"],
        ),
        (
            with(json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 5e5 } })),
            &["rope_theta is 10000", "rope_parameters.rope_theta is 500000"],
        ),
        (
            with(
                json!({ "rope_parameters": { "rope_type": "default" }, "rope_scaling": { "type": "linear", "factor": 2 } }),
            ),
            &["rope_parameters and rope_scaling disagree", "Linear"],
        ),
        (with(json!({ "rope_scaling": { "type": "mrope" } })), &["rope_scaling.type", "mrope", "llama3"]),
        (
            with(json!({ "rope_scaling": { "type": "linear", "rope_type": "yarn" } })),
            &["rope_type is yarn", "type is linear"],
        ),
        (with(json!({ "rope_scaling": { "type": "linear" } })), &["rope_scaling.factor", "missing"]),
        (with(json!({ "rope_scaling": { "type": "linear", "factor": 0 } })), &["rope_scaling.factor", "0"]),
        (
            with(json!({ "rope_scaling": { "type": "linear", "factor": 2, "mrope_section": [1] } })),
            &["rope_scaling.mrope_section", "[1]", "linear"],
        ),
        (with(json!({ "rope_scaling": 8 })), &["rope_scaling", "8", "an object"]),
        (with(json!({ "rope_scaling": llama3 })), &["high_freq_factor", "low_freq_factor"]),
        (
            with(json!({ "rope_parameters": { "full_attention": { "rope_type": "default" } } })),
            &["rope_parameters.full_attention"],
        ),
        (
            with(json!({ "layer_types": ["full_attention", "sliding_attention"] })),
            &["layer_types", "sliding_attention"],
        ),
        (with(json!({ "attention_multiplier": 0.5 })), &["attention_multiplier", "0.5"]),
        (
            with(json!({ "quantization_config": { "bits": 4 } })),
            &["does not name", "quantization_config", "bits", "GGUF"],
        ),
        (
            with(json!({ "quantization_config": { "quant_method": "gptq", "bits": 4, "group_size": 128 } })),
            &["quantized by gptq (quantization_config is", "dense safetensors", "GGUF"],
        ),
        (with(json!({ "quantization_config": { "quant_method": "bitsandbytes" } })), &["quantized by bitsandbytes"]),
        (with(json!({ "final_logit_softcapping": 30.0 })), &["final_logit_softcapping", "30"]),
        (with(json!({ "use_qk_norm": true })), &["use_qk_norm", "true"]),
    ];
    for (config, expected) in table {
        let message = refusal(config);
        for part in *expected {
            assert!(message.contains(part), "{config}\nlacks {part:?}: {message}");
        }
    }
}

#[test]
fn yarn_given_to_a_config_later_stretches_its_context() {
    // As the card of Qwen2.5-7B-Instruct has it, and with what configs of DeepSeek have beside it.
    let yarn = json!({
        "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "attn_factor": 0.878,
    });
    let decoder = read(&with(json!({ "rope_scaling": yarn })));
    assert_eq!(decoder.max_positions, 2048);
    let whole = with(json!({ "rope_scaling": yarn, "max_position_embeddings": 4096 }));
    assert_eq!(read(&whole).max_positions, 4096);
}

#[test]
fn what_leaves_the_computation_as_it_is_passes() {
    // transformers once split its products by it.
    assert_eq!(read(&with(json!({ "pretraining_tp": 2 }))), read(&config()));
}
