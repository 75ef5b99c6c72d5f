//! What is refused, by the name of the key or the tensor.

use super::*;

#[track_caller]
fn names(found: Result<DecoderConfig>, parts: &[&str]) {
    let error = found.expect_err(parts[0]);
    assert_eq!(error.code(), "unsupported_model_format");
    let message = error.to_string();
    assert!(parts.iter().all(|part| message.contains(part)), "{parts:?}: {message}");
}

#[test]
fn keys_that_are_missing_or_wrong_are_named_with_their_values() {
    let table: Vec<(&str, Option<GgufValue>, &[&str])> = vec![
        ("embedding_length", None, &["missing"]),
        ("embedding_length", Some(text("128")), &["\"128\"", "whole number"]),
        ("embedding_length_out", Some(int(64)), &["64", "128"]),
        ("block_count", Some(int(0)), &["is 0"]),
        ("block_count", Some(int(-4)), &["-4"]),
        ("block_count", Some(int(65_536)), &["is 65536", "1 to 4096"]),
        ("feed_forward_length", Some(GgufValue::Ints(vec![1, 2])), &["an array of 2 integers"]),
        ("attention.head_count", None, &["missing"]),
        ("attention.head_count_kv", Some(int(3)), &["is 3", "4 heads"]),
        ("attention.layer_norm_rms_epsilon", None, &["missing"]),
        ("attention.value_length", Some(int(16)), &["is 16", "32"]),
        ("attention.key_length_swa", Some(int(16)), &["is 16", "32"]),
        ("context_length", None, &["missing"]),
        ("vocab_size", Some(int(900)), &["900", "896"]),
        ("rope.dimension_count", Some(int(31)), &["31"]),
        ("rope.dimension_count", Some(int(64)), &["64"]),
        ("rope.dimension_count_swa", Some(int(16)), &["16", "32"]),
        ("rope.freq_base", Some(float(f64::NAN)), &["NaN"]),
        ("rope.scaling.type", Some(text("mystery")), &["mystery", "yarn"]),
        ("rope.scaling.factor", Some(float(-2.0)), &["-2", "above 0"]),
        ("rope.scaling.attn_factor", Some(float(1.5)), &["1.5"]),
        ("attention.sliding_window", Some(int(-1)), &["-1"]),
    ];
    for (key, value, expected) in table {
        for architecture in ["llama", "qwen3"] {
            let key = format!("{architecture}.{key}");
            let mut given = metadata(architecture);
            given.insert(format!("{architecture}.attention.key_length"), int(32));
            let pairs = given.iter().filter(|(k, _)| *k != key).map(|(k, v)| (k.to_owned(), v.clone()));
            let changed: GgufMetadata = pairs.chain(value.clone().map(|v| (key.clone(), v))).collect();
            let found = DecoderConfig::from_gguf("m", &changed, &telling(architecture, &[]));
            names(found, &[&[key.as_str()], expected].concat());
        }
    }
}

#[test]
fn architectures_that_are_not_known_are_named_with_those_that_are() {
    let mut metadata = metadata("llama");
    metadata.insert("general.architecture", text("mamba"));
    names(DecoderConfig::from_gguf("m", &metadata, &[]), &["general.architecture", "mamba", "llama", "olmo2"]);
    names(DecoderConfig::from_gguf("m", &GgufMetadata::default(), &[]), &["general.architecture is missing"]);
}

#[test]
fn keys_that_would_change_the_computation_are_refused_where_they_are_not_understood() {
    let pattern = "attention.sliding_window_pattern";
    let table: Vec<(&str, &str, GgufValue)> = vec![
        ("llama", "attention.scale", float(0.5)),
        ("llama", "attention.causal", GgufValue::Bool(false)),
        ("llama", "attention.clamp_kqv", float(8.0)),
        ("llama", "attention.max_alibi_bias", float(8.0)),
        ("llama", "attention.temperature_scale", float(0.1)),
        ("llama", "attn_logit_softcapping", float(50.0)),
        ("llama", "logit_scale", float(2.0)),
        ("llama", "rope.freq_base_swa", float(1e4)),
        ("llama", "rope.scaling.yarn_log_multiplier", float(0.1)),
        ("llama", "nextn_predict_layers", int(1)),
        ("llama", "a_key_of_tomorrow", text("on")),
        ("qwen2", "rope.dimension_sections", GgufValue::Ints(vec![16, 24, 24, 0])),
        ("qwen2", "residual_scale", float(2.0)),
        ("qwen3", "deepstack_mapping", GgufValue::Ints(vec![-1, 0])),
        ("gemma", "attention.sliding_window", int(8)),
        ("gemma", "final_logit_softcapping", float(30.0)),
        ("gemma2", "attention.scale", float(0.5)),
        ("gemma2", pattern, GgufValue::Bools(vec![true])),
        ("gemma3", "attn_logit_softcapping", float(50.0)),
        ("gemma3", "rope.local.freq_base", float(1e4)),
        ("phi3", "final_logit_softcapping", float(30.0)),
        ("granite", "attention.sliding_window", int(8)),
        ("granite", "rope.scaling.finetuned", GgufValue::Bool(false)),
        ("granite", "logit_scale", float(0.0)),
        ("granite", "logit_scale", float(-1.0)),
        ("olmo2", "embedding_scale", float(2.0)),
    ];
    for (architecture, key, value) in table {
        let path = format!("{architecture}.{key} is ");
        names(described(architecture, &[(key, value)], &[]), &[&path, "expected"]);
    }
}

