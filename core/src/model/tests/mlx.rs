//! What config.json says of weights that MLX quantized.

use serde_json::{Value, json};

use super::{MlxQuantization, config, json::refusal, read};
use crate::Encoding;

fn with(field: &str, value: Value) -> Value {
    let mut config = config();
    config[field] = value;
    config
}

fn affine(bits: u8, group_size: u32) -> Option<Encoding> {
    Some(Encoding::MlxAffine { bits, group_size })
}

#[test]
fn affine_weights_of_mlx_are_a_matter_of_the_tensors_and_not_of_the_architecture() {
    let sizes = json!({ "group_size": 64, "bits": 4, "mode": "affine" });
    let mut both = with("quantization", sizes.clone());
    both["quantization_config"] = sizes;
    for config in [
        both.clone(),
        with("quantization", json!({ "group_size": 64, "bits": 4 })),
        with("quantization_config", json!({ "group_size": 64, "bits": 4, "mode": null })),
    ] {
        let found = MlxQuantization::from_config(&config).unwrap().unwrap();
        assert_eq!(found.of("model.layers.0.mlp.up_proj"), affine(4, 64));
        assert_eq!(found.named().count(), 0);
        assert_eq!(read(&config), read(&super::config()));
    }
    assert_eq!(MlxQuantization::from_config(&config()), Ok(None));
    assert_eq!(MlxQuantization::from_config(&with("quantization", Value::Null)), Ok(None));
    both["quantization_config"]["bits"] = json!(8);
    assert!(refusal(&both).contains("quantization and quantization_config say different things"));
}

#[test]
fn single_modules_may_have_other_sizes_or_be_left_as_they_are() {
    let found = MlxQuantization::from_config(&with(
        "quantization",
        json!({
            "group_size": 64, "bits": 4, "a.up": { "group_size": 32, "bits": 8 }, "a.down": false, "a.gate": true,
            "a.q": null,
        }),
    ));
    let found = found.unwrap().unwrap();
    assert_eq!(found.of("a.up"), affine(8, 32));
    assert_eq!(found.of("a.down"), None);
    assert_eq!(found.of("a.gate"), affine(4, 64));
    assert_eq!(found.of("a.q"), affine(4, 64));
    let named: Vec<_> = found.named().collect();
    assert_eq!(named, [("a.down", None), ("a.gate", affine(4, 64)), ("a.up", affine(8, 32))]);
}

#[test]
fn everything_else_is_refused_with_what_it_says() {
    let table: &[(Value, &[&str])] = &[
        (json!({ "group_size": 32, "bits": 4, "mode": "mxfp4" }), &["quantized by MLX", "mode is \"mxfp4\"", "affine"]),
        (json!({ "group_size": 16, "bits": 4, "mode": "nvfp4" }), &["mode is \"nvfp4\""]),
        (json!({ "group_size": 64, "bits": 7 }), &["bits is 7; expected one of 2, 3, 4, 5, 6, 8"]),
        (json!({ "group_size": 48, "bits": 4 }), &["group_size is 48; expected one of 32, 64, 128"]),
        (json!({ "group_size": 64 }), &["quantized by MLX", "bits is missing"]),
        (json!({ "group_size": 64, "bits": 4, "a.up": { "bits": 8 } }), &["a.up.group_size is missing"]),
        (
            json!({ "group_size": 64, "bits": 4, "a.up": { "bits": 4, "group_size": 32, "mode": "mxfp8" } }),
            &["a.up.mode is \"mxfp8\""],
        ),
        (json!({ "group_size": 64, "bits": 4, "a.up": 8 }), &["a.up is 8; expected true, false or sizes"]),
        (json!({ "quant_method": "awq", "group_size": 64, "bits": 4 }), &["quantized by awq"]),
        (json!({ "quant_method": "fp8" }), &["quantized by fp8"]),
        (json!(4), &["quantized by MLX (quantization is 4)"]),
    ];
    for (value, expected) in table {
        let message = refusal(&with("quantization", value.clone()));
        for part in expected.iter().chain(&["dense safetensors checkpoint", "GGUF"]) {
            assert!(message.contains(part), "{value}\nlacks {part:?}: {message}");
        }
    }
}
