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
fn models_are_supported_up_to_the_context_that_they_were_made_for() {
    let yes = ask(&dense(json!({}), |_| ()), &cpu()).unwrap();
    assert_eq!((yes.max_context, yes.dtype, yes.layout), (8192, FloatType::F32, Layout::HuggingFace));
    let yes = ask(&gguf(&[], |_| ()), &cpu()).unwrap();
    assert_eq!((yes.max_context, yes.dtype, yes.layout), (8192, FloatType::F32, Layout::Gguf));
}

#[test]
fn what_a_description_can_say_is_computed_or_refused_by_name() {
    let supported = [
        json!({ "head_dim": 32 }),
        json!({ "attention_bias": true, "mlp_bias": true }),
        json!({ "model_type": "mistral", "sliding_window": 32 }),
        json!({ "rope_scaling": { "rope_type": "linear", "factor": 2.0 } }),
        // Up to the context that the model was made for, it changes nothing.
        json!({ "rope_scaling": { "type": "dynamic", "factor": 2.0 } }),
        json!({ "pretraining_tp": 2 }),
    ];
    for changes in supported {
        ask(&dense(changes.clone(), |_| ()), &cpu()).unwrap_or_else(|why| panic!("{changes}: {why}"));
    }
    let table: &[(Value, &[&str])] = &[
        (json!({ "num_local_experts": 8 }), &["num_local_experts is 8"]),
        (
            json!({ "rope_scaling": {
                "type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 4096
            } }),
            &["dynamic", "4096 of 8192"],
        ),
        (
            json!({ "rope_scaling": {
                "type": "longrope", "short_factor": vec![1.0; 8], "long_factor": vec![1.0; 8],
                "original_max_position_embeddings": 1
            } }),
            &["longrope", "inf"],
        ),
        (
            json!({ "rope_scaling": {
                "type": "yarn", "factor": 4.0, "mscale": -10.0, "mscale_all_dim": 1.0
            } }),
            &["yarn", "attention factor of -"],
        ),
        (json!({ "rms_norm_eps": null }), &["rms_norm_eps is missing"]),
        (json!({ "hidden_act": "swish2" }), &["hidden_act"]),
    ];
    for (changes, expected) in table {
        refused(&dense(changes.clone(), |_| ()), &cpu(), expected);
    }
}

#[test]
fn a_reason_leaves_the_model_to_whoever_passes_it_on() {
    let why = ask(&dense(json!({ "quantization_config": { "quant_method": "awq" } }), |_| ()), &cpu()).unwrap_err();
    assert!(why.starts_with("config.json: the weights are quantized by awq"), "{why}");
}

#[test]
fn weights_that_mlx_quantized_are_refused_with_what_to_use_instead() {
    let config = json!({ "quantization": { "group_size": 64, "bits": 4, "mode": "affine" } });
    let packed = dense(config.clone(), |tensors| {
        let parts = ["scales", "biases"].map(|part| format!("model.embed_tokens.{part}"));
        let embedding = tensors.iter_mut().find(|t| t.name == "model.embed_tokens.weight").unwrap();
        embedding.encoding = Encoding::MlxAffine { bits: 4, group_size: 64 };
        embedding.parts = parts.to_vec();
        tensors.extend(parts.map(|part| TensorEntry::new(part, vec![96, 1], F32)));
    });
    let words = ["quantized by MLX", "model.embed_tokens.weight", "mlx-affine(4 bits, group 64)", "dense", "GGUF"];
    refused(&packed, &cpu(), &words);
    // What it is made of decides, not what config.json says of it: a merge may have left floats alone.
    ask(&dense(config, |_| ()), &cpu()).unwrap();
}

