//! What is refused, with the field's name, and what is not.

use std::sync::Arc;

use llm_local_core::{
    GgmlType, TensorEntry,
    model::{BaseTensor, GgufMetadata, GgufValue},
};
use serde_json::{Value, json};

use super::*;

const F32: Encoding = Encoding::Float(FloatType::F32);

fn config(changes: &Value) -> Value {
    let mut config = json!({
        "model_type": "llama", "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 8192,
        "tie_word_embeddings": true,
    });
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config
}

/// A checkpoint with the tensors that its own config asks for, then changed by `change`.
fn dense(changes: Value, change: impl FnOnce(&mut Vec<TensorEntry>)) -> ModelInfo {
    let config = config(&changes);
    let tensors =
        DecoderConfig::from_config("m", &config).map(|c| c.base_tensors(Layout::HuggingFace)).unwrap_or_default();
    let bf16 = Encoding::Float(FloatType::Bf16);
    let mut tensors = tensors.into_iter().map(|t| TensorEntry::new(t.name, t.shape, bf16)).collect();
    change(&mut tensors);
    ModelInfo::new("m", ModelFormat::Safetensors { config: Arc::new(config) }, tensors)
}

/// The same as GGUF, Q4_0 but for the norms.
fn gguf(changes: &[(&str, GgufValue)], change: impl FnOnce(&mut Vec<TensorEntry>)) -> ModelInfo {
    let decoder = DecoderConfig::from_config("m", &config(&json!({}))).unwrap();
    let entry = |BaseTensor { name, shape, .. }| {
        let encoding = if shape.len() == 1 { F32 } else { Encoding::Ggml(GgmlType::Q4_0) };
        TensorEntry::new(name, shape, encoding)
    };
    let mut tensors = decoder.base_tensors(Layout::Gguf).into_iter().map(entry).collect();
    change(&mut tensors);
    let mut metadata = GgufMetadata::default();
    metadata.insert("general.architecture", GgufValue::String("llama".into()));
    metadata.insert("llama.attention.layer_norm_rms_epsilon", GgufValue::Float(1e-5));
    for (key, value) in [
        ("embedding_length", 64),
        ("block_count", 2),
        ("feed_forward_length", 128),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("context_length", 8192),
    ] {
        metadata.insert(format!("llama.{key}"), GgufValue::Int(value));
    }
    for (key, value) in changes {
        metadata.insert(*key, value.clone());
    }
    ModelInfo::new("m", ModelFormat::Gguf { metadata: Arc::new(metadata) }, tensors)
}

fn ask(info: &ModelInfo, options: &LoadOptions) -> Result<Supported, String> {
    check(info, options, &Devices::probe())
}

fn cpu() -> LoadOptions {
    LoadOptions::new(128).with_device("cpu")
}

#[track_caller]
fn refused(info: &ModelInfo, options: &LoadOptions, expected: &[&str]) {
    let why = ask(info, options).expect_err(expected[0]);
    for part in expected {
        assert!(why.contains(part), "lacks {part:?}: {why}");
    }
}

#[test]
fn plain_llamas_are_supported_up_to_the_context_that_candle_holds() {
    let yes = ask(&dense(json!({}), |_| ()), &cpu()).unwrap();
    assert_eq!((yes.max_context, yes.dtype, yes.layout), (8192, FloatType::F32, Layout::HuggingFace));
    let yes = ask(&gguf(&[], |_| ()), &cpu()).unwrap();
    assert_eq!((yes.max_context, yes.dtype, yes.layout), (4096, FloatType::F32, Layout::Gguf));
    let llama3 = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64 });
    ask(&dense(json!({ "rope_scaling": llama3 }), |_| ()), &cpu()).unwrap();
}

