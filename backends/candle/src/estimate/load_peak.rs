//! What a load takes beside the weights that it makes.

use std::{collections::HashMap, slice};

use llm_local_backend_common::decoder::{AROUND, STACKED};
use llm_local_core::{DeviceKind, Encoding, TensorEntry, model::ModuleRole};

use super::{held, stored};
use crate::support::{Held, Supported};

/// A tensor of a matrix, and the module that it is of.
type Part<'a> = (&'a TensorEntry, ModuleRole);

/// Bytes that a load on `threads` threads takes at most beside its result. Each thread makes one matrix at a time: those of
/// one layer, or embedding and head. Norms and biases, which are small, are not counted; neither is what a source needs to
/// compute what it gives. It is less where a source depends on the order of reads, which one thread reads, or gives blocks as
/// they are in a file: what a tensor is, and not where it comes from, is known here.
pub(super) fn load_peak(s: &Supported, tensors: &[TensorEntry], threads: usize) -> u64 {
    let entries: HashMap<&str, &TensorEntry> = tensors.iter().map(|t| (&*t.name, t)).collect();
    let mut matrices: HashMap<(ModuleRole, usize), Vec<Part<'_>>> = HashMap::new();
    for t in s.decoder.base_tensors(s.layout).into_iter().filter(|t| t.shape.len() > 1) {
        let Some(entry) = entries.get(&*t.name) else { continue };
        let first = STACKED.iter().find(|roles| roles.contains(&t.role)).map_or(t.role, |roles| roles[0]);
        matrices.entry((first, t.layer)).or_default().push((entry, t.role));
    }
    let mut peaks: HashMap<Option<usize>, u64> = HashMap::new();
    for ((role, layer), parts) in &matrices {
        let peak = peaks.entry((!AROUND.contains(role)).then_some(*layer)).or_default();
        *peak = (*peak).max(beside(s, parts));
    }
    let mut peaks: Vec<u64> = peaks.into_values().collect();
    peaks.sort_unstable_by(|a, b| b.cmp(a));
    peaks.iter().take(threads).sum()
}

/// Bytes that making one matrix of `parts`, or as many as they are if they are not held alike, takes beside it.
fn beside(s: &Supported, parts: &[Part<'_>]) -> u64 {
    let all = |bytes: fn(&TensorEntry, &Supported) -> u64| parts.iter().map(|(t, _)| bytes(t, s)).sum();
    let Some(kind) = s.held(parts[0].0) else { return 0 };
    if parts.iter().any(|(t, _)| s.held(t) != Some(kind)) {
        return parts.iter().map(|part| beside(s, slice::from_ref(part))).max().unwrap_or(0);
    }
    match kind {
        // Put together first, and copied from there.
        Held::Blocks(_) => all(|t, _| stored(t)),
        Held::Dense(_) if s.device_info.kind != DeviceKind::Cpu => all(held),
        Held::Dense(float) => {
            let is_ordered = parts.iter().any(|(_, role)| s.row_order(*role).is_some());
            // Moved if it is one tensor, and else written to its place, by those that need not convert it.
            let is_in_place =
                |t: &TensorEntry| !is_ordered && (parts.len() == 1 || t.encoding == Encoding::Float(float));
            let copied = parts.iter().filter(|(t, _)| !is_in_place(t)).map(|(t, _)| held(t, s));
            copied.max().unwrap_or(0)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use llm_local_core::{
        ComputeDtype, FloatType, GgmlType, LoadOptions, ModelFormat, ModelInfo,
        model::{BaseTensor, Layout},
    };
    use serde_json::json;

    use super::*;
    use crate::{device::Devices, support};

    const LAYERS: usize = 4;
    const HIDDEN: usize = 4096;
    const FFN: usize = 14336;
    const VOCAB: usize = 128_256;
    /// Elements.
    const GATE: u64 = (FFN * HIDDEN) as u64;
    const QUERY: u64 = (HIDDEN * HIDDEN) as u64;
    const HEAD: u64 = (VOCAB * HIDDEN) as u64;

    /// Layers of the shapes of Llama 3 8B.
    fn llama(layout: Layout, kind: impl Fn(&str) -> Encoding, dtype: ComputeDtype) -> (Supported, Vec<TensorEntry>) {
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FFN,
            "num_hidden_layers": LAYERS, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": VOCAB,
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu",
            "tie_word_embeddings": false
        });
        let format = ModelFormat::Safetensors { config: Arc::new(config) };
        let mut info = ModelInfo::new("8B", format, []);
        let decoder = info.decoder.clone().unwrap();
        let entry = |t: BaseTensor| {
            let kind = if t.shape.len() > 1 { kind(&t.name) } else { Encoding::Float(FloatType::F32) };
            TensorEntry::new(t.name, t.shape, kind)
        };
        let tensors: Vec<_> = decoder.base_tensors(layout).into_iter().map(entry).collect();
        info.tensors = tensors.clone().into();
        if layout == Layout::Gguf {
            info.format = ModelFormat::Gguf { metadata: Arc::default() };
        }
        let options = LoadOptions::new(512).with_device("cpu").with_dtype(dtype);
        (support::check(&info, &options, &Devices::probe()).unwrap(), tensors)
    }
    #[track_caller]
    fn check((s, tensors): (Supported, Vec<TensorEntry>), around: u64, layer: u64) {
        for threads in [1, 2, 3, 8] {
            let mut peaks = [layer; LAYERS + 1];
            peaks[0] = around;
            peaks.sort_unstable_by(|a, b| b.cmp(a));
            let expected: u64 = peaks.iter().take(threads).sum();
            assert_eq!(load_peak(&s, &tensors, threads), expected, "{threads} threads");
        }
    }

    #[test]
    fn floats_that_are_held_as_they_are_stored_take_nothing() {
        let f16 = |_: &str| Encoding::Float(FloatType::F16);
        check(llama(Layout::HuggingFace, f16, ComputeDtype::Auto), 0, 0);
    }

    #[test]
    fn one_converted_tensor_of_a_matrix_of_several_is_counted_per_thread() {
        let bf16 = |_: &str| Encoding::Float(FloatType::Bf16);
        check(llama(Layout::HuggingFace, bf16, ComputeDtype::F32), 0, 4 * GATE);
        check(llama(Layout::HuggingFace, bf16, ComputeDtype::F16), 0, 2 * GATE);
    }

    #[test]
    fn rows_that_are_put_in_order_are_counted() {
        let f16 = |_: &str| Encoding::Float(FloatType::F16);
        check(llama(Layout::Gguf, f16, ComputeDtype::Auto), 0, 2 * QUERY);
    }

    #[test]
    fn blocks_are_counted_by_the_matrix_that_they_are_put_together_in() {
        let q8_0 = |_: &str| Encoding::Ggml(GgmlType::Q8_0);
        check(llama(Layout::Gguf, q8_0, ComputeDtype::Auto), HEAD / 32 * 34, 2 * GATE / 32 * 34);
    }

    #[test]
    fn tensors_that_are_not_held_alike_are_counted_one_by_one() {
        let kind = |name: &str| match name {
            _ if name.contains("ffn_gate") => Encoding::Ggml(GgmlType::Q8_0),
            _ if name.contains("attn_q") => Encoding::Float(FloatType::F16),
            _ => Encoding::Ggml(GgmlType::Q4_0),
        };
        // The gate, and not the up beside it.
        check(llama(Layout::Gguf, kind, ComputeDtype::Auto), HEAD / 32 * 18, GATE / 32 * 34);
    }
}
