//! Weights that MLX quantized: as mlx-lm computes them, and as their dequantized values are.

use std::sync::Arc;

use llm_local_core::{Encoding, FloatType, ModelFormat, ModelInfo, TensorEntry, TensorSource};
use llm_local_testkit::fakes::MemoryTensorSource;
use mlx_rs::ops::quantize;
use serde_json::{Value, json};

use super::{merging::widened, *};
use crate::arrays::{from_f32, to_bytes, to_f32};

#[test]
fn logits_are_those_of_mlx_lm() {
    on_thread(|| {
        for bits in [4, 8] {
            let name = format!("tiny-llama-mlx-{bits}bit");
            let mut model = load(&checkpoint(&name, None), ComputeDtype::Auto);
            agrees(&mut model, &format!("mlx__{name}.quant.f32"), 2e-5);
        }
    });
}

/// With what quantizing costs.
#[test]
fn quantized_models_stay_near_the_one_they_were_made_of() {
    on_thread(|| {
        for (bits, least, most) in [(4, 0.3, 3.0), (8, 0.01, 0.3)] {
            let mut model = load(&checkpoint(&format!("tiny-llama-mlx-{bits}bit"), None), ComputeDtype::Auto);
            let error = largest_error(&mut model, "tiny-llama");
            assert!((least..most).contains(&error), "{bits} bits: {error}");
        }
    });
}

/// Bits of one weight, and weights that share a scale.
type Packed = (u8, u32);

/// tiny-llama quantized, and the same with the values that it has then.
struct Twins {
    packed: MemoryTensorSource,
    dense: MemoryTensorSource,
    config: Value,
}

impl Twins {
    /// The first of `modules` is what all others have, those named after it something else: `None` is dense.
    fn new(all: Packed, modules: &[(&str, Option<Packed>)], tied: bool) -> Self {
        let checkpoint = checkpoint("tiny-llama", None);
        let mut config = match &checkpoint.info.format {
            ModelFormat::Safetensors { config } => (**config).clone(),
            other => panic!("{other:?}"),
        };
        config["tie_word_embeddings"] = tied.into();
        fn said((bits, group_size): Packed) -> Value {
            json!({ "bits": bits, "group_size": group_size })
        }
        config["quantization"] = said(all);
        for (module, packed) in modules {
            config["quantization"][*module] = packed.map_or(Value::Bool(false), said);
        }
        let mut twins = Self { packed: MemoryTensorSource::new(), dense: MemoryTensorSource::new(), config };
        let of =
            |module: &str| modules.iter().find(|(name, _)| *name == module).map_or(Some(all), |(_, packed)| *packed);
        for entry in checkpoint.tensors.entries() {
            let values = widened(&*checkpoint.tensors, &entry.name);
            let module = entry.name.strip_suffix(".weight").unwrap();
            twins.add(module, &entry.shape, &values, of(module).filter(|_| entry.shape.len() == 2));
            if !tied && module == "model.embed_tokens" {
                twins.add("lm_head", &entry.shape, &values, of("lm_head"));
            }
        }
        twins
    }

    fn add(&mut self, module: &str, shape: &[usize], values: &[f32], packed: Option<Packed>) {
        let name = format!("{module}.weight");
        let floats = |source: &mut MemoryTensorSource, name: &str, shape: &[usize], values: &[f32]| {
            *source = std::mem::take(source).with_floats(name, shape, FloatType::F32, values);
        };
        let Some((bits, group_size)) = packed else {
            floats(&mut self.packed, &name, shape, values);
            floats(&mut self.dense, &name, shape, values);
            return;
        };
        let (integers, scales, biases) =
            quantize(from_f32(values, shape).unwrap(), group_size as i32, i32::from(bits)).unwrap();
        let (integers, scales, biases) =
            (to_bytes(&integers).unwrap(), to_f32(&scales).unwrap(), to_f32(&biases).unwrap());
        let widened = unpacked(&integers, bits).enumerate().map(|(i, integer)| {
            let group = i / group_size as usize;
            scales[group] * integer as f32 + biases[group]
        });
        floats(&mut self.dense, &name, shape, &widened.collect::<Vec<_>>());
        let mut entry = TensorEntry::new(&name, shape.to_vec(), Encoding::MlxAffine { bits, group_size });
        let groups = [shape[0], shape[1] / group_size as usize];
        for (part, values) in [("scales", scales), ("biases", biases)] {
            let name = format!("{module}.{part}");
            floats(&mut self.packed, &name, &groups, &values);
            entry.parts.push(name);
        }
        self.packed = std::mem::take(&mut self.packed).with_bytes(entry, integers);
    }

