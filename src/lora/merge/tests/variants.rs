//! Everything that an adapter can do to one matrix, or to stacked experts, against [`super::naive`].

use std::sync::Arc;

use llm_local_core::{
    FloatType, LoraAdapter, LoraModule, ModelFormat, ModelInfo, TensorSource,
    lora::{ReplacedRows, ReplacementTensor},
};
use proptest::prelude::*;
use serde_json::json;

use super::{
    MergedSource, bytes, decode, float_type,
    naive::{Tensors, merged, worst},
    numbers, stored_floats,
};

/// What one adapter does.
#[derive(Debug, Clone)]
pub(super) struct Kind {
    pub(super) rank: usize,
    pub(super) stored: FloatType,
    pub(super) scale: f64,
    pub(super) weight: f32,
    pub(super) has_pair: bool,
    pub(super) has_magnitude: bool,
    pub(super) replaces: bool,
    /// Which rows it replaces, modulo their number.
    pub(super) rows: Vec<usize>,
}

/// One of each that is computed in another way, with this scale: a pair, DoRA, and a pair with rows beside it.
pub(super) fn kinds(scale: f64) -> [Kind; 3] {
    let plain = Kind {
        rank: 3,
        stored: FloatType::F32,
        scale,
        weight: 0.75,
        has_pair: true,
        has_magnitude: false,
        replaces: false,
        rows: Vec::new(),
    };
    let dora = Kind { has_magnitude: true, weight: 1.0, ..plain.clone() };
    let rows = Kind { rows: vec![0, 7], stored: FloatType::Bf16, ..plain.clone() };
    [plain, dora, rows]
}

pub(super) fn kind() -> impl Strategy<Value = Kind> {
    let weight = prop_oneof![2 => Just(1f32), 1 => 0.1f32..2.0, 1 => -2.0f32..-0.1];
    let rows = proptest::collection::vec(any::<usize>(), 0..4);
    (1usize..9, float_type(), 0.1..4.0f64, weight, any::<bool>(), any::<bool>(), proptest::bool::weighted(0.3), rows)
        .prop_map(|(rank, stored, scale, weight, has_pair, has_magnitude, replaces, rows)| Kind {
            rank,
            stored,
            scale,
            weight,
            has_pair: has_pair || !replaces && rows.is_empty(),
            has_magnitude,
            replaces,
            rows,
        })
}

impl Kind {
    /// An adapter for the module `name`, whose weight has the shape (rows, columns); a pair of (in, out) if `transposed`.
    pub(super) fn adapter(&self, name: &str, shape: [usize; 2], transposed: bool, seed: u64) -> LoraAdapter {
        let [rows, columns] = shape;
        let some = |salt: u64, count| stored_floats(&numbers(seed ^ (salt << 32), count), self.stored);
        let (outputs, inputs) = if transposed { (columns, rows) } else { (rows, columns) };
        let mut modules = Vec::new();
        if self.has_pair {
            let (a, b) = (some(1, self.rank * inputs), some(2, outputs * self.rank));
            let mut module = LoraModule::new(name, (self.rank, inputs, outputs), a, b, self.scale);
            module = module.with_transposed(transposed);
            if self.has_magnitude {
                module = module.with_magnitude(numbers(seed ^ 3, outputs).iter().map(|v| 2.0 + *v as f32).collect());
            }
            modules.push(module);
        }
        let mut adapter = LoraAdapter::new(format!("adapter {seed}"), "", modules);
        let weight = format!("{name}.weight");
        if self.replaces {
            let replaced = ReplacementTensor::new(weight.clone(), shape.to_vec(), some(4, rows * columns));
            adapter = adapter.with_replacements(vec![replaced]);
        }
        let mut replaced: Vec<_> = self.rows.iter().map(|row| row % rows).collect();
        replaced.sort_unstable();
        replaced.dedup();
        if !replaced.is_empty() {
            let values = some(5, replaced.len() * columns);
            adapter = adapter.with_rows(vec![ReplacedRows::new(weight, replaced, values)]);
        }
        adapter
    }
}

/// The description of `base` by an architecture that nothing is known of.
pub(super) fn unknown(base: &Tensors) -> ModelInfo {
    of_type("test", base)
}

pub(super) fn of_type(kind: &str, base: &Tensors) -> ModelInfo {
    let config = Arc::new(json!({"model_type": kind}));
    ModelInfo::new("base", ModelFormat::Safetensors { config }, base.entries().to_vec())
}

