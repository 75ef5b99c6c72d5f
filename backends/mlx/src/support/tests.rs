//! What is refused, with the field's name, and what is not.

use std::sync::Arc;

use llm_local_core::{GgmlType, model::GgufMetadata};
use serde_json::{Value, json};

use super::*;

const BF16: Encoding = Encoding::Float(FloatType::Bf16);

fn config(changes: &Value) -> Value {
    let mut config = json!({
        "model_type": "llama", "vocab_size": 96, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192, "tie_word_embeddings": true,
    });
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config
}

/// A checkpoint with the tensors that its own config asks for, then changed by `change`.
fn model(changes: &Value, change: impl FnOnce(&mut Vec<TensorEntry>)) -> ModelInfo {
    let config = config(changes);
    let tensors = DecoderConfig::from_config("m", &config).unwrap().base_tensors(LAYOUT);
    let mut tensors = tensors.into_iter().map(|t| TensorEntry::new(t.name, t.shape, BF16)).collect();
    change(&mut tensors);
    ModelInfo::new("m", ModelFormat::Safetensors { config: Arc::new(config) }, tensors)
}

/// Packs each matrix as `how` says by its name, with scales of the type `scales`.
fn packed(how: impl Fn(&str) -> Option<(u8, u32)>, scales: FloatType) -> ModelInfo {
    model(&json!({}), |tensors| {
        let mut parts = Vec::new();
        for t in tensors.iter_mut().filter(|t| t.shape.len() == 2) {
            let Some((bits, group_size)) = how(&t.name) else { continue };
            t.encoding = Encoding::MlxAffine { bits, group_size };
            let module = t.name.strip_suffix(".weight").unwrap();
            t.parts = ["scales", "biases"].map(|part| format!("{module}.{part}")).into();
            let shape = vec![t.shape[0], t.shape[1] / group_size.max(1) as usize];
            let part = |name: &String| TensorEntry::new(name, shape.clone(), Encoding::Float(scales));
            parts.extend(t.parts.iter().map(part));
        }
        tensors.extend(parts);
    })
}

fn on(kind: DeviceKind) -> DeviceInfo {
    DeviceInfo::new("x", kind, "x")
}

fn ask(info: &ModelInfo, options: &LoadOptions) -> Result<Supported, String> {
    check(info, options, &on(DeviceKind::Cpu))
}

fn options() -> LoadOptions {
    LoadOptions::new(128)
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
    let yes = ask(&model(&json!({}), |_| ()), &options()).unwrap();
    assert_eq!((yes.max_context, yes.dtype, yes.activations), (8192, FloatType::F32, Dtype::Float32));
}

#[test]
fn gguf_is_left_to_candle() {
    let mut info = model(&json!({}), |_| ());
    info.format = ModelFormat::Gguf { metadata: Arc::new(GgufMetadata::default()) };
    refused(&info, &options(), &["GGUF", "candle"]);
}

#[test]
fn weights_are_packed_as_mlx_packs_them_and_each_module_in_its_own_way() {
    for bits in [2, 3, 4, 5, 6, 8] {
        for group_size in [32, 64, 128] {
            let info = packed(|_| Some((bits, group_size)), FloatType::F16);
            let yes = ask(&info, &options()).unwrap();
            let embedding = info.tensor("model.embed_tokens.weight").unwrap();
            assert_eq!(yes.held(embedding), Some(Held::Affine { bits, group_size }));
        }
    }
    let mixed = packed(
        |name| match name {
            _ if name.contains("embed") => None,
            _ if name.contains("down_proj") => Some((6, 32)),
            _ => Some((4, 64)),
        },
        FloatType::F32,
    );
    let yes = ask(&mixed, &options()).unwrap();
    let held = |name: &str| yes.held(mixed.tensor(name).unwrap());
    assert_eq!(held("model.embed_tokens.weight"), Some(Held::Dense(FloatType::F32)));
    assert_eq!(held("model.layers.1.mlp.down_proj.weight"), Some(Held::Affine { bits: 6, group_size: 32 }));
    assert_eq!(held("model.layers.1.mlp.up_proj.weight"), Some(Held::Affine { bits: 4, group_size: 64 }));
    for (bits, group_size) in [(7, 64), (1, 64), (4, 16)] {
        let stored = Encoding::MlxAffine { bits, group_size }.to_string();
        refused(
            &packed(|_| Some((bits, group_size)), FloatType::F16),
            &options(),
            &["embed_tokens", &stored, "2 to 6"],
        );
    }
}

