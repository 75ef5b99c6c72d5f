//! How much memory a model takes with candle, by part.

use std::collections::HashSet;

use llm_local_core::{
    DeviceKind, Encoding, GgmlType, MemoryEstimate, TensorEntry,
    model::{DecoderConfig, Layout},
};

use crate::{load::prefill_chunk, support::Supported};

const F32: u64 = 4;

/// Bytes of weights, KV cache, scratch and load peak at a context of `context` tokens.
pub(crate) fn estimate(s: &Supported, tensors: &[TensorEntry], context: usize) -> MemoryEstimate {
    // Beside what it is held as: the f32 it was computed in; for GGUF the bytes as read and once more as blocks.
    let peak = |t| if s.layout == Layout::Gguf { 2 * stored_as_read(t) } else { elements(t) * F32 };
    let load_peak = used(s, tensors).map(peak).max().unwrap_or(0);
    MemoryEstimate::new(weights(s, tensors), s.decoder.kv_bytes_per_token(s.dtype.size()) * context as u64)
        .with_working(working(
            &s.decoder,
            s.dtype.size() as u64,
            prefill_chunk(s.layout, s.device_info.kind) as u64,
            context as u64,
        ))
        .with_load_peak(load_peak)
}

/// Bytes of the weights as candle holds them.
pub(crate) fn weights(s: &Supported, tensors: &[TensorEntry]) -> u64 {
    let held = |t| if s.layout == Layout::Gguf { held_quantized(t, s) } else { elements(t) * s.dtype.size() as u64 };
    used(s, tensors).map(held).sum()
}

/// The tensors that the model is made of.
fn used<'a>(s: &Supported, tensors: &'a [TensorEntry]) -> impl Iterator<Item = &'a TensorEntry> {
    let names: HashSet<String> = s.decoder.base_tensors(s.layout).into_iter().map(|t| t.name).collect();
    tensors.iter().filter(move |t| names.contains(&t.name))
}

fn elements(t: &TensorEntry) -> u64 {
    t.elements().unwrap_or(usize::MAX) as u64
}

/// Bytes that `quantized_llama` is given: blocks as stored, floats as f32.
fn stored_as_read(t: &TensorEntry) -> u64 {
    match t.encoding {
        Encoding::Ggml(_) => t.stored_bytes().unwrap_or(usize::MAX) as u64,
        _ => elements(t) * F32,
    }
}

/// Bytes that `quantized_llama` holds. Floats become f32; so does the embedding, which a tied head needs as stored too.
fn held_quantized(t: &TensorEntry, s: &Supported) -> u64 {
    let matrix = match t.encoding {
        Encoding::Ggml(kind) => stored_as_read(t) + packed(t, kind, s.device_info.kind),
        _ => elements(t) * F32,
    };
    match (t.name == "token_embd.weight", s.decoder.tied_embeddings) {
        (false, _) => matrix,
        (true, false) => elements(t) * F32,
        (true, true) => elements(t) * F32 + matrix,
    }
}

/// Bytes of the second copy of some block formats that candle keeps on the CPU once they are used, rearranged for its
/// kernels (`candle_core::quantized::repack`).
fn packed(t: &TensorEntry, kind: GgmlType, device: DeviceKind) -> u64 {
    let [rows, columns] = t.shape[..] else { return 0 };
    if device != DeviceKind::Cpu {
        return 0;
    }
    let stored = stored_as_read(t);
    if cfg!(target_arch = "x86_64") {
        if !rows.is_multiple_of(16) || !columns.is_multiple_of(256) {
            return 0;
        }
        // Bytes per 16 × 256 elements: `TileQ4K` (and `TileQ4KAmx` where there is AMX), `TileQ6K`, `TileQ8_0`.
        match kind {
            GgmlType::Q4_K => elements(t) / 4096 * if amx() { 3072 + 5120 } else { 3072 },
            GgmlType::Q6_K => elements(t) / 4096 * 5120,
            GgmlType::Q8_0 => stored,
            _ => 0,
        }
    } else if cfg!(target_arch = "aarch64") {
        match kind {
            GgmlType::Q4_0 | GgmlType::Q8_0 => stored,
            GgmlType::Q4_K | GgmlType::Q5_K | GgmlType::Q6_K => stored / 2 * 3, // unpacked scales: at most so much
            _ => 0,
        }
    } else {
        0
    }
}

/// Whether the CPU has int8 matrix tiles (CPUID leaf 7, EDX bits 24 and 25).
fn amx() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let edx = std::arch::x86_64::__cpuid_count(7, 0).edx;
        edx & (1 << 24) != 0 && edx & (1 << 25) != 0
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// What one step of `chunk` tokens takes at the end of the context, by the intermediate tensors of candle-transformers'
/// attention and feed-forward; the rotary table, and the masks that it keeps.
fn working(c: &DecoderConfig, dtype: u64, chunk: u64, context: u64) -> u64 {
    let (hidden, ffn, heads, kv_heads) =
        (c.hidden_size as u64, c.intermediate_size as u64, c.heads as u64, c.kv_heads as u64);
    let head_dim = c.head_dim as u64;
    let chunk = chunk.min(context);
    let rope = 2 * context * head_dim / 2 * F32;
    let masks = context * (context + chunk) / 2; // one byte per query and key, kept for every chunk
    let cat = 2 * context * kv_heads * head_dim * dtype; // the cache of one layer, old beside new
    let repeated = 2 * context * heads * head_dim * F32; // keys and values for every head
    let scores = 3 * heads * chunk * context * F32; // scores, masked, softmax
    let residual = chunk * (6 * hidden + 3 * ffn) * F32;
    let logits = 2 * c.vocab_size as u64 * F32;
    rope + masks + cat + repeated + scores.max(residual) + logits
}
