//! What is read from the metadata and tensors of GGUF files, and what is refused.

mod refused;
mod rope;

use super::*;
use crate::{Encoding, FloatType, TensorEntry};

/// The metadata of a small decoder of four layers.
fn metadata(architecture: &str) -> GgufMetadata {
    let mut metadata = GgufMetadata::default();
    metadata.insert("general.architecture", GgufValue::String(architecture.into()));
    for (key, value) in [
        ("embedding_length", 128),
        ("block_count", 4),
        ("feed_forward_length", 384),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("context_length", 512),
    ] {
        metadata.insert(format!("{architecture}.{key}"), GgufValue::Int(value));
    }
    metadata.insert(format!("{architecture}.attention.layer_norm_rms_epsilon"), GgufValue::Float(1e-5));
    if architecture == "granite" {
        metadata.insert("granite.logit_scale", GgufValue::Float(8.0));
    }
    metadata
}

fn tensors(names: impl IntoIterator<Item = impl Into<String>>) -> Vec<TensorEntry> {
    let entry = |name: String| TensorEntry::new(name, vec![896, 128], Encoding::Float(FloatType::F32));
    names.into_iter().map(|name| entry(name.into())).collect()
}

/// The tensors that tell something of a decoder of `architecture`, and `more`.
fn telling(architecture: &str, more: &[&str]) -> Vec<TensorEntry> {
    let mut names = vec!["token_embd.weight".to_owned()];
    if ["qwen3", "gemma3", "olmo2"].contains(&architecture) {
        let norms = (0..4).flat_map(|n| [format!("blk.{n}.attn_q_norm.weight"), format!("blk.{n}.attn_k_norm.weight")]);
        names.extend(norms);
    }
    names.extend(more.iter().map(|name| (*name).to_owned()));
    tensors(names)
}

/// What a file of `architecture` with the `changes` describes. Keys are given without the architecture.
fn described(architecture: &str, changes: &[(&str, GgufValue)], more: &[&str]) -> Result<DecoderConfig> {
    let mut metadata = metadata(architecture);
    for (key, value) in changes {
        metadata.insert(format!("{architecture}.{key}"), value.clone());
    }
    DecoderConfig::from_gguf("m", &metadata, &telling(architecture, more))
}

fn int(n: i128) -> GgufValue {
    GgufValue::Int(n)
}

fn float(x: f64) -> GgufValue {
    GgufValue::Float(x)
}

fn text(s: &str) -> GgufValue {
    GgufValue::String(s.into())
}

#[test]
fn gguf_metadata_and_config_json_describe_the_same_model() {
    assert_eq!(described("llama", &[], &[]).unwrap(), read(&config()));
}

#[test]
fn what_only_gguf_tensors_tell_is_read_from_them() {
    let biases = ["attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up", "ffn_down"];
    let biases = (0..4).flat_map(|layer| biases.map(|name| format!("blk.{layer}.{name}.bias")));
    let others = ["token_embd.weight", "output.weight", "rope_freqs.weight"].map(str::to_owned);
    let tensors = tensors(others.into_iter().chain(biases));
    let decoder = DecoderConfig::from_gguf("m", &metadata("llama"), &tensors).unwrap();
    assert!(!decoder.tied_embeddings && decoder.mlp_bias);
    assert_eq!(decoder.attention_bias, AttentionBias::new(true, false));
    assert_eq!(decoder.rope.scaling, RopeScaling::Divisors { tensor: "rope_freqs.weight".into() });
}

#[test]
fn numbers_that_stand_there_per_layer_are_read_if_all_layers_have_the_same() {
    let changes = [
        ("attention.head_count", GgufValue::Ints(vec![4; 4])),
        ("attention.head_count_kv", GgufValue::Ints(vec![2; 4])),
        ("feed_forward_length", GgufValue::Ints(vec![384; 4])),
    ];
    assert_eq!(described("llama", &changes, &[]).unwrap(), read(&config()));
}

#[test]
fn windows_hold_on_the_layers_that_the_file_or_the_architecture_says() {
    let window = |n| ("attention.sliding_window", int(n));
    let pattern = |value| ("attention.sliding_window_pattern", value);
    let bools = |v: [bool; 4]| GgufValue::Bools(v.to_vec());
    let table = [
        ("llama", vec![], None),
        ("llama", vec![window(0)], None),
        ("llama", vec![window(8)], Some((8, [true; 4]))),
        ("phi3", vec![window(8)], Some((8, [true; 4]))),
        ("gemma2", vec![], Some((4096, [true, false, true, false]))),
        ("gemma2", vec![window(8)], Some((8, [true, false, true, false]))),
        ("gemma3", vec![], None),
        ("gemma3", vec![window(8)], Some((8, [true; 4]))), // the first full layer would be the sixth
        ("gemma3", vec![window(8), pattern(int(3))], Some((8, [true, true, false, true]))),
        ("gemma3", vec![window(8), pattern(int(0))], Some((8, [true; 4]))),
        ("gemma3", vec![window(8), pattern(int(1))], None),
        ("gemma3", vec![window(8), pattern(bools([false, true, true, false]))], Some((8, [false, true, true, false]))),
        ("gemma3", vec![window(8), pattern(GgufValue::Ints(vec![0, 0, 0, 1]))], Some((8, [false, false, false, true]))),
        ("qwen2", vec![window(0)], None),
        ("qwen3", vec![window(8), pattern(bools([false, false, true, true]))], Some((8, [false, false, true, true]))),
        ("olmo2", vec![], None),
        ("olmo2", vec![window(8)], Some((8, [true, true, true, false]))),
    ];
    for (architecture, changes, expected) in table {
        let decoder = described(architecture, &changes, &[]).unwrap();
        let expected = expected.map(|(size, layers)| SlidingWindow::new(size, layers.to_vec()));
        assert_eq!(decoder.sliding_window, expected, "{architecture}: {changes:?}");
    }
}

