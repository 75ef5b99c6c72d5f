//! config.json of published checkpoints, field by field as the Hugging Face hub has them; only the factors of LongRoPE are
//! made up. What is refused must not be one of them.

use std::{collections::BTreeMap, fs};

use super::*;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/model/tests/published");

fn published() -> BTreeMap<String, Value> {
    fs::read_dir(FOLDER)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            (path.file_stem().unwrap().to_str().unwrap().to_owned(), config)
        })
        .collect()
}

#[test]
fn configs_of_published_checkpoints_are_read() {
    // Layers, heads, key-value heads, their width, whether the head is tied, window and on how many layers, rope.
    let table = [
        ("deepseek-r1-distill-llama-8b", (32, 32, 8, 128, false), None, "Llama3"),
        ("deepseek-r1-distill-qwen-1.5b", (28, 12, 2, 128, false), None, "None"),
        ("gemma-1.1-7b-it", (28, 16, 16, 256, true), None, "None"),
        ("gemma-2-2b-it", (26, 8, 4, 256, true), Some((4096, 13)), "None"),
        ("gemma-2-9b", (42, 16, 8, 256, true), Some((4096, 21)), "None"),
        ("gemma-2b", (18, 8, 1, 256, true), None, "None"),
        ("gemma-3-1b-it", (26, 4, 1, 256, true), Some((512, 22)), "None"),
        ("gemma-3-270m", (18, 4, 1, 256, true), Some((512, 15)), "None"),
        ("granite-3.3-2b-instruct", (40, 32, 8, 64, true), None, "None"),
        ("llama-1-7b", (32, 32, 32, 128, false), None, "None"),
        ("llama-2-7b-chat", (32, 32, 32, 128, false), None, "None"),
        ("llama-3-8b", (32, 32, 8, 128, false), None, "None"),
        ("llama-3.2-1b-instruct", (16, 32, 8, 64, true), None, "Llama3"),
        ("llama-3.2-1b-instruct.transformers-5", (16, 32, 8, 64, true), None, "Llama3"),
        ("llama-3.2-1b-instruct.unsloth", (16, 32, 8, 64, true), None, "Llama3"),
        ("mistral-7b-instruct-v0.2", (32, 32, 8, 128, false), None, "None"),
        ("mistral-7b-instruct-v0.3", (32, 32, 8, 128, false), None, "None"),
        ("mistral-7b-v0.1", (32, 32, 8, 128, false), Some((4096, 32)), "None"),
        ("mistral-7b.flash-attention", (32, 32, 8, 128, false), Some((4096, 32)), "None"),
        ("olmo-2-0425-1b", (16, 16, 16, 128, false), None, "None"),
        ("phi-3-mini-128k-instruct", (32, 32, 32, 96, false), Some((262_144, 32)), "LongRope"),
        ("phi-3-mini-4k-instruct", (32, 32, 32, 96, false), Some((2047, 32)), "None"),
        ("phi-3.5-mini-instruct", (32, 32, 32, 96, false), Some((262_144, 32)), "LongRope"),
        ("phi-4", (40, 40, 10, 128, false), None, "None"),
        ("phi-4-mini-instruct", (32, 24, 8, 128, true), Some((262_144, 32)), "LongRope"),
        ("qwen2-7b-instruct", (28, 28, 4, 128, false), None, "None"),
        ("qwen2.5-0.5b", (24, 14, 2, 64, true), None, "None"),
        ("qwen2.5-0.5b.transformers-5", (24, 14, 2, 64, true), None, "None"),
        ("qwen2.5-7b-instruct.yarn", (28, 28, 4, 128, false), None, "Yarn"),
        ("qwen3-0.6b", (28, 16, 8, 128, true), None, "None"),
        ("smollm-135m", (30, 9, 3, 64, true), None, "None"),
        ("smollm2-135m-instruct", (30, 9, 3, 64, true), None, "None"),
        ("tinyllama-1.1b-chat", (22, 32, 4, 64, false), None, "None"),
    ];
    let mut configs = published();
    for (name, sizes, window, scaling) in table {
        let config = configs.remove(name).unwrap_or_else(|| panic!("there is no {name}.json"));
        let d = DecoderConfig::from_config(name, &config).unwrap();
        assert_eq!((d.layers, d.heads, d.kv_heads, d.head_dim, d.tied_embeddings), sizes, "{name}");
        let windowed = |w: SlidingWindow| (w.size, w.layers.iter().filter(|on| **on).count());
        assert_eq!(d.sliding_window.map(windowed), window, "{name}");
        assert!(format!("{:?}", d.rope.scaling).starts_with(scaling), "{name}: {:?}", d.rope.scaling);
    }
    assert!(configs.is_empty(), "not in the table: {:?}", configs.keys());
}

#[test]
fn the_forms_of_transformers_4_and_5_are_the_same_published_model() {
    let configs = published();
    let of = |name: &str| read(&configs[name]);
    assert_eq!(of("llama-3.2-1b-instruct"), of("llama-3.2-1b-instruct.transformers-5"));
    assert_eq!(of("llama-3.2-1b-instruct"), of("llama-3.2-1b-instruct.unsloth"));
    assert_eq!(of("qwen2.5-0.5b"), of("qwen2.5-0.5b.transformers-5"));
}

#[test]
fn one_field_more_is_refused_in_every_published_config() {
    for (name, mut config) in published() {
        config["attn_logit_cap"] = json!(50);
        let message = DecoderConfig::from_config("m", &config).expect_err(&name).to_string();
        assert!(message.contains("config.json: attn_logit_cap is 50; expected no such field"), "{name}: {message}");
    }
}
