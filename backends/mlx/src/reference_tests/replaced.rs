//! Tensors that are read anew, against a model that was loaded with them: equal to the bit, and in bytes.

use std::sync::{Arc, Mutex};

use half::{bf16, f16};
use llm_local_backend_common::worker::NewTensors;
use llm_local_core::{
    CancellationToken, Encoding, Error, FloatType, ModelInfo, Result, TensorData, TensorEntry, TensorSource,
};

use super::*;
use crate::decoder::Adapted;

const PROMPT: [u32; 9] = [5, 9, 300, 17, 2, 44, 8, 91, 120];

/// A checkpoint of which some tensors are others: fixed numbers, other ones for each seed, stored in f16.
struct Changed {
    inner: Arc<dyn TensorSource>,
    entries: Vec<TensorEntry>,
    names: Vec<String>,
    seed: usize,
    /// Reading this one fails.
    broken: Option<String>,
    /// The names of what was read.
    read: Arc<Mutex<Vec<String>>>,
}

impl Changed {
    fn new(checkpoint: &Checkpoint, names: &[&str], seed: usize) -> Self {
        let mut entries = checkpoint.tensors.entries().to_vec();
        let mut gone = Vec::new();
        for entry in entries.iter_mut().filter(|entry| names.contains(&&*entry.name)) {
            entry.encoding = Encoding::Float(FloatType::F16);
            gone.append(&mut entry.parts);
        }
        // What was packed is so no more.
        entries.retain(|entry| !gone.contains(&entry.name));
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Self { inner: checkpoint.tensors.clone(), entries, names, seed, broken: None, read: Arc::default() }
    }

    fn info(&self, of: &Checkpoint) -> ModelInfo {
        let mut info = (*of.info).clone();
        info.tensors = self.entries.clone().into();
        info
    }
}

impl TensorSource for Changed {
    fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn read(&self, name: &str, want: Option<FloatType>) -> Result<TensorData<'_>> {
        self.read.lock().unwrap().push(name.to_owned());
        if self.broken.as_deref() == Some(name) {
            return Err(Error::load(format!("tensor `{name}`"), "the disk is gone"));
        }
        let Some(place) = self.names.iter().position(|n| n == name) else { return self.inner.read(name, want) };
        let count = self.entry(name).and_then(TensorEntry::elements).unwrap();
        let size = if name.contains("norm") { 1.0 } else { 0.1 };
        let number = |i: usize| {
            let x = ((i + 977 * (self.seed + 31 * place)) as f64 * 12.9898).sin() * 43758.5453;
            f16::from_f64(size * x.fract()).to_f32()
        };
        let all = (0..count).map(number);
        Ok(match want {
            Some(FloatType::F32) => TensorData::F32(all.collect()),
            Some(FloatType::Bf16) => TensorData::Half(all.map(|x| bf16::from_f32(x).to_bits()).collect()),
            _ => TensorData::Half(all.map(|x| f16::from_f32(x).to_bits()).collect()),
        })
    }
}

fn decoder(info: &ModelInfo, tensors: &dyn TensorSource, dtype: ComputeDtype) -> Decoder {
    load_with(info, tensors, &options(64, dtype))
}

fn logits(model: &mut Decoder, with: Option<&Adapted>) -> Vec<f32> {
    let mut cache = model.new_cache(PROMPT.len()).unwrap();
    // A prompt, and a single token, which are computed differently.
    let mut all = model.forward(&mut cache, &PROMPT, 0, with).unwrap();
    all.extend(model.forward(&mut cache, &[7], PROMPT.len(), with).unwrap());
    all
}

fn replace(model: &mut Decoder, of: &Checkpoint, new: Changed, names: &[&str]) -> Result<Adapted> {
    let info = Arc::new(new.info(of));
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    model.replace_tensors(&NewTensors { tensors: Arc::new(new), info, names, cancel: CancellationToken::new() })
}

/// Replaces each group of tensors after the one before, and at last none: each time the model is as a fresh one.
#[track_caller]
fn is_as_loaded(checkpoint: &Checkpoint, dtype: ComputeDtype, groups: &[&[&str]]) {
    let base = |names: &[&str]| Changed::new(checkpoint, names, 0);
    let mut model = decoder(&checkpoint.info, &*checkpoint.tensors, dtype);
    let loaded = (logits(&mut model, None), model.weight_bytes());
    const NONE: &[&str] = &[];
    let mut before = NONE;
    for (seed, group) in (1..).zip(groups.iter().chain([&NONE])) {
        let source = Changed { seed, ..base(group) };
        let mut fresh = decoder(&source.info(checkpoint), &source, dtype);
        let (expected, old) = (logits(&mut fresh, None), logits(&mut model, None));
        let touched: Vec<&str> = before.iter().chain(*group).copied().collect();
        let kept = replace(&mut model, checkpoint, source, &touched).unwrap();
        assert_eq!(logits(&mut model, None), expected, "{group:?}");
        assert_eq!(model.weight_bytes(), fresh.weight_bytes(), "{group:?}");
        assert_ne!(expected, old, "{group:?} change nothing");
        // What was there goes on.
        assert_eq!(logits(&mut model, Some(&kept)), old, "{group:?}");
        before = group;
    }
    assert_eq!((logits(&mut model, None), model.weight_bytes()), loaded);
}