#[test]
fn tensors_and_fields_that_are_wrong_are_named() {
    let mut without_parts = packed(|_| Some((4, 64)), FloatType::F16);
    let kept = without_parts.tensors.iter().filter(|t| t.name != "model.layers.0.mlp.up_proj.biases").cloned();
    without_parts.tensors = kept.collect();
    refused(&without_parts, &options(), &["model.layers.0.mlp.up_proj.biases", "missing"]);
    let blocks = model(&json!({}), |t| t[0].encoding = Encoding::Ggml(GgmlType::Q8_0));
    refused(&blocks, &options(), &["embed_tokens", "Q8_0", "safetensors"]);
    refused(&model(&json!({ "num_local_experts": 8 }), |_| ()), &options(), &["num_local_experts is 8"]);
    let q8 = options().with_kv_cache(KvCacheType::Q8);
    assert!(ask(&model(&json!({}), |_| ()), &q8).is_ok());
    refused(&model(&json!({ "head_dim": 48 }), |_| ()), &q8, &["kv_cache is q8", "48"]);
}

#[test]
fn what_is_computed_in_follows_from_device_question_and_checkpoint() {
    use ComputeDtype as C;
    use DeviceKind::{Cpu, Metal};
    use FloatType::{Bf16, F16, F32, F64};
    // Device, asked for, stored in: computed in, and with activations that grow.
    for (device, want, stored, expected, grown) in [
        (Cpu, C::Auto, F32, Some(F32), Some(F32)),
        (Cpu, C::Auto, F16, Some(F32), Some(F32)),
        (Cpu, C::Auto, Bf16, Some(F32), Some(F32)),
        (Metal, C::Auto, F64, Some(F32), Some(F32)),
        (Metal, C::Auto, F32, Some(F32), Some(F32)),
        (Metal, C::Auto, F16, Some(F16), Some(F32)),
        (Metal, C::Auto, Bf16, Some(Bf16), Some(Bf16)),
        (Cpu, C::F32, Bf16, Some(F32), Some(F32)),
        (Metal, C::F32, F16, Some(F32), Some(F32)),
        (Cpu, C::Bf16, F32, Some(Bf16), Some(Bf16)),
        (Metal, C::Bf16, F16, Some(Bf16), Some(Bf16)),
        (Cpu, C::F16, Bf16, Some(F16), None),
        (Metal, C::F16, F16, Some(F16), None),
    ] {
        assert_eq!(compute_in(device, want, stored, false).ok(), expected, "{device:?} {want:?} {stored}");
        assert_eq!(compute_in(device, want, stored, true).ok(), grown, "{device:?} {want:?} {stored}, grown");
    }
    assert!(compute_in(Metal, C::F16, F16, true).unwrap_err().contains("dtype is f16"));
}

#[test]
fn scales_say_what_a_quantized_model_is_stored_in_also_where_a_merge_left_floats() {
    let metal = |info: &ModelInfo| check(info, &options(), &on(DeviceKind::Metal)).unwrap().dtype;
    // The dense rest is in bf16.
    for scales in [FloatType::F16, FloatType::Bf16, FloatType::F32] {
        assert_eq!(metal(&packed(|_| Some((4, 64)), scales)), scales);
        assert_eq!(metal(&packed(|name| name.contains("mlp.up").then_some((4, 64)), scales)), scales);
    }
    assert_eq!(metal(&packed(|_| None, FloatType::F16)), FloatType::Bf16);
}

#[test]
fn tensors_are_replaced_by_those_that_are_held_alike() {
    let metal = check(&packed(|_| Some((4, 64)), FloatType::F16), &options(), &on(DeviceKind::Metal)).unwrap();
    assert!(metal.with_tensors(&packed(|name| name.contains("embed").then_some((4, 64)), FloatType::F16)).is_ok());
    let why = metal.with_tensors(&model(&json!({}), |_| ())).unwrap_err();
    assert!(why.contains("f16") && why.contains("bf16"), "{why}");
    let untied = model(&json!({ "tie_word_embeddings": false }), |_| ());
    assert!(metal.with_tensors(&untied).unwrap_err().contains("tied"));
}
