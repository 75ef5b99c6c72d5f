//! The small checkpoints of every architecture: what their config.json says, in both forms, and what they hold.

use std::{collections::BTreeMap, fs};

use super::*;

const MODELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/models/");

fn json_of(path: &str) -> Value {
    serde_json::from_slice(&fs::read(format!("{MODELS}{path}")).unwrap()).unwrap()
}

/// What all of them have, as a Llama without anything particular.
fn plain() -> DecoderConfig {
    DecoderConfig {
        architecture: Architecture::Llama,
        vocab_size: 384,
        hidden_size: 64,
        intermediate_size: 96,
        layers: 3,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        norms: NormPlacement::Before,
        norm_eps: 1e-5,
        norm_offset: 0.0,
        qk_norm: None,
        activation: Activation::Silu,
        rope: Rope::new(1e4, 16),
        local_rope: None,
        max_positions: 256,
        sliding_window: None,
        attention_bias: AttentionBias::default(),
        mlp_bias: false,
        attention_scale: 0.25,
        attention_soft_cap: None,
        embedding_scale: 1.0,
        residual_scale: 1.0,
        logit_scale: 1.0,
        logit_soft_cap: None,
        fused_projections: false,
        tied_embeddings: false,
        experts: 0,
    }
}

fn window(layers: [bool; 3]) -> Option<SlidingWindow> {
    Some(SlidingWindow::new(8, layers.to_vec()))
}

/// Every config.json among the fixtures, and what it describes.
fn fixtures() -> Vec<(String, DecoderConfig)> {
    let yarn = |beta_fast, beta_slow, attention_factor| RopeScaling::Yarn {
        factor: 4.0,
        original_max_positions: 64,
        beta_fast,
        beta_slow,
        attention_factor,
        mscale: None,
        mscale_all_dim: None,
        truncate: true,
    };
    let llama3 =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 64 };
    let longrope = RopeScaling::LongRope {
        short_factor: vec![1.0, 1.05, 1.1, 1.2, 1.4, 1.6, 1.8, 2.0],
        long_factor: vec![1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
        original_max_positions: 40,
        attention_factor: None,
        factor: None,
    };
    let mistral = DecoderConfig { architecture: Architecture::Mistral, sliding_window: window([true; 3]), ..plain() };
    let qwen2 = DecoderConfig {
        architecture: Architecture::Qwen2,
        norm_eps: 1e-6,
        attention_bias: AttentionBias::new(true, false),
        rope: Rope::new(1e4, 16).with_scaling(yarn(32.0, 1.0, None)),
        ..plain()
    };
    let phi3 = DecoderConfig { architecture: Architecture::Phi3, fused_projections: true, ..plain() };
    let gemma2 = DecoderConfig {
        architecture: Architecture::Gemma2,
        head_dim: 24,
        norms: NormPlacement::Around,
        norm_eps: 1e-6,
        norm_offset: 1.0,
        activation: Activation::GeluTanh,
        rope: Rope::new(1e4, 24),
        sliding_window: window([true, false, true]),
        attention_scale: 24f64.sqrt().recip(),
        attention_soft_cap: Some(3.0),
        embedding_scale: 8.0,
        logit_soft_cap: Some(5.0),
        tied_embeddings: true,
        ..plain()
    };
    let qwen3 = DecoderConfig {
        architecture: Architecture::Qwen3,
        head_dim: 24,
        norm_eps: 1e-6,
        qk_norm: Some(QkNorm::PerHead),
        rope: Rope::new(1e6, 24),
        attention_scale: 24f64.sqrt().recip(),
        tied_embeddings: true,
        ..plain()
    };
    let gemma3 = DecoderConfig {
        architecture: Architecture::Gemma3,
        qk_norm: Some(QkNorm::PerHead),
        rope: Rope::new(1e6, 24).with_scaling(RopeScaling::Linear { factor: 8.0 }),
        local_rope: Some(Rope::new(1e4, 24)),
        sliding_window: window([true, true, false]),
        attention_soft_cap: None,
        logit_soft_cap: None,
        ..gemma2.clone()
    };
    let olmo2 = DecoderConfig {
        architecture: Architecture::Olmo2,
        norms: NormPlacement::After,
        norm_eps: 1e-6,
        qk_norm: Some(QkNorm::WholeProjection),
        rope: Rope::new(5e5, 16),
        ..plain()
    };
    let granite = DecoderConfig {
        architecture: Architecture::Granite,
        attention_scale: 0.375,
        embedding_scale: 3.0,
        residual_scale: 0.7,
        logit_scale: 1.0 / 1.5,
        tied_embeddings: true,
        ..plain()
    };
    let llama3 = DecoderConfig { rope: Rope::new(1e4, 16).with_scaling(llama3), tied_embeddings: true, ..plain() };
    let llama_bias = DecoderConfig {
        head_dim: 24,
        rope: Rope::new(1e4, 24),
        attention_bias: AttentionBias::new(true, true),
        mlp_bias: true,
        attention_scale: 24f64.sqrt().recip(),
        ..plain()
    };

    let rope = |theta, scaling| Rope::new(theta, 16).with_scaling(scaling);
    let linear = |factor| RopeScaling::Linear { factor };
    let other_scale = 60f64.sqrt().recip();
    let variants = [
        ("arch-mistral.full-attention", DecoderConfig { sliding_window: None, ..mistral.clone() }),
        (
            "arch-qwen2.max_window_layers1",
            DecoderConfig { sliding_window: window([false, true, true]), ..qwen2.clone() },
        ),
        ("arch-qwen2.linear-rope", DecoderConfig { rope: rope(1e6, linear(3.0)), ..qwen2.clone() }),
        (
            "arch-qwen3.max_window_layers1",
            DecoderConfig { sliding_window: window([false, true, true]), ..qwen3.clone() },
        ),
        (
            "arch-qwen3.yarn",
            DecoderConfig { rope: Rope::new(1e6, 24).with_scaling(yarn(16.0, 2.0, Some(1.2))), ..qwen3.clone() },
        ),
        ("arch-gemma2.query_pre_attn_scalar60", DecoderConfig { attention_scale: other_scale, ..gemma2.clone() }),
        ("arch-gemma3.query_pre_attn_scalar60", DecoderConfig { attention_scale: other_scale, ..gemma3.clone() }),
        ("arch-gemma3.final-softcap", DecoderConfig { logit_soft_cap: Some(5.0), ..gemma3.clone() }),
        ("arch-phi3.window8", DecoderConfig { sliding_window: window([true; 3]), ..phi3.clone() }),
        ("arch-phi3.longrope", DecoderConfig { rope: rope(1e4, longrope), ..phi3.clone() }),
        ("arch-phi3.partial-rotary0.75", DecoderConfig { rope: Rope::new(1e4, 12), ..phi3.clone() }),
        ("arch-olmo2.linear-rope", DecoderConfig { rope: rope(5e5, linear(2.5)), ..olmo2.clone() }),
    ];
    let bases = [
        ("arch-llama3rope", llama3),
        ("arch-llama-bias", llama_bias),
        ("arch-mistral", mistral),
        ("arch-qwen2", qwen2),
        ("arch-qwen3", qwen3),
        ("arch-gemma2", gemma2),
        ("arch-gemma3", gemma3),
        ("arch-phi3", phi3),
        ("arch-granite", granite),
        ("arch-olmo2", olmo2),
    ];
    let bases = bases.map(|(name, decoder)| (format!("{name}/config.json"), decoder));
    let variants = variants.map(|(name, decoder)| (format!("variants/{name}.config.json"), decoder));
    bases.into_iter().chain(variants).collect()
}

