//! Tensor headers against what candle reads.

use std::collections::HashMap;
use std::collections::HashSet;

use candle_core::quantized::GgmlDType;
use llm_local_core::{
    Encoding, FloatType, GgmlType, TensorEntry,
    model::{BaseTensor, DecoderConfig, Layout, RopeScaling},
};

use crate::tied::TIED_HEAD;

/// Checks that every tensor of the model is there, in the right shape and in an encoding that candle reads, and that
/// no other tensor waits to be ignored.
pub(crate) fn check(c: &DecoderConfig, layout: Layout, tensors: &[TensorEntry]) -> Result<(), String> {
    if let Some(packed) = tensors.iter().find(|t| matches!(t.encoding, Encoding::MlxAffine { .. })) {
        return Err(format!(
            "the weights are quantized by MLX (the tensor {} is stored as {}), which candle does not compute with; use a \
             backend that runs MLX, the model's dense safetensors checkpoint (bf16, f16 or f32), or a GGUF file of it",
            packed.name, packed.encoding
        ));
    }
    let field = if layout == Layout::Gguf { "block_count" } else { "num_hidden_layers" };
    let (others, per_layer) = counts(c, layout);
    check_count(&format!("{field} is {}", c.layers), c.layers, per_layer, others, tensors.len())?;
    let mut left: HashMap<&str, &TensorEntry> = tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    for BaseTensor { name, shape, .. } in c.base_tensors(layout) {
        let Some(entry) = left.remove(name.as_str()) else {
            let (architecture, layers) = (c.architecture.name(), c.layers);
            return Err(format!("the tensor {name} is missing; a {architecture} with {layers} layers has it"));
        };
        check_one(entry, &shape, layout)?;
    }
    if let Some(head) = left.remove(TIED_HEAD).filter(|_| layout == Layout::HuggingFace && c.tied_embeddings) {
        check_one(head, &[c.vocab_size, c.hidden_size], layout)?;
    }
    let divisors = divisors(c);
    for name in &divisors {
        let Some(entry) = left.remove(name) else {
            return Err(format!("the tensor {name} is missing; it scales the rotary frequencies"));
        };
        if !matches!(entry.encoding, Encoding::Float(_)) {
            return Err(format!("the tensor {name} is stored as {}; expected floats", entry.encoding));
        }
    }
    // Old checkpoints store the rotary frequencies, which follow from the config.
    let mut extra: Vec<_> = left.into_keys().filter(|name| !name.ends_with(".rotary_emb.inv_freq")).collect();
    extra.sort_unstable();
    match extra.first() {
        Some(name) => {
            Err(format!("the tensor {name} is no part of this {}; it would be ignored", c.architecture.name()))
        }
        None => Ok(()),
    }
}

/// Refuses a number of `layers` that a checkpoint of `found` tensors cannot hold, each layer having `per_layer` and no
/// layer `others`: before they are listed, because a config of a few bytes could ask for millions. While not more than
/// a layer's tensors are missing, there is a better answer, which is the name of one. `fields` says what was read.
pub(crate) fn check_count(
    fields: &str,
    layers: usize,
    per_layer: usize,
    others: usize,
    found: usize,
) -> Result<(), String> {
    let expected = layers.saturating_mul(per_layer).saturating_add(others);
    if expected <= found.saturating_add(per_layer) {
        return Ok(());
    }
    Err(format!("{fields}, which makes at least {expected} tensors, but the checkpoint has {found}"))
}

/// How many tensors are of no layer, and how many of each.
fn counts(c: &DecoderConfig, layout: Layout) -> (usize, usize) {
    let mut small = c.clone();
    small.layers = 1;
    let all = small.base_tensors(layout).len();
    small.layers = 0;
    let others = small.base_tensors(layout).len();
    (others, all - others)
}

/// The tensors that scale rotary frequencies.
fn divisors(c: &DecoderConfig) -> HashSet<&str> {
    let mut names = HashSet::new();
    for rope in [Some(&c.rope), c.local_rope.as_ref()].into_iter().flatten() {
        match &rope.scaling {
            RopeScaling::Divisors { tensor } => names.extend([tensor.as_str()]),
            RopeScaling::LongRopeTensors { short, long, .. } => names.extend([short.as_str(), long.as_str()]),
            _ => {}
        }
    }
    names
}

fn check_one(entry: &TensorEntry, shape: &[usize], layout: Layout) -> Result<(), String> {
    let name = &entry.name;
    if entry.shape != shape {
        return Err(format!("the tensor {name} has the shape {:?}; the config makes it {shape:?}", entry.shape));
    }
    let readable = match (layout, entry.encoding) {
        (Layout::Gguf, Encoding::Float(FloatType::F64)) => false,
        (_, Encoding::Float(_)) => true,
        (Layout::Gguf, Encoding::Ggml(t)) => ggml_dtype(t).is_some(),
        _ => false,
    };
    if !readable {
        let readable = match layout {
            Layout::Gguf => "f32, f16, bf16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K in GGUF",
            _ => "floats in safetensors",
        };
        return Err(format!("the tensor {name} is stored as {}; candle reads {readable}", entry.encoding));
    }
    match entry.stored_bytes() {
        Some(_) => Ok(()),
        None => Err(format!("the tensor {name} of shape {shape:?} is not whole blocks of {}", entry.encoding)),
    }
}

/// candle's name of a block format, where its GGUF loader has it (`qtensor_from_ggml`).
pub(crate) fn ggml_dtype(t: GgmlType) -> Option<GgmlDType> {
    Some(match t {
        GgmlType::Q4_0 => GgmlDType::Q4_0,
        GgmlType::Q4_1 => GgmlDType::Q4_1,
        GgmlType::Q5_0 => GgmlDType::Q5_0,
        GgmlType::Q5_1 => GgmlDType::Q5_1,
        GgmlType::Q8_0 => GgmlDType::Q8_0,
        GgmlType::Q2_K => GgmlDType::Q2K,
        GgmlType::Q3_K => GgmlDType::Q3K,
        GgmlType::Q4_K => GgmlDType::Q4K,
        GgmlType::Q5_K => GgmlDType::Q5K,
        GgmlType::Q6_K => GgmlDType::Q6K,
        _ => return None,
    })
}
