//! Adapters of projections that the base has split where the adapter has them fused, or the other way round.

use std::sync::Arc;

use llm_local_core::{
    AdapterSet, Encoding, FloatType, LoraAdapter, LoraModule, Result, TensorData, TensorEntry, TensorSource,
    lora::{Floats, ReplacedRows, ReplacementTensor},
};

use super::{
    adapters::beside,
    lora::{f32s, logits_with, pirate, set, twice},
    merging::{merged, widened},
    *,
};

/// The projections of a layer that are held in one by some models: what that is called, and what the others are.
const GROUPS: [(&str, &[&str]); 2] = [
    ("self_attn.qkv_proj", &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    ("mlp.gate_up_proj", &["mlp.gate_proj", "mlp.up_proj"]),
];

/// Rows of each projection of a group.
fn rows(c: &DecoderConfig, group: usize) -> Vec<usize> {
    let keys = c.kv_heads * c.head_dim;
    if group == 0 { vec![c.heads * c.head_dim, keys, keys] } else { vec![c.intermediate_size; 2] }
}

/// The same deltas by other pairs: of each fused projection, its rows of B with the whole A.
fn split(adapter: &LoraAdapter, c: &DecoderConfig) -> LoraAdapter {
    let mut modules = Vec::new();
    for module in &adapter.modules {
        let group = GROUPS.iter().position(|(fused, _)| module.name.ends_with(fused));
        let Some(group) = group else {
            modules.push(module.clone());
            continue;
        };
        let (mut first, b) = (0, f32s(&module.b));
        for (part, rows) in GROUPS[group].1.iter().zip(rows(c, group)) {
            let name = module.name.replace(GROUPS[group].0, part);
            let own = b[first * module.rank..(first + rows) * module.rank].to_vec();
            let shape = (module.rank, module.in_features, rows);
            let mut made = LoraModule::new(name, shape, module.a.clone(), own, module.scale);
            made.magnitude = module.magnitude.as_ref().map(|m| m[first..first + rows].to_vec());
            made.bias = module.bias.as_ref().map(|m| m[first..first + rows].to_vec());
            modules.push(made);
            first += rows;
        }
    }
    LoraAdapter::new(&adapter.reference, &adapter.digest, modules)
}

/// The same deltas by other pairs: of the projections of a group, all A one below another, and each B in its own rows and
/// columns. Their scales are one.
fn fused(adapter: &LoraAdapter, c: &DecoderConfig) -> LoraAdapter {
    let mut modules: Vec<_> = adapter.modules.clone();
    for layer in 0..c.layers {
        for (group, (whole, parts)) in GROUPS.iter().enumerate() {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            let own: Vec<_> = parts.iter().filter_map(|part| adapter.module(&name(part))).collect();
            assert_eq!(own.len(), parts.len());
            modules.retain(|module| !parts.iter().any(|part| module.name == name(part)));
            let rank: usize = own.iter().map(|m| m.rank).sum();
            let a: Vec<f32> = own.iter().flat_map(|m| f32s(&m.a)).collect();
            let (mut b, mut first) = (Vec::new(), 0);
            for module in own.iter() {
                for row in f32s(&module.b).chunks_exact(module.rank) {
                    let mut wide = vec![0.0; rank];
                    wide[first..first + module.rank].copy_from_slice(row);
                    b.extend(wide);
                }
                first += module.rank;
            }
            let out = rows(c, group).iter().sum();
            modules.push(LoraModule::new(name(whole), (rank, own[0].in_features, out), a, b, own[0].scale));
        }
    }
    LoraAdapter::new(&adapter.reference, &adapter.digest, modules)
}

/// Against PEFT's logits. Measured: 5e-6.
#[test]
fn fused_pairs_on_split_projections_agree() {
    on_thread(|| {
        let mut model = tiny(ComputeDtype::F32);
        let adapter = fused(&pirate(), &description("tiny-llama"));
        assert_eq!(adapter.modules.len(), 4 * 4);
        beside(&mut model, adapter, "tiny-llama__tiny-llama-lora-peft", 2e-5);
    });
}

/// Against PEFT's logits. Measured: 2.4e-5, as with fused pairs.
#[test]
fn split_pairs_on_fused_projections_agree() {
    on_thread(|| {
        let name = "arch-phi3";
        let mut model = load(&checkpoint(name, None), ComputeDtype::F32);
        let adapter = split(&twice(&format!("{name}-lora")), &description(name));
        assert_eq!(adapter.modules.len() % 7, 0);
        beside(&mut model, adapter, &format!("{name}__{name}-lora"), 1e-4);
    });
}

/// One pair is one pass over its A and its B, and one in memory, also where it is of several modules here.
#[test]
fn a_fused_pair_on_rows_that_are_held_in_one_stays_one() {
    on_thread(|| {
        let c = description("tiny-llama");
        let mut model = tiny(ComputeDtype::F32);
        let adapter = fused(&pirate(), &c);
        let bytes = adapter.byte_len() as u64;
        let adapted = model.prepare_adapters(&set(adapter)).unwrap();
        assert_eq!(model.adapter_bytes(&adapted), bytes);
        // A replaced tensor in bf16 stays so where activations are.
        let mut model = tiny(ComputeDtype::Bf16);
        let (name, shape) = ("model.layers.1.self_attn.qkv_proj.weight", vec![rows(&c, 0).iter().sum(), c.hidden_size]);
        let values = Floats::Bf16(vec![0; shape[0] * shape[1]]);
        let new = LoraAdapter::new("new", "new", Vec::new()).with_replacements(vec![ReplacementTensor::new(
            name,
            shape.clone(),
            values,
        )]);
        let adapted = model.prepare_adapters(&set(new)).unwrap();
        assert_eq!(model.adapter_bytes(&adapted), (shape[0] * shape[1] * 2) as u64);
    });
}

/// A checkpoint with adapters merged into it as into one whose projections are split where its own are fused, and fused
/// where they are split.
struct MergedOtherwise {
    inner: Arc<dyn TensorSource>,
    entries: Vec<TensorEntry>,
    c: DecoderConfig,
    set: AdapterSet,
}

impl MergedOtherwise {
    fn base(&self, name: &str) -> Vec<f32> {
        widened(&*self.inner, name)
    }
}

impl TensorSource for MergedOtherwise {
    fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn read(&self, name: &str, _: Option<FloatType>) -> Result<TensorData<'_>> {
        let base = self.base(name);
        for (group, (whole, parts)) in GROUPS.iter().enumerate() {
            let rows = rows(&self.c, group);
            if name.contains(whole) {
                let width = base.len() / rows.iter().sum::<usize>();
                let mut rest = &merged(name, &base, &self.set)[..];
                let mut all = Vec::new();
                for (part, rows) in parts.iter().zip(rows) {
                    let own;
                    (own, rest) = rest.split_at(rows * width);
                    all.extend(merged(&name.replace(whole, part), own, &self.set));
                }
                return Ok(TensorData::F32(all));
            }
            if let Some(place) = parts.iter().position(|part| name.contains(part)) {
                let own = merged(name, &base, &self.set);
                let width = own.len() / rows[place];
                let other = |part: &str| name.replace(parts[place], part);
                let mut all: Vec<f32> = parts.iter().flat_map(|part| self.base(&other(part))).collect();
                let first = rows[..place].iter().sum::<usize>() * width;
                all[first..first + own.len()].copy_from_slice(&own);
                let all = merged(&other(whole), &all, &self.set);
                return Ok(TensorData::F32(all[first..first + own.len()].to_vec()));
            }
        }
        Ok(TensorData::F32(merged(name, &base, &self.set)))
    }
}