#[test]
fn keys_that_contradict_each_other_are_refused() {
    let window = ("attention.sliding_window", int(8));
    let yarn = ("rope.scaling.type", text("yarn"));
    let factor = ("rope.scaling.factor", float(4.0));
    let pattern = |value| ("attention.sliding_window_pattern", value);
    // Whole heads are permuted.
    names(described("llama", &[("rope.dimension_count", int(16))], &[]), &["llama.rope.dimension_count is 16", "32"]);
    // The layers of Qwen's window are not in the file.
    names(
        described("qwen2", std::slice::from_ref(&window), &[]),
        &["qwen2.attention.sliding_window_pattern is missing"],
    );
    let ints = GgufValue::Ints(vec![0, 1, 2, 1]);
    names(described("gemma3", &[window.clone(), pattern(ints)], &[]), &["sliding_window_pattern", "0 or 1"]);
    let short = GgufValue::Bools(vec![true; 3]);
    names(described("gemma3", &[window, pattern(short)], &[]), &["array of 3 booleans", "4 layers"]);
    names(described("qwen2", std::slice::from_ref(&yarn), &[]), &["qwen2.rope.scaling.factor is missing", "yarn"]);
    let no_ramp = ("rope.scaling.yarn_ext_factor", float(0.5));
    names(described("qwen2", &[yarn, factor.clone(), no_ramp], &[]), &["yarn_ext_factor is 0.5"]);
    let longrope = ("rope.scaling.type", text("longrope"));
    names(described("llama", &[longrope], &[]), &["longrope", "rope_factors_short.weight"]);
    names(described("llama", &[factor], &["rope_freqs.weight"]), &["rope.scaling.factor is 4", "rope_freqs.weight"]);
}

#[test]
fn tensors_that_the_description_does_not_fit_are_named() {
    let table: &[(&str, &[&str], &[&str])] = &[
        ("llama", &["rope_factors_long.weight"], &["rope_factors_long.weight", "rope_factors_short.weight"]),
        ("llama", &["rope_freqs.weight", "rope_factors_short.weight"], &["alone"]),
        ("llama", &["blk.0.attn_q.bias"], &["blk.0.attn_k.bias is missing"]),
        ("llama", &["blk.3.ffn_up.bias"], &["blk.0.ffn_gate.bias is missing"]),
        ("llama", &["blk.0.attn_q_norm.weight"], &["blk.0.attn_q_norm.weight is no part", "llama"]),
        ("llama", &["blk.0.attn_qkv.weight"], &["blk.0.attn_qkv.weight is no part"]),
        ("llama", &["blk.4.attn_q.weight"], &["blk.4.attn_q.weight is no part", "4 layers"]),
        ("phi3", &["blk.0.attn_q.weight"], &["blk.0.attn_q.weight is no part"]),
        ("qwen2", &["output.weight", "output.bias"], &["output.bias is no part"]),
        ("qwen3", &["cls.output.weight"], &["cls.output.weight is no part"]),
    ];
    for (architecture, more, expected) in table {
        names(described(architecture, &[], more), expected);
    }
    for architecture in ["qwen3", "gemma3", "olmo2"] {
        let found = DecoderConfig::from_gguf("m", &metadata(architecture), &tensors(["token_embd.weight"]));
        names(found, &["blk.0.attn_q_norm.weight is missing", architecture]);
    }
    let found = DecoderConfig::from_gguf("m", &metadata("llama"), &tensors(["output.weight"]));
    names(found, &["token_embd.weight is missing"]);
}
