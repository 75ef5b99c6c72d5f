//! What is read from the metadata and tensors of GGUF files, and what is refused.

use super::*;
use crate::{Encoding, FloatType, TensorEntry};

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
