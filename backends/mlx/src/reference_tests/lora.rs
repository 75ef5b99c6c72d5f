//! The fixtures as adapters, read as far as these go.

use std::sync::Arc;

use llm_local_core::{
    AdapterSet, Encoding, FloatType, LoraAdapter, LoraModule, TensorData, TensorSource,
    lora::{Floats, ReplacementTensor},
};
use llm_local_weights::SafetensorsSource;

use super::*;

/// A tensor of an adapter's file, in the type it is stored in, with its shape.
fn stored(source: &SafetensorsSource, name: &str) -> (Vec<usize>, Floats) {
    let entry = source.entry(name).unwrap();
    let bytes = match source.read(name, None).unwrap() {
        TensorData::Borrowed(bytes) => bytes.to_vec(),
        other => panic!("{other:?}"),
    };
    let halves = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
    let floats = match entry.encoding {
        Encoding::Float(FloatType::F16) => Floats::F16(halves()),
        Encoding::Float(FloatType::Bf16) => Floats::Bf16(halves()),
        _ => Floats::F32(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()),
    };
    (entry.shape.clone(), floats)
}

pub(super) fn f32s(floats: &Floats) -> Vec<f32> {
    match floats {
        Floats::F16(v) => v.iter().map(|b| half::f16::from_bits(*b).to_f32()).collect(),
        Floats::Bf16(v) => v.iter().map(|b| half::bf16::from_bits(*b).to_f32()).collect(),
        Floats::F32(v) => v.clone(),
        other => panic!("{other:?}"),
    }
}

fn transposed(v: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|c| v.iter().skip(c).step_by(columns).copied()).collect()
}

/// An adapter of PEFT; `scale` gives what a module's pair of a rank is multiplied by.
pub(super) fn peft(name: &str, scale: impl Fn(&str, usize) -> f64) -> LoraAdapter {
    let source = SafetensorsSource::open(&fixture(&format!("adapters/{name}/adapter_model.safetensors"))).unwrap();
    let (mut modules, mut replacements) = (Vec::new(), Vec::new());
    for entry in source.entries() {
        let key = entry.name.strip_prefix("base_model.model.").unwrap();
        if let Some(module) = key.strip_suffix(".lora_A.weight") {
            let at = |part: &str| format!("base_model.model.{module}.{part}");
            let (a, b) = (stored(&source, &entry.name), stored(&source, &at("lora_B.weight")));
            let shape = (a.0[0], a.0[1], b.0[0]);
            let mut made = LoraModule::new(module, shape, a.1, b.1, scale(module, a.0[0]));
            if source.entry(&at("lora_magnitude_vector")).is_some() {
                made = made.with_magnitude(f32s(&stored(&source, &at("lora_magnitude_vector")).1));
            }
            modules.push(made);
        } else if let Some(module) = key.strip_suffix(".lora_embedding_A") {
            let (a, b) =
                (stored(&source, &entry.name), stored(&source, &format!("base_model.model.{module}.lora_embedding_B")));
            let (rank, vocab, dim) = (a.0[0], a.0[1], b.0[0]);
            let (a, b) = (transposed(&f32s(&b.1), rank), transposed(&f32s(&a.1), vocab));
            modules.push(LoraModule::new(module, (rank, dim, vocab), a, b, scale(module, rank)));
        } else if !key.contains(".lora_") && !key.contains(".base_layer.") {
            let (shape, values) = stored(&source, &entry.name);
            replacements.push(ReplacementTensor::new(key, shape, values));
        }
    }
    assert!(!modules.is_empty());
    LoraAdapter::new(name, name, modules).with_replacements(replacements)
}

/// An adapter of mlx-lm, whose matrices stand transposed.
pub(super) fn mlx_lm(name: &str, scale: f64) -> LoraAdapter {
    let source = SafetensorsSource::open(&fixture(&format!("adapters/{name}/adapters.safetensors"))).unwrap();
    let pairs = source.entries().iter().filter_map(|entry| Some((entry, entry.name.strip_suffix(".lora_a")?)));
    let modules = pairs.map(|(entry, module)| {
        let (a, b) = (stored(&source, &entry.name), stored(&source, &format!("{module}.lora_b")));
        let (width, rank, out) = (a.0[0], a.0[1], b.0[1]);
        let (a, b) = (transposed(&f32s(&a.1), rank), transposed(&f32s(&b.1), out));
        let made = LoraModule::new(module, (rank, width, out), a, b, scale);
        match source.entry(&format!("{module}.m")) {
            Some(m) => made.with_magnitude(f32s(&stored(&source, &m.name).1)),
            None => made,
        }
    });
    let modules: Vec<_> = modules.collect();
    assert!(!modules.is_empty());
    LoraAdapter::new(name, name, modules)
}

/// The main adapter: rank 8 and alpha 16 everywhere.
pub(super) fn pirate() -> LoraAdapter {
    peft("tiny-llama-lora-peft", |_, rank| 16.0 / rank as f64)
}

/// What PEFT's other adapters have: rank 4 and alpha 8.
pub(super) fn twice(name: &str) -> LoraAdapter {
    peft(name, |_, rank| 8.0 / rank as f64)
}

/// What alpha is by patterns of names.
pub(super) fn patterns() -> LoraAdapter {
    peft("tiny-llama-lora-patterns", |module, rank| {
        let alpha = match module {
            "model.layers.0.self_attn.v_proj" | "model.layers.1.self_attn.v_proj" => 12.0,
            module if module.ends_with("down_proj") => 32.0,
            _ => 8.0,
        };
        alpha / rank as f64
    })
}

pub(super) fn rslora() -> LoraAdapter {
    peft("tiny-llama-lora-rslora", |_, rank| 8.0 / (rank as f64).sqrt())
}

/// A pair of fixed numbers for a module of the shape (rank, in, out).
pub(super) fn pair(name: &str, (rank, width, out): (usize, usize, usize), seed: usize) -> LoraModule {
    LoraModule::new(name, (rank, width, out), numbers(rank * width, seed, 0.3), numbers(out * rank, seed + 1, 0.3), 0.5)
}

pub(super) fn set(adapter: LoraAdapter) -> AdapterSet {
    AdapterSet::new().with(Arc::new(adapter), 1.0)
}

/// The logits after `tokens`.
pub(super) fn logits_with(model: &mut Decoder, tokens: &[u32], set: &AdapterSet) -> Vec<f32> {
    let adapted = model.prepare_adapters(set).unwrap();
    let mut cache = model.new_cache(tokens.len()).unwrap();
    model.forward(&mut cache, tokens, 0, Some(&adapted)).unwrap()
}
