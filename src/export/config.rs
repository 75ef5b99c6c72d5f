//! config.json, with what a merge changes.

use std::collections::BTreeMap;

use llm_local_core::{Encoding, FloatType, TensorEntry};
use serde_json::{Value, json};

/// The fields of a config that say how weights are quantized: transformers' and mlx-lm's.
pub(super) const QUANTIZATION: [&str; 2] = ["quantization_config", "quantization"];

/// The fields that say what floats a model is stored in: the name it had, which older readers know, and the one it has.
const DTYPE: [&str; 2] = ["torch_dtype", "dtype"];

/// The text of a config.json as `config`, for tensors whose floats are of type `float`, or else as `entries` say. What it
/// says of their type already stays where they are as they were.
pub(super) fn text(config: &Value, float: Option<FloatType>, entries: &[TensorEntry]) -> String {
    let mut config = config.clone();
    if let Some(fields) = config.as_object_mut() {
        QUANTIZATION.iter().for_each(|key| drop(fields.remove(*key)));
        let said: Vec<_> = DTYPE.iter().filter(|key| fields.get(**key).is_some_and(|value| !value.is_null())).collect();
        match (float, most(entries)) {
            (None, _) if !said.is_empty() => {}
            (Some(float), _) | (None, Some(float)) => {
                let keys = if said.is_empty() { vec![&DTYPE[0]] } else { said };
                for key in keys {
                    fields.insert((*key).to_owned(), json!(torch_name(float)));
                }
            }
            (None, None) => {}
        }
    }
    // A value has no key that is no text.
    format!("{config:#}\n")
}

/// The float type that most values are of.
fn most(entries: &[TensorEntry]) -> Option<FloatType> {
    let mut counts = BTreeMap::<_, (usize, FloatType)>::new();
    for entry in entries {
        if let (Encoding::Float(float), Some(elements)) = (entry.encoding, entry.elements()) {
            counts.entry(torch_name(float)).or_insert((0, float)).0 += elements;
        }
    }
    counts.into_values().max_by_key(|(count, _)| *count).map(|(_, float)| float)
}

/// torch's name of a float type.
fn torch_name(float: FloatType) -> &'static str {
    match float {
        FloatType::F64 => "float64",
        FloatType::F16 => "float16",
        FloatType::Bf16 => "bfloat16",
        _ => "float32",
    }
}