#[track_caller]
fn is_merged(name: &str, set: &AdapterSet) {
    let checkpoint = checkpoint(name, None);
    let mut beside = load(&checkpoint, ComputeDtype::F32);
    let prompt: Vec<u32> = (0..40).map(|i| (i * 7 + 3) % 300).collect();
    let found = logits_with(&mut beside, &prompt, set);
    let base = logits_with(&mut beside, &prompt, &AdapterSet::new());
    let entries = checkpoint.tensors.entries().iter();
    let entries =
        entries.map(|t| TensorEntry::new(&t.name, t.shape.clone(), Encoding::Float(FloatType::F32))).collect();
    let (c, mut merged) = (description(name), checkpoint);
    merged.tensors = Arc::new(MergedOtherwise { inner: merged.tensors, entries, c, set: set.clone() });
    let expected = logits_with(&mut load(&merged, ComputeDtype::F32), &prompt, &AdapterSet::new());
    let (far, changed) = (difference(&found, &expected), difference(&found, &base));
    assert!(far < 2e-5 && changed > 0.05, "{name}: {far}, and {changed} from the base");
}

fn pair(name: &str, width: usize, out: usize, seed: usize) -> LoraModule {
    let rank = 3;
    LoraModule::new(name, (rank, width, out), numbers(rank * width, seed, 0.3), numbers(out * rank, seed + 1, 0.3), 0.5)
}