    fn models(mut self) -> [Decoder; 2] {
        let load = |tensors: &MemoryTensorSource, config: Value| {
            let format = ModelFormat::Safetensors { config: Arc::new(config) };
            let info = ModelInfo::new("twin", format, tensors.entries().to_vec());
            load_with(&info, tensors, &options(512, ComputeDtype::F32))
        };
        let packed = load(&self.packed, self.config.clone());
        self.config.as_object_mut().unwrap().remove("quantization");
        [packed, load(&self.dense, self.config)]
    }
}

/// The integers in a row of bits, the lowest first.
fn unpacked(bytes: &[u8], bits: u8) -> impl Iterator<Item = u32> {
    let bit = |i: usize| u32::from(bytes[i / 8] >> (i % 8) & 1);
    let width = usize::from(bits);
    (0..bytes.len() * 8 / width).map(move |i| (0..width).map(|k| bit(i * width + k) << k).sum())
}

/// Prompts in one step, in steps of 3, and one by one.
#[track_caller]
fn are_equal(twins: Twins, what: &str) {
    let [mut packed, mut dense] = twins.models();
    assert!(packed.weight_bytes() < dense.weight_bytes(), "{what}");
    for row in Reference::open("tiny-llama").rows {
        for chunk in [usize::MAX, 3, 1] {
            let error = difference(
                &all_logits(&mut packed, &row.prompt, chunk),
                &all_logits(&mut dense, &row.prompt, usize::MAX),
            );
            assert!(error <= 4e-5, "{what}, steps of {chunk}: {error}");
        }
    }
}

#[test]
fn every_width_in_every_group_is_what_its_values_are() {
    on_thread(|| {
        for bits in [2, 3, 4, 5, 6, 8] {
            for group_size in [32, 64, 128] {
                are_equal(Twins::new((bits, group_size), &[], true), &format!("{bits} bits in groups of {group_size}"));
            }
        }
    });
}

/// Queries, keys and values that are not held alike, in one layer; a dense matrix among packed ones; and heads of their own.
#[test]
fn modules_may_be_quantized_in_their_own_way_or_not_at_all() {
    on_thread(|| {
        let modules: [(&str, Option<Packed>); 6] = [
            ("model.layers.0.self_attn.k_proj", Some((8, 32))),
            ("model.layers.1.self_attn.v_proj", None),
            ("model.layers.1.mlp.up_proj", Some((4, 128))),
            ("model.layers.2.mlp.down_proj", None),
            ("model.layers.3.self_attn.o_proj", Some((6, 64))),
            ("model.embed_tokens", Some((5, 32))),
        ];
        are_equal(Twins::new((4, 64), &modules, true), "mixed");
        are_equal(Twins::new((4, 64), &[("lm_head", None)], false), "a dense head");
        are_equal(Twins::new((4, 64), &[("lm_head", Some((8, 64)))], false), "another head");
        are_equal(Twins::new((4, 64), &[("model.embed_tokens", None)], true), "a dense embedding");
    });
}

/// Beside packed weights adapters do what they do beside their values: DoRA's norms, looked up rows, replaced matrices.
#[test]
fn adapters_beside_packed_weights_do_what_they_do_beside_their_values() {
    use super::lora::{logits_with, pirate, set, twice};
    on_thread(|| {
        let modules = [("model.layers.0.self_attn.k_proj", Some((8, 32))), ("model.layers.1.self_attn.v_proj", None)];
        let [mut packed, mut dense] = Twins::new((4, 64), &modules, true).models();
        let prompt: Vec<u32> = (0..40).map(|i| (i * 7 + 3) % 300).collect();
        for adapter in [
            pirate(),
            twice("tiny-llama-lora-dora"),
            twice("tiny-llama-lora-embed"),
            twice("tiny-llama-lora-modules-to-save-embed_tokens"),
            twice("tiny-llama-lora-modules-to-save-lm_head"),
        ] {
            let (name, set) = (adapter.reference.clone(), set(adapter));
            let error = difference(&logits_with(&mut packed, &prompt, &set), &logits_with(&mut dense, &prompt, &set));
            assert!(error <= 4e-5, "{name}: {error}");
        }
    });
}
