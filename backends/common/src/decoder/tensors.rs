//! Tensor headers against what a backend reads.

use std::collections::{HashMap, HashSet};

use llm_local_core::{
    Encoding, TensorEntry,
    model::{BaseTensor, DecoderConfig, Layout, RopeScaling},
};

use super::TIED_HEAD;

/// What a backend reads, for [`check_tensors`].
#[derive(Debug, Clone, Copy)]
pub struct Readable {
    /// The backend's name, for messages.
    pub backend: &'static str,
    /// Whether it reads a tensor of a checkpoint of this layout in this encoding.
    pub reads: fn(Layout, Encoding) -> bool,
    /// What it reads of this layout, in words: "floats in safetensors".
    pub said: fn(Layout) -> &'static str,
}

/// Checks that every tensor of the model is there, in the right shape and in an encoding that the backend reads, and that
/// no other tensor waits to be ignored.
///
/// # Errors
/// The first tensor that is wrong, what it is and what was expected; without the model's id.
pub fn check_tensors(
    c: &DecoderConfig,
    layout: Layout,
    tensors: &[TensorEntry],
    readable: &Readable,
) -> Result<(), String> {
    let field = if layout == Layout::Gguf { "block_count" } else { "num_hidden_layers" };
    let (others, per_layer) = counts(c, layout);
    check_count(&format!("{field} is {}", c.layers), c.layers, per_layer, others, tensors.len())?;
    let mut left: HashMap<&str, &TensorEntry> = tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    for BaseTensor { name, shape, .. } in c.base_tensors(layout) {
        let Some(entry) = left.remove(name.as_str()) else {
            let (architecture, layers) = (c.architecture.name(), c.layers);
            return Err(format!("the tensor {name} is missing; a {architecture} with {layers} layers has it"));
        };
        check_one(entry, &shape, layout, readable)?;
        take_parts(entry, &mut left)?;
    }
    if let Some(head) = left.remove(TIED_HEAD).filter(|_| layout == Layout::HuggingFace && c.tied_embeddings) {
        check_one(head, &[c.vocab_size, c.hidden_size], layout, readable)?;
        take_parts(head, &mut left)?;
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

/// Refuses weights that MLX has packed, for a backend that reads none of them.
///
/// # Errors
/// The first such tensor, and where the model can be had that the backend runs.
pub fn check_not_packed(backend: &str, tensors: &[TensorEntry]) -> Result<(), String> {
    match tensors.iter().find(|t| matches!(t.encoding, Encoding::MlxAffine { .. })) {
        Some(packed) => Err(format!(
            "the weights are quantized by MLX (the tensor {} is stored as {}), which {backend} does not compute with; use a \
             backend that runs MLX, the model's dense safetensors checkpoint (bf16, f16 or f32), or a GGUF file of it",
            packed.name, packed.encoding
        )),
        None => Ok(()),
    }
}

/// Refuses a number of `layers` that a checkpoint of `found` tensors cannot hold, each layer having `per_layer` and no
/// layer `others`: before they are listed, because a config of a few bytes could ask for millions. While not more than
/// a layer's tensors are missing, there is a better answer, which is the name of one. `fields` says what was read.
///
/// # Errors
/// What was read, how many tensors it makes and how many there are.
pub fn check_count(fields: &str, layers: usize, per_layer: usize, others: usize, found: usize) -> Result<(), String> {
    let expected = layers.saturating_mul(per_layer).saturating_add(others);
    if expected <= found.saturating_add(per_layer) {
        return Ok(());
    }
    Err(format!("{fields}, which makes at least {expected} tensors, but the checkpoint has {found}"))
}

/// Takes what `entry` is packed with out of `left`. Its shape and type follow from the entry's, and were checked with it.
fn take_parts(entry: &TensorEntry, left: &mut HashMap<&str, &TensorEntry>) -> Result<(), String> {
    match entry.parts.iter().find(|part| left.remove(part.as_str()).is_none()) {
        Some(part) => Err(format!("the tensor {part} is missing; {} is packed with it", entry.name)),
        None => Ok(()),
    }
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

fn check_one(entry: &TensorEntry, shape: &[usize], layout: Layout, readable: &Readable) -> Result<(), String> {
    let name = &entry.name;
    if entry.shape != shape {
        return Err(format!("the tensor {name} has the shape {:?}; the config makes it {shape:?}", entry.shape));
    }
    if !(readable.reads)(layout, entry.encoding) {
        let (backend, said) = (readable.backend, (readable.said)(layout));
        return Err(format!("the tensor {name} is stored as {}; {backend} reads {said}", entry.encoding));
    }
    match entry.stored_bytes() {
        Some(_) => Ok(()),
        None => Err(format!("the tensor {name} of shape {shape:?} is not whole blocks of {}", entry.encoding)),
    }
}