/// Magnitudes, and whole tensors and rows that are replaced below pairs. Measured: at most 4e-6, and logits that move by 1 to 7.
#[test]
fn what_is_not_plain_goes_to_its_rows_too() {
    on_thread(|| {
        for name in ["arch-phi3", "tiny-llama"] {
            let c = description(name);
            let (hidden, all, keys, ffn) =
                (c.hidden_size, rows(&c, 0).iter().sum(), rows(&c, 0)[1], c.intermediate_size);
            let at = |module: &str| format!("model.layers.1.{module}");
            let key = ReplacementTensor::new(
                at("self_attn.k_proj.weight"),
                vec![keys, hidden],
                numbers(keys * hidden, 2, 0.2),
            );
            let split = vec![
                pair(&at("self_attn.k_proj"), hidden, keys, 1).with_magnitude(numbers(keys, 8, 1.5)),
                pair(&at("mlp.up_proj"), hidden, ffn, 11),
            ];
            let split = LoraAdapter::new("split", "split", split).with_replacements(vec![key]);
            let values = numbers(3 * hidden, 6, 0.4);
            let some = ReplacedRows::new(at("mlp.gate_up_proj.weight"), vec![2, ffn - 1, ffn + 3], values);
            let fused = vec![
                pair(&at("self_attn.qkv_proj"), hidden, all, 21).with_magnitude(numbers(all, 9, 1.5)),
                pair(&at("mlp.gate_up_proj"), hidden, 2 * ffn, 31),
            ];
            let fused = LoraAdapter::new("fused", "fused", fused).with_rows(vec![some]);
            is_merged(name, &set(split.clone()));
            is_merged(name, &set(fused.clone()));
            let weight = ReplacementTensor::new(
                at("self_attn.qkv_proj.weight"),
                vec![all, hidden],
                numbers(all * hidden, 4, 0.2),
            );
            let whole = LoraAdapter::new("whole", "whole", Vec::new()).with_replacements(vec![weight]);
            is_merged(name, &AdapterSet::new().with(whole.clone().into(), 1.0));
            is_merged(name, &AdapterSet::new().with(whole.into(), 0.25));
        }
    });
}

/// The bias of a fused pair, and a fused bias that was trained. Measured: 4e-6, and logits that move by 2.5 and 2.9.
#[test]
fn fused_biases_go_to_their_rows() {
    on_thread(|| {
        let c = description("arch-qwen2");
        let (hidden, all) = (c.hidden_size, rows(&c, 0).iter().sum());
        let name = "model.layers.1.self_attn.qkv_proj";
        let with_bias = pair(name, hidden, all, 1).with_bias(numbers(all, 5, 2.0));
        let trained = ReplacementTensor::new(format!("{name}.bias"), vec![all], numbers(all, 6, 1.0));
        is_merged("arch-qwen2", &set(LoraAdapter::new("bias", "bias", vec![with_bias.clone()])));
        let both = LoraAdapter::new("both", "both", vec![with_bias]).with_replacements(vec![trained]);
        is_merged("arch-qwen2", &AdapterSet::new().with(both.into(), 0.6));
    });
}

/// Bare parameters that are the weights of linear layers are pairs of those, as PEFT computes them; and a mark that the base
/// were transposed says nothing of one that is not, as PEFT ignores it then.
#[test]
fn parameters_and_marks_of_transposed_weights_are_plain_pairs_where_they_fit() {
    on_thread(|| {
        let mut model = tiny(ComputeDtype::F32);
        let mut adapter = pirate();
        for (i, module) in adapter.modules.iter_mut().enumerate() {
            match i % 3 {
                0 => {
                    module.is_parameter = true;
                    module.name = format!("{}.weight", module.name);
                }
                1 => module.transposed = true,
                _ => {}
            }
        }
        beside(&mut model, adapter, "tiny-llama__tiny-llama-lora-peft", 2e-5);
    });
}