#[test]
fn a_model_whose_tensors_are_replaced_is_as_one_that_was_loaded_with_them() {
    on_thread(|| {
        let one = ["model.layers.1.self_attn.q_proj.weight", "model.layers.2.self_attn.v_proj.weight"];
        let others = [
            "model.layers.0.self_attn.k_proj.weight",
            "model.layers.0.self_attn.o_proj.weight",
            "model.layers.1.mlp.up_proj.weight",
            "model.layers.1.mlp.down_proj.weight",
        ];
        let norms = ["model.norm.weight", "model.layers.0.input_layernorm.weight", "model.embed_tokens.weight"];
        for dtype in [ComputeDtype::F32, ComputeDtype::F16, ComputeDtype::Bf16, ComputeDtype::Auto] {
            is_as_loaded(&checkpoint("tiny-llama", None), dtype, &[&one, &others, &norms, &one]);
        }
    });
}

#[test]
fn fused_projections_biases_and_norms_of_queries_are_replaced_too() {
    on_thread(|| {
        let phi3 = ["model.layers.0.self_attn.qkv_proj.weight", "model.layers.1.mlp.gate_up_proj.weight"];
        is_as_loaded(&checkpoint("arch-phi3", None), ComputeDtype::F32, &[&phi3, &phi3[..1], &phi3[1..]]);
        let qwen2 = ["model.layers.0.self_attn.k_proj.bias", "model.layers.1.self_attn.q_proj.weight"];
        is_as_loaded(&checkpoint("arch-qwen2", None), ComputeDtype::F32, &[&qwen2, &qwen2[..1]]);
        let qwen3 = ["model.layers.0.self_attn.q_norm.weight", "model.layers.1.self_attn.k_norm.weight"];
        is_as_loaded(&checkpoint("arch-qwen3", None), ComputeDtype::F32, &[&qwen3]);
        let gemma2 = ["model.layers.0.post_feedforward_layernorm.weight", "model.layers.1.self_attn.v_proj.weight"];
        is_as_loaded(&checkpoint("arch-gemma2", None), ComputeDtype::F32, &[&gemma2]);
    });
}

#[test]
fn quantized_tensors_become_floats_and_packed_again_also_where_they_were_held_in_one() {
    on_thread(|| {
        let one = ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.gate_proj.weight"];
        let all = [
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.self_attn.k_proj.weight",
            "model.layers.0.self_attn.v_proj.weight",
            "model.layers.0.mlp.down_proj.weight",
            "model.embed_tokens.weight",
        ];
        for name in ["tiny-llama-mlx-4bit", "tiny-llama-mlx-8bit"] {
            is_as_loaded(&checkpoint(name, None), ComputeDtype::Auto, &[&one, &all, &one[..1]]);
        }
    });
}

#[test]
fn what_cannot_be_replaced_leaves_the_model_as_it_was() {
    on_thread(|| {
        let checkpoint = checkpoint("tiny-llama", None);
        let mut model = decoder(&checkpoint.info, &*checkpoint.tensors, ComputeDtype::F32);
        let before = (logits(&mut model, None), model.weight_bytes());
        let (q, down) = ("model.layers.0.self_attn.q_proj.weight", "model.layers.2.mlp.down_proj.weight");
        let both = [q, down];
        let changed = || Changed::new(&checkpoint, &both, 1);
        // In the middle: the first has been read by then.
        let broken = Changed { broken: Some(down.to_owned()), ..changed() };
        let failed = replace(&mut model, &checkpoint, broken, &both).unwrap_err();
        assert!(failed.code() == "load_failed" && failed.to_string().contains("the disk is gone"), "{failed}");
        let unknown = replace(&mut model, &checkpoint, changed(), &[q, "model.layers.9.x"]).unwrap_err();
        assert!(unknown.code() == "invalid_spec" && unknown.to_string().contains("model.layers.9.x"), "{unknown}");
        let cancel = CancellationToken::new();
        cancel.cancel();
        let info = Arc::new(changed().info(&checkpoint));
        let new = NewTensors { tensors: Arc::new(changed()), info: info.clone(), names: vec![q.to_owned()], cancel };
        assert_eq!(model.replace_tensors(&new).unwrap_err().code(), "cancelled");
        let mut untied = (*info).clone();
        let description = untied.decoder.as_mut().unwrap();
        description.tied_embeddings = !description.tied_embeddings;
        let mut grown = (*info).clone();
        grown.decoder.as_mut().unwrap().vocab_size += 1;
        for info in [untied, grown] {
            let (tensors, names) = (Arc::new(changed()), vec![q.to_owned()]);
            let new = NewTensors { tensors, info: Arc::new(info), names, cancel: CancellationToken::new() };
            let error = model.replace_tensors(&new).unwrap_err();
            assert_eq!(error.code(), "unsupported", "{error}");
            assert!(error.to_string().contains("another spec"), "{error}");
        }
        assert_eq!((logits(&mut model, None), model.weight_bytes()), before);
    });
}

/// Parts of two layers.
const TWO: [&str; 2] = ["model.layers.1.self_attn.q_proj.weight", "model.layers.2.mlp.down_proj.weight"];

/// As a load reads them: a source may depend on it.
#[test]
fn only_what_is_held_in_one_with_a_named_tensor_is_read_and_in_order() {
    on_thread(|| {
        let checkpoint = checkpoint("tiny-llama", None);
        let mut model = decoder(&checkpoint.info, &*checkpoint.tensors, ComputeDtype::F32);
        let source = Changed::new(&checkpoint, &TWO, 1);
        let read = source.read.clone();
        replace(&mut model, &checkpoint, source, &TWO).unwrap();
        let of_one = ["k", "v"].map(|part| format!("model.layers.1.self_attn.{part}_proj.weight"));
        assert_eq!(*read.lock().unwrap(), [TWO[0], &of_one[0], &of_one[1], TWO[1]]);
    });
}
