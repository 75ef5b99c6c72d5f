//! How much memory a model takes with candle, by part.

mod load_peak;

use std::collections::HashSet;

use llm_local_backend_common::decoder::{text_bytes, window};
use llm_local_core::{DeviceKind, Encoding, GgmlType, MemoryEstimate, ModelInfo, TensorEntry};

use self::load_peak::load_peak;

use crate::{
    decoder::{reading_threads, tile_bytes},
    load::prefill_chunk,
    support::{Held, Supported},
};

const F32: u64 = 4;

/// Bytes of `info` at a context of `context` tokens, by part.
pub(crate) fn estimate(s: &Supported, info: &ModelInfo, context: usize) -> MemoryEstimate {
    let (tensors, chunk) = (&*info.tensors, prefill_chunk(s.device_info.kind).min(context));
    MemoryEstimate::new(weights(s, tensors), kv_cache(s, chunk, context))
        .with_text(text_bytes(info, s.decoder.vocab_size))
        .with_working(working(s, chunk as u64, context as u64))
        .with_load_peak(load_peak(s, tensors, reading_threads(&s.device)))
}

/// Bytes of the weights as the decoder holds them.
pub(crate) fn weights(s: &Supported, tensors: &[TensorEntry]) -> u64 {
    used(s, tensors).map(|t| held(t, s)).sum()
}

/// Bytes of the KV cache of one sequence that fills the context; a window keeps less.
fn kv_cache(s: &Supported, chunk: usize, context: usize) -> u64 {
    let c = &s.decoder;
    let row = (c.kv_heads * c.head_dim * s.activations.size_in_bytes()) as u64;
    let rows = |layer| window::most_rows(layer, chunk, context) as u64;
    let kind = s.device_info.kind;
    // Keys and values.
    window::of_layers(c).into_iter().map(|layer| 2 * allocated(row.saturating_mul(rows(layer)), kind)).sum()
}

/// Bytes that a tensor of `bytes` takes which is made on the device: candle's buffers on Metal have sizes that are powers of
/// two, but for those that are made of data.
fn allocated(bytes: u64, device: DeviceKind) -> u64 {
    match device {
        DeviceKind::Metal => bytes.checked_next_power_of_two().unwrap_or(u64::MAX),
        _ => bytes,
    }
}

/// The tensors that the model is made of.
fn used<'a>(s: &Supported, tensors: &'a [TensorEntry]) -> impl Iterator<Item = &'a TensorEntry> {
    let names: HashSet<String> = s.decoder.base_tensors(s.layout).into_iter().map(|t| t.name).collect();
    tensors.iter().filter(move |t| names.contains(&t.name))
}

fn elements(t: &TensorEntry) -> u64 {
    t.elements().unwrap_or(usize::MAX) as u64
}

fn stored(t: &TensorEntry) -> u64 {
    t.stored_bytes().unwrap_or(usize::MAX) as u64
}

/// Bytes that the decoder holds for `t`.
fn held(t: &TensorEntry, s: &Supported) -> u64 {
    match (t.shape.len(), t.encoding, s.held(t)) {
        (2.., Encoding::Ggml(kind), _) => stored(t) + packed(t, kind, s.device_info.kind),
        (2.., _, Some(Held::Dense(float))) => elements(t) * float.size() as u64,
        // Norms and biases are in the type of the activations.
        _ => elements(t) * s.activations.size_in_bytes() as u64,
    }
}

