//! How much memory a model of candle-transformers takes, by part.

use llm_local_backend_common::decoder::text_bytes;
use llm_local_core::{DeviceKind, MemoryEstimate, ModelInfo};

use super::{check::Supported, description::Description};

const F32: u64 = 4;

/// Tokens of a prompt computed in one step, of a context of `context` tokens.
pub(super) fn prefill_chunk(d: &Description, device: DeviceKind, context: usize) -> usize {
    match (d.takes_chunks, device) {
        (false, _) => context,
        (true, DeviceKind::Cpu) => 256,
        (true, _) => 512,
    }
}

/// Bytes of `info` at a context of `context` tokens, by part.
pub(crate) fn estimate(s: &Supported, info: &ModelInfo, context: usize) -> MemoryEstimate {
    let (d, device) = (&s.description, s.device_info.kind);
    let bytes = |shape: &[usize]| shape.iter().fold(F32, |n, &d| n.saturating_mul(d as u64));
    let weights = d.tensors.iter().fold(0u64, |sum, (_, shape)| sum.saturating_add(bytes(shape)));
    // A tensor on its way to a device is on both sides.
    let load_peak = d.tensors.iter().map(|(_, shape)| bytes(shape)).max().unwrap_or(0);
    MemoryEstimate::new(weights, d.kv_bytes_per_token().saturating_mul(context as u64))
        .with_text(text_bytes(info, d.sizes.vocab))
        .with_working(working(d, prefill_chunk(d, device, context).min(context) as u64, context as u64))
        .with_load_peak(load_peak)
}

impl Description {
    /// Bytes of keys and values per token of context, over all layers.
    pub(super) fn kv_bytes_per_token(&self) -> u64 {
        let s = &self.sizes;
        [2, s.layers, s.kv_heads, s.head_dim].iter().fold(F32, |n, &d| n.saturating_mul(d as u64))
    }
}

/// What one step of `chunk` tokens takes at the end of the context: the intermediate tensors of attention and
/// feed-forward block, the mask and the rotary tables.
fn working(d: &Description, chunk: u64, context: u64) -> u64 {
    let s = &d.sizes;
    let product = |factors: &[u64]| factors.iter().fold(F32, |n, &f| n.saturating_mul(f));
    let (hidden, ffn, heads, kv_heads, head_dim) =
        (s.hidden as u64, s.ffn as u64, s.heads as u64, s.kv_heads as u64, s.head_dim as u64);
    let tables = product(&[2, context, head_dim, s.layers as u64]); // one pair per layer, with phi
    let mask = product(&[2, chunk, context]);
    let cat = product(&[2, context, kv_heads, head_dim]); // the cache of one layer, old beside new
    let repeated = product(&[4, context, heads, head_dim]); // keys and values for every head, once more contiguous
    let scores = product(&[4, heads, chunk, context]); // products, scaled, masked, softmax
    let residual = product(&[chunk, hidden.saturating_mul(6).saturating_add(ffn.saturating_mul(3))]);
    let logits = product(&[2, s.vocab as u64]);
    [tables, mask, cat, repeated, scores.max(residual), logits].iter().fold(0, |n, &part| n.saturating_add(part))
}