#[test]
fn tensors_of_gguf_files_that_scale_frequencies_are_part_of_the_model() {
    refused(&gguf(&[("llama.expert_count", GgufValue::Int(8))], |_| ()), &cpu(), &["expert_count is 8"]);
    let extra = |name: &'static str, shape: &'static [usize]| {
        gguf(&[], move |t| t.push(TensorEntry::new(name, shape.to_vec(), F32)))
    };
    ask(&extra("rope_freqs.weight", &[8]), &cpu()).unwrap();
    refused(&extra("blk.0.attn_sinks.weight", &[4]), &cpu(), &["blk.0.attn_sinks.weight", "no part"]);
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
    for encoding in [Encoding::Int(llm_local_core::IntType::U8), Encoding::Ggml(GgmlType::Q8_0)] {
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
fn layers_beyond_the_tensors_there_are_refused_before_they_are_listed() {
    let few = dense(json!({}), |_| ()).tensors;
    let with_layers = |layers: usize| {
        let config = Arc::new(config(&json!({ "num_hidden_layers": layers })));
        ModelInfo::new("m", ModelFormat::Safetensors { config }, few.to_vec())
    };
    let all = ["num_hidden_layers is 4096", "36866 tensors", "the checkpoint has 20"];
    refused(&with_layers(4096), &cpu(), &all);
    refused(&with_layers(4), &cpu(), &["num_hidden_layers is 4", "38 tensors", "has 20"]);
    // One layer too many: what is missing is named.
    refused(&with_layers(3), &cpu(), &["model.layers.2.input_layernorm.weight", "missing"]);
    let blocks = gguf(&[("llama.block_count", GgufValue::Int(5))], |_| ());
    refused(&blocks, &cpu(), &["block_count is 5", "47 tensors", "has 20"]);
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

/// A checkpoint stored in `t`.
fn stored_in(changes: Value, t: FloatType) -> ModelInfo {
    dense(changes, |tensors| tensors.iter_mut().for_each(|x| x.encoding = Encoding::Float(t)))
}

#[test]
fn dense_matrices_are_held_as_asked_or_as_stored_where_candle_computes_with_that() {
    let with = |dtype| cpu().with_dtype(dtype);
    for (dtype, expected) in [
        (ComputeDtype::F32, FloatType::F32),
        (ComputeDtype::F16, FloatType::F16),
        (ComputeDtype::Bf16, FloatType::Bf16),
    ] {
        for info in [dense(json!({}), |_| ()), gguf(&[], |_| ()), stored_in(json!({}), FloatType::F16)] {
            let yes = ask(&info, &with(dtype)).unwrap();
            assert_eq!((yes.dtype, yes.activations), (expected, DType::F32));
        }
    }
    let auto = |info: &ModelInfo| ask(info, &cpu()).unwrap().dtype;
    assert_eq!(auto(&stored_in(json!({}), FloatType::F16)), FloatType::F16);
    assert_eq!(auto(&stored_in(json!({}), FloatType::Bf16)), FloatType::F32);
    let gemma = json!({ "model_type": "gemma2", "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8,
        "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0 });
    assert_eq!(auto(&stored_in(gemma, FloatType::F16)), FloatType::F32);
    // Each tensor by itself where some are quantized.
    let mixed = gguf(&[], |tensors| tensors[0].encoding = Encoding::Float(FloatType::F16));
    let yes = ask(&mixed, &cpu()).unwrap();
    assert_eq!(yes.dtype, FloatType::F32);
    assert_eq!(yes.held(&mixed.tensors[0]), Some(Held::Dense(FloatType::F16)));
    assert_eq!(yes.held(&mixed.tensors[2]), Some(Held::Blocks(GgmlDType::Q4_0)));
    let stored = [FloatType::F64, FloatType::F32, FloatType::F16, FloatType::Bf16];
    let own = |t| if t == FloatType::F16 { t } else { FloatType::F32 };
    assert_eq!(yes.held_in(), stored.map(|t| (t, own(t))));
    assert_eq!(ask(&mixed, &with(ComputeDtype::F32)).unwrap().held_in(), stored.map(|t| (t, FloatType::F32)));
}

#[test]
fn an_unknown_device_is_refused() {
    refused(&dense(json!({}), |_| ()), &LoadOptions::new(1).with_device("npu"), &["npu", "cpu"]);
}