/// Bytes of the second copy of some block formats that candle keeps on the CPU once they are used, rearranged for its
/// kernels (`candle_core::quantized::repack`).
fn packed(t: &TensorEntry, kind: GgmlType, device: DeviceKind) -> u64 {
    let [rows, columns] = t.shape[..] else { return 0 };
    if device != DeviceKind::Cpu {
        return 0;
    }
    let stored = stored(t);
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

/// What one step of `chunk` tokens takes at the end of the context, by its larger intermediate tensors that are there at a
/// time (`decoder/attention.rs`, `decoder/layer.rs`).
fn working(s: &Supported, chunk: u64, context: u64) -> u64 {
    let c = &s.decoder;
    let (hidden, ffn, heads, width) =
        (c.hidden_size as u64, c.intermediate_size as u64, c.heads as u64, c.head_dim as u64);
    let size = s.activations.size_in_bytes() as u64;
    // Made in f32, and then in the type of the activations; of full attention, and of windows.
    let kinds = if c.sliding_window.is_some() { 2 } else { 1 };
    let masks = kinds * chunk * context * if size == F32 { F32 } else { F32 + size };
    // Scores beside masked ones, or those beside the softmax; a cap takes its steps beside them. On the CPU one more: what was
    // freed is not always where the next can be (measured: 1.5 to 4 times in all, mostly below 3).
    let on_cpu = u64::from(s.device_info.kind == DeviceKind::Cpu);
    let scores = on_cpu + if c.attention_soft_cap.is_some() { 4 } else { 2 };
    let attention = scores * heads * chunk * context * size + chunk * (3 * heads * width + 2 * hidden) * size;
    // Both projections in one, and apart.
    let mlp = chunk * (4 * ffn + 3 * hidden) * size;
    // A layer's cache beside the larger one that it moves to.
    let moved = 2 * context * (c.kv_heads * c.head_dim) as u64 * size;
    let logits = 2 * c.vocab_size as u64 * F32;
    let tensors = masks + attention.max(mlp) + moved + logits;
    match s.device_info.kind {
        DeviceKind::Cpu => tensors + tile_bytes(c.hidden_size.max(c.intermediate_size).max(c.heads * c.head_dim)),
        // Each of them may be a little more than a power of two (`allocated`).
        DeviceKind::Metal => 2 * tensors,
        _ => tensors,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use llm_local_core::{ComputeDtype, FloatType, LoadOptions, ModelFormat, model::Layout};
    use serde_json::json;

    use super::*;
    use crate::{device::Devices, support};

    /// Bytes of a step of 16 tokens at the end of a context of 100, in f32 on the CPU, of a layer of 8 heads of which 2 are of
    /// keys.
    fn working_of(more: &[(&str, serde_json::Value)]) -> u64 {
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 160,
            "num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 1000,
            "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
            "tie_word_embeddings": false
        });
        for (key, value) in more {
            config[*key] = value.clone();
        }
        let mut info = ModelInfo::new("m", ModelFormat::Safetensors { config: Arc::new(config) }, []);
        let tensors = info.decoder.as_ref().unwrap().base_tensors(Layout::HuggingFace);
        let float = Encoding::Float(FloatType::F32);
        info.tensors = tensors.into_iter().map(|t| TensorEntry::new(t.name, t.shape, float)).collect();
        let options = LoadOptions::new(100).with_device("cpu").with_dtype(ComputeDtype::F32);
        working(&support::check(&info, &options, &Devices::probe()).unwrap(), 16, 100)
    }

    #[test]
    fn a_step_is_counted_by_what_is_there_at_one_time() {
        // Three tensors of scores, of 8 heads; queries, keys and values as wide as queries; the stream twice.
        let attention = 3 * 8 * 16 * 100 * 4 + 16 * (3 * 64 + 2 * 64) * 4;
        // A mask in f32; keys and values of a layer; logits twice, and the tiles, which are the machine's.
        let around = 16 * 100 * 4 + 2 * 100 * 16 * 4 + 2 * 1000 * 4;
        assert_eq!(working_of(&[]), attention + around + tile_bytes(160));
    }

    #[test]
    fn buffers_on_metal_have_sizes_that_are_powers_of_two() {
        assert_eq!(allocated(4096, DeviceKind::Metal), 4096);
        assert_eq!(allocated(4097, DeviceKind::Metal), 8192);
        assert_eq!(allocated(u64::MAX, DeviceKind::Metal), u64::MAX);
        assert_eq!([DeviceKind::Cpu, DeviceKind::Cuda].map(|kind| allocated(4097, kind)), [4097; 2]);
    }

    #[test]
    fn a_wide_feed_forward_block_is_counted_instead_of_attention() {
        let mlp = 16 * (4 * 6400 + 3 * 64) * 4;
        let around = 16 * 100 * 4 + 2 * 100 * 16 * 4 + 2 * 1000 * 4;
        assert_eq!(working_of(&[("intermediate_size", json!(6400))]), mlp + around + tile_bytes(6400));
    }
}