#[test]
fn every_fixture_is_described_as_it_was_made() {
    for (path, expected) in fixtures() {
        assert_eq!(read(&json_of(&path)), expected, "{path}");
    }
}

#[test]
fn either_form_of_config_json_describes_the_same_model() {
    let old = [
        "torch_dtype",
        "rope_theta",
        "rope_scaling",
        "rope_local_base_freq",
        "sliding_window_pattern",
        "partial_rotary_factor",
    ];
    let new = ["dtype", "rope_parameters", "layer_types", "_sliding_window_pattern"];
    for (path, expected) in fixtures() {
        for fields in [&old[..], &new] {
            let mut config = json_of(&path);
            config.as_object_mut().unwrap().retain(|name, _| !fields.contains(&name.as_str()));
            assert_eq!(read(&config), expected, "{path} without {fields:?}");
        }
    }
}

#[test]
fn the_tensors_of_a_description_are_those_of_its_checkpoint() {
    for (path, decoder) in fixtures() {
        let Some(folder) = path.strip_suffix("/config.json") else { continue };
        let file = fs::read(format!("{MODELS}{folder}/model.safetensors")).unwrap();
        let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let header: BTreeMap<String, Value> = serde_json::from_slice(&file[8..8 + length]).unwrap();
        let stored: BTreeMap<_, _> = header
            .into_iter()
            .filter(|(name, _)| name != "__metadata__")
            .map(|(name, tensor)| (name, serde_json::from_value(tensor["shape"].clone()).unwrap()))
            .collect();
        let described = decoder.base_tensors(Layout::HuggingFace);
        assert_eq!(described.len(), stored.len(), "{folder} has a name twice, or another number");
        let described: BTreeMap<String, Vec<usize>> = described.into_iter().map(|t| (t.name, t.shape)).collect();
        assert_eq!(described, stored, "{folder}");
    }
}

#[test]
fn every_config_among_the_variants_is_tested() {
    let mut found: Vec<_> = fs::read_dir(format!("{MODELS}variants"))
        .unwrap()
        .map(|entry| format!("variants/{}", entry.unwrap().file_name().to_str().unwrap()))
        .collect();
    found.sort();
    let mut tested: Vec<_> =
        fixtures().into_iter().map(|(path, _)| path).filter(|p| p.starts_with("variants")).collect();
    tested.sort();
    assert_eq!(tested, found);
}

#[test]
fn architectures_that_are_not_described_are_refused_by_name() {
    for name in ["mixtral", "olmo", "phi", "stablelm", "starcoder2"] {
        let config = json_of(&format!("arch-{name}/config.json"));
        let message = DecoderConfig::from_config("m", &config).unwrap_err().to_string();
        assert!(message.contains(&format!("model_type is \"{name}\"")), "{message}");
    }
}
