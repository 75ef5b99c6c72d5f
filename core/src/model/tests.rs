//! Both readers of [`DecoderConfig`]: what they read, and what they refuse.

use serde_json::{Value, json};

use super::*;
use crate::{Encoding, FloatType, TensorEntry};

fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "vocab_size": 896, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 512,
        "tie_word_embeddings": true, "rope_theta": 10000.0, "rope_scaling": null, "head_dim": null,
    })
}

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

fn read(config: &Value) -> DecoderConfig {
    DecoderConfig::from_config("m", config).unwrap()
}

fn refusal(config: &Value) -> String {
    let error = DecoderConfig::from_config("m", config).unwrap_err();
    assert_eq!(error.code(), "unsupported_model_format");
    error.to_string()
}

#[test]
fn every_field_of_config_json_is_read() {
    let decoder = read(&with(json!({
        "head_dim": 48, "rope_theta": 5e5, "hidden_act": "gelu_pytorch_tanh", "attention_bias": true, "mlp_bias": true,
        "sliding_window": 64, "partial_rotary_factor": 0.5, "num_local_experts": 8,
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
            rope: Rope::new(5e5, 24),
            local_rope: None,
            max_positions: 512,
            sliding_window: Some(SlidingWindow::new(64, vec![true; 4])),
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
            json!({ "type": "su", "short_factor": [1.0], "long_factor": [2.0], "original_max_position_embeddings": 64 }),
            RopeScaling::LongRope {
                short_factor: vec![1.0],
                long_factor: vec![2.0],
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
        (with(json!({ "model_type": "mistral" })), &["model_type", "\"mistral\"", "LlamaForCausalLM"]),
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
        (with(json!({ "sliding_window": 0 })), &["sliding_window", "is 0"]),
        (with(json!({ "rope_theta": 0 })), &["rope_theta", "is 0"]),
        (with(json!({ "rope_theta": "1e4" })), &["rope_theta", "\"1e4\""]),
        (with(json!({ "partial_rotary_factor": 1.5 })), &["partial_rotary_factor", "1.5"]),
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
        (with(json!({ "pretraining_tp": 2 })), &["pretraining_tp", "is 2", "expected 1"]),
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
            with(json!({ "quantization": { "group_size": 64, "bits": 4 } })),
            &["quantized by MLX (quantization is", "\"bits\":4", "dense safetensors", "GGUF"],
        ),
        (
            with(json!({
                "quantization": { "group_size": 64, "bits": 4 }, "quantization_config": { "group_size": 64, "bits": 4 },
            })),
            &["quantized by MLX", "dense safetensors", "GGUF"],
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

fn metadata() -> GgufMetadata {
    let mut metadata = GgufMetadata::default();
    metadata.insert("general.architecture", GgufValue::String("llama".into()));
    for (key, value) in [
        ("embedding_length", 128),
        ("block_count", 4),
        ("feed_forward_length", 384),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("context_length", 512),
    ] {
        metadata.insert(format!("llama.{key}"), GgufValue::Int(value));
    }
    metadata.insert("llama.attention.layer_norm_rms_epsilon", GgufValue::Float(1e-5));
    metadata
}

fn tensors(names: &[&str]) -> Vec<TensorEntry> {
    let entry = |name: &str| TensorEntry::new(name, vec![896, 128], Encoding::Float(FloatType::F32));
    names.iter().copied().map(entry).collect()
}

#[test]
fn gguf_metadata_and_config_json_describe_the_same_model() {
    let decoder = DecoderConfig::from_gguf("m", &metadata(), &tensors(&["token_embd.weight"])).unwrap();
    assert_eq!(decoder, read(&config()));
}

#[test]
fn what_only_gguf_tensors_tell_is_read_from_them() {
    let names = ["token_embd.weight", "output.weight", "rope_freqs.weight", "blk.0.attn_q.bias", "blk.0.ffn_up.bias"];
    let decoder = DecoderConfig::from_gguf("m", &metadata(), &tensors(&names)).unwrap();
    assert!(!decoder.tied_embeddings && decoder.mlp_bias);
    assert_eq!(decoder.attention_bias, AttentionBias::new(true, false));
    assert_eq!(decoder.rope.scaling, RopeScaling::Divisors { tensor: "rope_freqs.weight".into() });
}

#[test]
fn scaling_without_a_type_is_linear_in_gguf() {
    let mut metadata = metadata();
    metadata.insert("llama.rope.scaling.factor", GgufValue::Float(4.0));
    let tensors = tensors(&["token_embd.weight"]);
    let scaling = |m: &GgufMetadata| DecoderConfig::from_gguf("m", m, &tensors).unwrap().rope.scaling;
    assert_eq!(scaling(&metadata), RopeScaling::Linear { factor: 4.0 });
    metadata.insert("llama.rope.scaling.type", GgufValue::String("none".into()));
    assert_eq!(scaling(&metadata), RopeScaling::None);
    metadata.insert("llama.rope.scaling.type", GgufValue::String("yarn".into()));
    metadata.insert("llama.rope.scaling.original_context_length", GgufValue::Int(64));
    assert_eq!(scaling(&metadata).name(), "yarn");
}

#[test]
fn what_gguf_metadata_has_wrong_is_named_with_its_value() {
    let text = |s: &str| Some(GgufValue::String(s.into()));
    let int = |n| Some(GgufValue::Int(n));
    let table: Vec<(&str, Option<GgufValue>, &[&str])> = vec![
        ("general.architecture", text("gemma3"), &["gemma3", "llama"]),
        ("general.architecture", None, &["missing"]),
        ("llama.embedding_length", None, &["missing"]),
        ("llama.embedding_length", text("128"), &["\"128\"", "whole number"]),
        ("llama.block_count", int(0), &["is 0"]),
        ("llama.block_count", int(-4), &["-4"]),
        ("llama.feed_forward_length", Some(GgufValue::Ints(vec![1, 2])), &["an array of 2 integers"]),
        ("llama.attention.head_count_kv", int(3), &["is 3", "4 heads"]),
        ("llama.attention.layer_norm_rms_epsilon", None, &["missing"]),
        ("llama.context_length", None, &["missing"]),
        ("llama.vocab_size", int(900), &["900", "896"]),
        ("llama.rope.dimension_count", int(31), &["31"]),
        ("llama.rope.dimension_count", int(64), &["64"]),
        ("llama.rope.freq_base", Some(GgufValue::Float(f64::NAN)), &["NaN"]),
        ("llama.rope.scaling.type", text("mystery"), &["mystery", "yarn"]),
        ("llama.rope.scaling.yarn_log_multiplier", Some(GgufValue::Float(0.1)), &["0.1", "no such key"]),
        ("llama.attention.scale", Some(GgufValue::Float(0.5)), &["0.5"]),
        ("llama.attention.causal", Some(GgufValue::Bool(false)), &["false"]),
    ];
    for (key, value, expected) in table {
        let changed: GgufMetadata = metadata()
            .iter()
            .filter(|(k, _)| *k != key)
            .map(|(k, v)| (k.to_owned(), v.clone()))
            .chain(value.map(|v| (key.to_owned(), v)))
            .collect();
        let error = DecoderConfig::from_gguf("m", &changed, &tensors(&["token_embd.weight"])).unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
        assert!(expected.iter().all(|part| error.contains(part)), "{expected:?}: {error}");
    }
    let error = DecoderConfig::from_gguf("m", &metadata(), &tensors(&["output.weight"])).unwrap_err().to_string();
    assert!(error.contains("token_embd.weight"), "{error}");
    let mut both = metadata();
    both.insert("llama.rope.scaling.factor", GgufValue::Float(4.0));
    let names = ["token_embd.weight", "rope_freqs.weight"];
    let error = DecoderConfig::from_gguf("m", &both, &tensors(&names)).unwrap_err().to_string();
    assert!(error.contains("rope_freqs.weight"), "{error}");
}

#[test]
fn the_tensors_of_both_layouts_are_the_same_with_the_same_shapes() {
    let decoder = DecoderConfig { tied_embeddings: false, ..read(&config()) };
    let (hf, gguf) = (decoder.base_tensors(Layout::HuggingFace), decoder.base_tensors(Layout::Gguf));
    assert_eq!(hf.len(), 3 + 4 * 9);
    for (hf, gguf) in hf.iter().zip(&gguf) {
        let renamed = rename(decoder.architecture, &hf.name, Layout::HuggingFace, Layout::Gguf);
        assert_eq!(renamed.as_ref(), Some(&gguf.name));
        assert_eq!((&hf.shape, hf.role, hf.layer), (&gguf.shape, gguf.role, gguf.layer));
    }
    let shape = |name: &str| hf.iter().find(|t| t.name == name).unwrap().shape.clone();
    assert_eq!(shape("model.layers.3.self_attn.k_proj.weight"), [64, 128]);
    assert_eq!(shape("model.layers.0.mlp.down_proj.weight"), [128, 384]);
    assert_eq!(shape("lm_head.weight"), [896, 128]);
    let tied = DecoderConfig { tied_embeddings: true, ..decoder };
    assert_eq!(tied.base_tensors(Layout::Gguf).len(), gguf.len() - 1);
}