#[test]
fn every_config_value_that_candle_would_ignore_is_refused_by_name() {
    let table: &[(Value, &[&str])] = &[
        (json!({ "head_dim": 32 }), &["head_dim is 32", "64/4"]),
        (json!({ "attention_bias": true }), &["attention_bias"]),
        (json!({ "mlp_bias": true }), &["mlp_bias"]),
        (json!({ "hidden_act": "gelu" }), &["hidden_act is gelu", "silu"]),
        (json!({ "sliding_window": 32 }), &["sliding_window is 32", "full attention"]),
        (json!({ "num_local_experts": 8 }), &["num_local_experts is 8"]),
        (json!({ "partial_rotary_factor": 0.5 }), &["partial_rotary_factor is 8 of 16"]),
        (json!({ "rope_scaling": { "type": "linear", "factor": 2.0 } }), &["rope_type is linear", "llama3"]),
        (json!({ "rope_scaling": { "type": "dynamic", "factor": 2.0 } }), &["rope_type is dynamic"]),
        (json!({ "rope_parameters": { "rope_type": "yarn", "factor": 2.0 } }), &["rope_type is yarn"]),
        (json!({ "model_type": "mistral" }), &["model_type", "mistral", "llama"]),
        (json!({ "pretraining_tp": 2 }), &["pretraining_tp is 2"]),
        (json!({ "rms_norm_eps": null }), &["rms_norm_eps is missing"]),
    ];
    for (changes, expected) in table {
        refused(&dense(changes.clone(), |_| ()), &cpu(), expected);
    }
}

#[test]
fn a_reason_leaves_the_model_to_whoever_passes_it_on() {
    let why = ask(&dense(json!({ "quantization": { "group_size": 64, "bits": 4 } }), |_| ()), &cpu()).unwrap_err();
    assert!(why.starts_with("config.json: the weights are quantized by MLX"), "{why}");
}