/// Roundings of f32, for up to 24 terms of products, for the norms and for what is mixed; measured over 6,000 cases it was
/// 4.3.
pub(super) const TOLERANCE: f64 = 12.0;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn every_variant_is_the_sum_in_f64_within_the_roundings_of_f32(
        shape in prop_oneof![4 => (1usize..100, 1usize..100), 1 => (1usize..70, 700usize..900), 1 => (700usize..900, 1usize..70)],
        stored in float_type(),
        want in proptest::option::of(float_type()),
        kinds in proptest::collection::vec(kind(), 1..4),
        transposed: bool,
        seed in 1u64..1 << 30,
    ) {
        let shape = [shape.0, shape.1];
        let values = numbers(seed, shape[0] * shape[1]);
        // What is stored as (in, out) is told by the model.
        let (kind, module) = if transposed { ("gpt2", "h.0.attn.c_proj") } else { ("test", "m") };
        let name = format!("{module}.weight");
        let base = Arc::new(Tensors::new(stored, [(name.clone(), shape.to_vec(), values)]));
        let adapters: Vec<_> = kinds.iter().enumerate().map(|(i, kind)| {
            (Arc::new(kind.adapter(module, shape, transposed, seed + i as u64)), kind.weight)
        }).collect();
        let source = MergedSource::new(base.clone(), adapters.clone(), &of_type(kind, &base)).unwrap();
        let found: Vec<f64> = decode(&bytes(&source.read(&name, want).unwrap()), want.unwrap_or(stored)).collect();
        let named: Vec<_> = adapters.iter().map(|(adapter, weight)| (&**adapter, f64::from(*weight))).collect();
        let expected = merged(&name, &base.values(&name), (shape[0], shape[1]), transposed, &named);
        let worst = worst(&found, &expected, want.unwrap_or(stored));
        prop_assert!(worst <= TOLERANCE, "{worst} of f32's roundings");
    }

    #[test]
    fn pairs_of_experts_change_stacked_and_single_weights_alike(
        (experts, outputs, inputs) in (1usize..5, 1usize..40, 1usize..40),
        rank in 1usize..5,
        layout in 0..5,
        weight in prop_oneof![Just(1f32), -2.0f32..2.0].prop_filter("not 0", |w| *w != 0.0),
        seed in 1u64..1 << 30,
    ) {
        // Rows of gate and up, one below another.
        let outputs = if layout == 3 { 2 * outputs } else { outputs };
        let values = numbers(seed, experts * outputs * inputs);
        let one = |expert: usize| values[expert * outputs * inputs..][..outputs * inputs].to_vec();
        let part = |expert: usize, half: usize| one(expert)[half * outputs / 2 * inputs..][..outputs / 2 * inputs].to_vec();
        let path = "model.layers.0.mlp.experts";
        let mut tensors = Vec::new();
        let (name, is_parameter) = match layout {
            // (experts, out, in) and (experts, in, out).
            0 | 1 => {
                let transposed = layout == 1;
                let shape = if transposed { vec![experts, inputs, outputs] } else { vec![experts, outputs, inputs] };
                tensors.push((format!("{path}.down_proj"), shape, values.clone()));
                (format!("{path}.down_proj"), true)
            }
            2 => {
                let name = |e: usize| format!("{path}.{e}.down_proj.weight");
                tensors.extend((0..experts).map(|e| (name(e), vec![outputs, inputs], one(e))));
                ("model.layers.0.mlp.switch_mlp.down_proj".to_owned(), false)
            }
            3 => {
                for (half, projection) in ["gate_proj", "up_proj"].iter().enumerate() {
                    let name = |e: usize| format!("{path}.{e}.{projection}.weight");
                    tensors.extend((0..experts).map(|e| (name(e), vec![outputs / 2, inputs], part(e, half))));
                }
                (format!("{path}.gate_up_proj"), true)
            }
            _ => {
                let name = |e: usize| format!("model.layers.0.block_sparse_moe.experts.{e}.w2.weight");
                tensors.extend((0..experts).map(|e| (name(e), vec![outputs, inputs], one(e))));
                (format!("{path}.down_proj"), true)
            }
        };
        let base = Arc::new(Tensors::new(FloatType::F32, tensors));
        let (a, b) = (numbers(seed ^ 1, experts * rank * inputs), numbers(seed ^ 2, experts * outputs * rank));
        let floats = |values: &[f64]| stored_floats(values, FloatType::F32);
        let mut module =
            LoraModule::of_experts(name.clone(), experts, (rank, inputs, outputs), floats(&a), floats(&b), 0.75);
        module = module.with_transposed(layout == 1);
        let module = if is_parameter { module.of_parameter() } else { module };
        let weight_name = module.weight_name();
        let adapter = Arc::new(LoraAdapter::new("x", "", vec![module]));
        let source = MergedSource::new(base.clone(), vec![(adapter.clone(), weight)], &unknown(&base)).unwrap();
        let read = |name: &str| -> Vec<f64> {
            decode(&bytes(&source.read(name, None).unwrap()), FloatType::F32).collect()
        };
        let values: Vec<f64> = values.iter().map(|v| f64::from(*v as f32)).collect();
        let transposed = layout == 1;
        let (rows, columns) = if transposed { (experts * inputs, outputs) } else { (experts * outputs, inputs) };
        let expected = merged(&weight_name, &values, (rows, columns), transposed, &[(&adapter, f64::from(weight))]);
        let found: Vec<f64> = match layout {
            0 | 1 => read(&name),
            2 => (0..experts).flat_map(|e| read(&format!("{path}.{e}.down_proj.weight"))).collect(),
            3 => (0..experts).flat_map(|e| ["gate_proj", "up_proj"].map(|p| format!("{path}.{e}.{p}.weight")))
                .flat_map(|name| read(&name)).collect(),
            _ => (0..experts)
                .flat_map(|e| read(&format!("model.layers.0.block_sparse_moe.experts.{e}.w2.weight"))).collect(),
        };
        let worst = worst(&found, &expected, FloatType::F32);
        prop_assert!(worst <= TOLERANCE, "{worst} of f32's roundings");
    }
}

