//! Both readers of [`DecoderConfig`]: what they read, and what they refuse.

mod architectures;
mod fixtures;
mod frequencies;
mod gguf;
mod json;
mod mlx;
mod names;
mod overlooked;
mod published;
mod validate;

use serde_json::{Value, json};

use super::*;

/// A small Llama, as config.json has it.
fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "vocab_size": 896, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 512,
        "tie_word_embeddings": true, "rope_theta": 10000.0, "rope_scaling": null, "head_dim": null,
    })
}

fn read(config: &Value) -> DecoderConfig {
    DecoderConfig::from_config("m", config).unwrap()
}