#[test]
fn every_gguf_value_that_candle_would_ignore_is_refused_by_name() {
    let text = |s: &str| GgufValue::String(s.into());
    let (int, float) = (GgufValue::Int, GgufValue::Float);
    type Row<'a> = (&'a [(&'a str, GgufValue)], &'a [&'a str]);
    let table: &[Row<'_>] = &[
        (&[("llama.attention.key_length", int(32))], &["llama.attention.key_length is 32", "64/4"]),
        (&[("llama.rope.dimension_count", int(8))], &["llama.rope.dimension_count is 8 of 16"]),
        (&[("llama.rope.scaling.factor", float(2.0))], &["llama.rope.scaling.type is linear"]),
        (&[("llama.attention.sliding_window", int(32))], &["llama.attention.sliding_window is 32"]),
        (&[("llama.expert_count", int(8))], &["llama.expert_count is 8"]),
        (&[("general.architecture", text("qwen2"))], &["general.architecture", "qwen2", "llama"]),
    ];
    for (changes, expected) in table {
        refused(&gguf(changes, |_| ()), &cpu(), expected);
    }
    let extra = |name: &'static str| gguf(&[], move |t| t.push(TensorEntry::new(name, vec![8], F32)));
    refused(&extra("rope_freqs.weight"), &cpu(), &["rope_freqs.weight", "ignore"]);
    refused(&extra("blk.0.attn_q.bias"), &cpu(), &["attn", "bias"]);
    refused(&extra("blk.1.ffn_down.bias"), &cpu(), &["ffn", "bias"]);
}

#[test]
fn tensors_that_are_missing_misshaped_unreadable_or_left_over_are_named() {
    let find = |tensors: &mut Vec<TensorEntry>, name: &str| tensors.iter().position(|t| t.name == name).unwrap();
    const Q: &str = "model.layers.1.self_attn.q_proj.weight";
    let missing = dense(json!({}), |t| {
        let at = find(t, Q);
        t.remove(at);
    });
    refused(&missing, &cpu(), &[Q, "missing"]);
    let untied = dense(json!({ "tie_word_embeddings": false }), |t| t.retain(|t| t.name != "lm_head.weight"));
    refused(&untied, &cpu(), &["lm_head.weight", "missing"]);
    let misshaped = dense(json!({}), |t| {
        let at = find(t, Q);
        t[at].shape = vec![64, 32];
    });
    refused(&misshaped, &cpu(), &[Q, "[64, 32]", "[64, 64]"]);
    for encoding in [
        Encoding::MlxAffine { bits: 4, group_size: 64 },
        Encoding::Int(llm_local_core::IntType::U8),
        Encoding::Ggml(GgmlType::Q8_0),
    ] {
        let unreadable = dense(json!({}), |t| {
            let at = find(t, Q);
            t[at].encoding = encoding;
        });
        refused(&unreadable, &cpu(), &[Q, &encoding.to_string(), "floats"]);
    }
    let extra = |name: &'static str| dense(json!({}), move |t| t.push(TensorEntry::new(name, vec![96, 64], F32)));
    refused(&extra("model.layers.2.mlp.up_proj.weight"), &cpu(), &["model.layers.2.mlp.up_proj.weight", "no part"]);
    refused(&extra("model.layers.0.self_attn.q_proj.bias"), &cpu(), &["q_proj.bias"]);
    ask(&extra("lm_head.weight"), &cpu()).unwrap();
    ask(&extra("model.layers.0.self_attn.rotary_emb.inv_freq"), &cpu()).unwrap();
}

#[test]
fn block_formats_that_candle_cannot_read_are_refused() {
    let all = |t: GgmlType| {
        gguf(&[], move |tensors| {
            for tensor in tensors.iter_mut().filter(|x| x.shape.len() == 2) {
                tensor.encoding = Encoding::Ggml(t);
            }
        })
    };
    use GgmlType as G;
    for t in [
        G::Q8_1,
        G::Q8_K,
        G::IQ2_XXS,
        G::IQ2_XS,
        G::IQ3_XXS,
        G::IQ1_S,
        G::IQ4_NL,
        G::IQ3_S,
        G::IQ2_S,
        G::IQ4_XS,
        G::IQ1_M,
        G::TQ1_0,
        G::TQ2_0,
        G::MXFP4,
        G::NVFP4,
        G::Q1_0,
    ] {
        refused(&all(t), &cpu(), &["token_embd.weight", &t.to_string(), "Q4_0"]);
    }
    for t in [G::Q4_0, G::Q4_1, G::Q5_0, G::Q5_1, G::Q8_0] {
        ask(&all(t), &cpu()).unwrap();
    }
    // Rows of 64 are no whole blocks of 256.
    refused(&all(G::Q4_K), &cpu(), &["token_embd.weight", "blocks", "Q4_K"]);
    let double = gguf(&[], |tensors| tensors[0].encoding = Encoding::Float(FloatType::F64));
    refused(&double, &cpu(), &["token_embd.weight", "f64"]);
}

#[test]
fn dtypes_are_honoured_or_refused() {
    let with = |dtype| cpu().with_dtype(dtype);
    for (dtype, expected) in [
        (ComputeDtype::F32, FloatType::F32),
        (ComputeDtype::F16, FloatType::F16),
        (ComputeDtype::Bf16, FloatType::Bf16),
    ] {
        assert_eq!(ask(&dense(json!({}), |_| ()), &with(dtype)).unwrap().dtype, expected);
    }
    assert_eq!(ask(&gguf(&[], |_| ()), &with(ComputeDtype::F32)).unwrap().dtype, FloatType::F32);
    refused(&gguf(&[], |_| ()), &with(ComputeDtype::F16), &["dtype is f16", "f32"]);
    refused(&gguf(&[], |_| ()), &with(ComputeDtype::Bf16), &["dtype is bf16", "f32"]);
    // What a GPU would do, without one.
    let info = dense(json!({}), |_| ());
    let gpu = dtype(&info, ComputeDtype::Auto, Layout::HuggingFace, DeviceKind::Cuda);
    assert_eq!(gpu, Ok(FloatType::Bf16));
}

#[test]
fn what_only_metal_lacks_is_refused_only_there() {
    let info = gguf(&[], |_| ());
    let decoder = info.decoder.as_ref().unwrap();
    let why = fields::check(decoder, Layout::Gguf, DeviceKind::Metal).unwrap_err();
    assert!(why.contains("llama.attention.key_length is 16") && why.contains("cpu"), "{why}");
    fields::check(decoder, Layout::HuggingFace, DeviceKind::Metal).unwrap();
    fields::check(decoder, Layout::Gguf, DeviceKind::Cuda).unwrap();
}

#[test]
fn an_unknown_device_is_refused() {
    refused(&dense(json!({}), |_| ()), &LoadOptions::new(1).with_device("npu"), &["npu", "cpu"]);
}