#[test]
fn a_replacement_of_weight_1_is_taken_as_it_is_and_the_base_is_not_read() {
    let base = Arc::new(Tensors::new(FloatType::Bf16, [("m.weight".to_owned(), vec![3, 2], vec![f64::NAN; 6])]));
    let values = vec![1.1f32, 2.2, -3.3, 4.4, 5.5, 1e-20];
    let replaced = ReplacementTensor::new("m.weight", vec![3, 2], values.clone());
    let adapter = Arc::new(LoraAdapter::new("x", "", vec![]).with_replacements(vec![replaced]));
    let read = |weights: &[f32]| {
        let adapters = weights.iter().map(|weight| (adapter.clone(), *weight)).collect();
        let source = MergedSource::new(base.clone(), adapters, &unknown(&base)).unwrap();
        source.read("m.weight", Some(FloatType::F32)).map(|data| bytes(&data))
    };
    let exact: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(read(&[1.0]).unwrap(), exact);
    assert_eq!(read(&[0.5, 0.5]).unwrap(), exact);
    // Whatever else needs the base finds that it is not finite.
    let error = read(&[0.5]).unwrap_err().to_string();
    assert!(error.contains("`m.weight` is not finite any more in row 0"), "{error}");
}

#[test]
fn what_is_not_finite_is_named_for_every_variant() {
    let base = Arc::new(Tensors::new(
        FloatType::F32,
        [
            ("m.weight".to_owned(), vec![70, 3], vec![1.0; 210]),
            ("m.bias".to_owned(), vec![70], vec![1.0; 70]),
            ("e".to_owned(), vec![2, 3, 3], vec![1.0; 18]),
        ],
    ));
    let pair = || LoraModule::new("m", (1, 3, 70), vec![1.0; 3], vec![1.0; 70], 1.0);
    let broken = |at: usize, len: usize| {
        let mut values = vec![1.0f32; len];
        values[at] = f32::INFINITY;
        values
    };
    let adapter = |module| LoraAdapter::new("x", "", vec![module]);
    let replaced = ReplacementTensor::new("m.weight", vec![70, 3], broken(67 * 3, 210));
    let rows = ReplacedRows::new("m.weight", vec![2, 66], broken(5, 6));
    let mut b = vec![1.0; 6];
    b[4] = f32::NAN;
    let experts = LoraModule::of_experts("e", 2, (1, 3, 3), vec![1.0; 6], b, 1.0).of_parameter();
    // Row 69 of W + delta is 0, so that no magnitude gives it a length.
    let mut zero = vec![1.0; 70];
    zero[69] = -1.0;
    let zero = LoraModule::new("m", (1, 3, 70), vec![1.0; 3], zero, 1.0);
    for (label, adapter, tensor, row) in [
        ("magnitude", adapter(pair().with_magnitude(broken(65, 70))), "m.weight", "row 65"),
        ("zero norm", adapter(zero.with_magnitude(vec![1.0; 70])), "m.weight", "row 69"),
        ("bias", adapter(pair().with_bias(broken(68, 70))), "m.bias", "row 68"),
        ("replacement", LoraAdapter::new("x", "", vec![]).with_replacements(vec![replaced]), "m.weight", "row 67"),
        ("rows", LoraAdapter::new("x", "", vec![]).with_rows(vec![rows]), "m.weight", "row 66"),
        ("experts", adapter(experts), "e", "row 1 of expert 1"),
    ] {
        let source = MergedSource::new(base.clone(), vec![(Arc::new(adapter), 1.0)], &unknown(&base)).unwrap();
        let error = source.read(tensor, None).unwrap_err();
        assert_eq!(error.code(), "adapter_merge_failed", "{label}: {error}");
        for word in [&format!("`{tensor}`"), "not finite", row] {
            assert!(error.to_string().contains(word), "{label}: `{word}` is not in: {error}");
        }
    }
}
