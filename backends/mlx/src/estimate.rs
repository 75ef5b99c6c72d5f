//! How much memory a model takes with MLX, by part.

use std::collections::HashMap;

use llm_local_backend_common::decoder::{AROUND, STACKED, text_bytes, window};
use llm_local_core::{DeviceKind, Encoding, FloatType, MemoryEstimate, ModelInfo, TensorEntry};

use crate::{decoder::UNPACKED_FROM, load::prefill_chunk, support::Supported};

/// Bytes of `info` at a context of `context` tokens, by part.
pub(crate) fn estimate(s: &Supported, info: &ModelInfo, context: usize) -> MemoryEstimate {
    let entries: HashMap<&str, &TensorEntry> = info.tensors.iter().map(|t| (&*t.name, t)).collect();
    let chunk = prefill_chunk(s.device.kind).min(context);
    MemoryEstimate::new(weights(s, &entries), kv_cache(s, chunk, context))
        .with_text(text_bytes(info, s.decoder.vocab_size))
        .with_working(working(s, chunk as u64, context as u64) + unpacked(s, &entries, chunk))
        .with_load_peak(load_peak(s, &entries))
}

/// Bytes of the weights as the decoder holds them.
fn weights(s: &Supported, entries: &HashMap<&str, &TensorEntry>) -> u64 {
    let tensors = s.decoder.base_tensors(s.layout);
    tensors.iter().filter_map(|t| entries.get(&*t.name)).map(|t| held(s, t)).fold(0, u64::saturating_add)
}

fn elements(t: &TensorEntry) -> u64 {
    t.elements().unwrap_or(usize::MAX) as u64
}

/// Bytes that the decoder holds for `t`, with its scales and biases.
fn held(s: &Supported, t: &TensorEntry) -> u64 {
    let float = s.dtype.size() as u64;
    match t.encoding {
        Encoding::MlxAffine { group_size, .. } => {
            let packed = t.stored_bytes().unwrap_or(usize::MAX) as u64;
            packed.saturating_add(elements(t) / u64::from(group_size).max(1) * 2 * float)
        }
        _ => elements(t).saturating_mul(float),
    }
}

/// Bytes of the KV cache of one sequence that fills the context; a window keeps less.
fn kv_cache(s: &Supported, chunk: usize, context: usize) -> u64 {
    let rows = |layer| window::most_rows(layer, chunk, context) as u64;
    window::of_layers(&s.decoder).into_iter().map(|layer| kv_row(s).saturating_mul(rows(layer))).sum()
}

/// Bytes of keys and values of one position of one layer.
fn kv_row(s: &Supported) -> u64 {
    let c = &s.decoder;
    2 * (c.kv_heads * s.kv.head_bytes(c.head_dim, s.dtype.size())) as u64
}

/// Bytes that a load takes at most beside its result: a tensor that is converted, beside what becomes of it; or the parts of a
/// matrix of several, which the allocator keeps for those of the next layer. What a source needs to compute what it gives is
/// not known here.
fn load_peak(s: &Supported, entries: &HashMap<&str, &TensorEntry>) -> u64 {
    let mut converted = 0;
    let mut parts: HashMap<usize, u64> = HashMap::new();
    for t in s.decoder.base_tensors(s.layout).into_iter().filter(|t| t.shape.len() > 1) {
        let Some(entry) = entries.get(&*t.name) else { continue };
        if matches!(entry.encoding, Encoding::Float(float) if float != s.dtype) {
            converted = converted.max(held(s, entry));
        }
        if STACKED.iter().any(|roles| roles.contains(&t.role)) {
            *parts.entry(t.layer).or_default() += held(s, entry);
        }
    }
    parts.into_values().max().unwrap_or(0).max(converted)
}

/// Bytes of the floats that the largest matrix of integers is unpacked to in a step of `chunk` tokens (`decoder/linear.rs`). The
/// head and the embedding are not: a step takes few rows of them.
fn unpacked(s: &Supported, entries: &HashMap<&str, &TensorEntry>, chunk: usize) -> u64 {
    if UNPACKED_FROM.is_none_or(|rows| chunk < rows) {
        return 0;
    }
    let mut matrices: HashMap<_, u64> = HashMap::new();
    for t in s.decoder.base_tensors(s.layout).into_iter().filter(|t| !AROUND.contains(&t.role)) {
        let Some(entry) = entries.get(&*t.name).filter(|t| matches!(t.encoding, Encoding::MlxAffine { .. })) else {
            continue;
        };
        let first = STACKED.iter().find(|roles| roles.contains(&t.role)).map_or(t.role, |roles| roles[0]);
        *matrices.entry((first, t.layer)).or_default() += elements(entry).saturating_mul(s.dtype.size() as u64);
    }
    matrices.into_values().max().unwrap_or(0)
}

/// What one step of `chunk` tokens takes at the end of the context, by its larger intermediate tensors that are there at a
/// time (`decoder/attention.rs`, `decoder/layer.rs`).
fn working(s: &Supported, chunk: u64, context: u64) -> u64 {
    let c = &s.decoder;
    let (hidden, ffn, heads, kv_heads, width) =
        (c.hidden_size as u64, c.intermediate_size as u64, c.heads as u64, c.kv_heads as u64, c.head_dim as u64);
    let size = s.dtype.size() as u64;
    let kernels = s.device.kind != DeviceKind::Cpu && c.attention_soft_cap.is_none();
    // Made in f32, and then in the type of the activations; of full attention, and of windows.
    let kinds = if c.sliding_window.is_some() { 2 } else { 1 };
    let masks = kinds * chunk * context * if s.dtype == FloatType::F32 { 4 } else { 4 + size };
    // MLX's kernel keeps no scores.
    let scores = match (kernels, c.attention_soft_cap) {
        (true, _) => 0,
        (false, None) => 3,
        (false, Some(_)) => 4,
    };
    let attention = scores * heads * chunk * context * size + chunk * (3 * heads + 2 * kv_heads) * width * size;
    let mlp = chunk * 5 * ffn * size;
    let stream = 3 * chunk * hidden * size;
    // A layer's cache beside the larger one that it moves to.
    let moved = kv_row(s) * context;
    let logits = 2 * c.vocab_size as u64 * 4;
    [masks, attention.max(mlp), stream, moved, logits].into_iter().fold(0, u64::saturating_add)
}