#[test]
fn each_sixth_layer_of_gemma_3_is_full() {
    let mut metadata = metadata("gemma3");
    metadata.insert("gemma3.block_count", int(13));
    metadata.insert("gemma3.attention.sliding_window", int(512));
    let norms = (0..13).flat_map(|n| ["q", "k"].map(|which| format!("blk.{n}.attn_{which}_norm.weight")));
    let tensors = tensors(["token_embd.weight".to_owned()].into_iter().chain(norms));
    let window = DecoderConfig::from_gguf("m", &metadata, &tensors).unwrap().sliding_window.unwrap();
    let full: Vec<usize> = (0..13).filter(|layer| !window.layers[*layer]).collect();
    assert_eq!((window.size, full), (512, vec![5, 11]));
}

#[test]
fn gemma_has_soft_caps_where_no_key_says_otherwise() {
    let caps = |architecture, changes: &[(&str, GgufValue)]| {
        let decoder = described(architecture, changes, &[]).unwrap();
        (decoder.attention_soft_cap, decoder.logit_soft_cap)
    };
    assert_eq!(caps("gemma2", &[]), (Some(50.0), Some(30.0)));
    let given = [("attn_logit_softcapping", float(3.0)), ("final_logit_softcapping", float(5.0))];
    assert_eq!(caps("gemma2", &given), (Some(3.0), Some(5.0)));
    assert_eq!(caps("gemma2", &[("attn_logit_softcapping", float(0.0))]), (None, Some(30.0)));
    assert_eq!(caps("gemma3", &[]), (None, None));
    assert_eq!(caps("gemma3", &[("final_logit_softcapping", float(5.0))]), (None, Some(5.0)));
}

#[test]
fn the_largest_gemmas_scale_scores_by_the_hidden_size_per_head() {
    // As query_pre_attn_scalar in config.json: 144 for Gemma 2 27B, 168 for Gemma 3 27B.
    for (architecture, layers, hidden, scalar) in [("gemma2", 46, 4608, 144.0), ("gemma3", 62, 5376, 168.0)] {
        for (layers, scalar) in [(layers, scalar), (26, 128.0)] {
            let mut metadata = metadata(architecture);
            for (key, n) in [
                ("block_count", layers),
                ("embedding_length", hidden),
                ("attention.head_count", 32),
                ("attention.key_length", 128),
                ("attention.value_length", 128),
            ] {
                metadata.insert(format!("{architecture}.{key}"), int(n));
            }
            let norms = (0..62).flat_map(|n| ["q", "k"].map(|which| format!("blk.{n}.attn_{which}_norm.weight")));
            let norms = norms.filter(|_| architecture == "gemma3").take(2 * layers as usize);
            let tensors = tensors(["token_embd.weight".to_owned()].into_iter().chain(norms));
            let decoder = DecoderConfig::from_gguf("m", &metadata, &tensors).unwrap();
            assert_eq!(decoder.attention_scale, f64::sqrt(scalar).recip(), "{architecture}, {layers} layers");
            assert_eq!(decoder.embedding_scale, f64::sqrt(hidden as f64));
        }
    }
}

#[test]
fn granite_multiplies_and_divides_by_its_scales() {
    let changes = [
        ("attention.scale", float(0.125)),
        ("embedding_scale", float(12.0)),
        ("residual_scale", float(0.25)),
        ("logit_scale", float(16.0)),
    ];
    let decoder = described("granite", &changes, &[]).unwrap();
    let scales = |d: &DecoderConfig| (d.attention_scale, d.embedding_scale, d.residual_scale, d.logit_scale);
    assert_eq!(scales(&decoder), (0.125, 12.0, 0.25, 0.0625));
    // 0 is absent.
    let off = changes.map(|(key, _)| (key, float(0.0)));
    let decoder = described("granite", &off[..3], &[]).unwrap();
    assert_eq!(scales(&decoder), (f64::sqrt(32.0).recip(), 1.0, 1.0, 0.125));
}

#[test]
fn keys_that_turn_nothing_on_are_let_pass() {
    let off = [
        ("attention.clamp_kqv", float(0.0)),
        ("attention.causal", GgufValue::Bool(true)),
        ("attention.some_new_switch", GgufValue::Bool(false)),
        ("swiglu_clamp_exp", GgufValue::Floats(vec![0.0; 4])),
        ("rope.dimension_sections", GgufValue::Ints(vec![0; 4])),
        ("embedding_length_out", int(128)),
        ("attention.key_length_swa", int(32)),
        ("vocab_size", int(896)),
        ("tensor_data_layout", text("Meta AI original pth")),
        ("expert_count", int(0)),
        ("expert_used_count", int(0)),
    ];
    assert_eq!(described("llama", &off, &[]).unwrap(), read(&config()));
}

#[test]
fn experts_are_told_whatever_their_tensors_are_called() {
    let decoder =
        described("llama", &[("expert_count", int(8)), ("expert_used_count", int(2))], &["blk.0.ffn_gate_exps.weight"]);
    assert_eq!(decoder.unwrap().experts, 8);
}
