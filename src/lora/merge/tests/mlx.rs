//! Bases whose weights MLX packed: merged as floats, and packed again.

use std::{collections::BTreeMap, sync::Arc};

use llm_local_core::{
    Encoding, FloatType, LoraAdapter, LoraModule, TensorData, TensorSource,
    lora::{ReplacedRows, ReplacementTensor},
};
use llm_local_weights::{Checkpoint, SafetensorsSource};

use super::{
    MergedSource, bytes, decode,
    naive::{merged, worst},
    numbers, stored_floats,
    variants::{TOLERANCE, kinds},
};
use crate::lora::testing::{fixture, read_folder};

/// The module that `mlx/affine.safetensors` has dequantized by MLX.
const MODULE: &str = "model.layers.1.self_attn.v_proj";
const WEIGHT: &str = "model.layers.1.self_attn.v_proj.weight";
const SHAPE: [usize; 2] = [64, 128];

fn open(bits: u8) -> Checkpoint {
    let files = ["config.json", "model.safetensors", "model.safetensors.index.json"];
    let path = |file: &str| (file.to_owned(), fixture(&format!("models/tiny-llama-mlx-{bits}bit")).join(file));
    Checkpoint::open("tiny", &BTreeMap::from(files.map(path))).unwrap()
}

fn over(base: &Checkpoint, adapter: LoraAdapter, weight: f32) -> MergedSource {
    MergedSource::new(base.tensors.clone(), vec![(Arc::new(adapter), weight)], &base.info).unwrap()
}

/// What a tensor of floats holds.
fn values(source: &dyn TensorSource, name: &str) -> Vec<f32> {
    f32s(&source.read(name, Some(FloatType::F32)).unwrap())
}

fn f32s(data: &TensorData<'_>) -> Vec<f32> {
    decode(&bytes(data), FloatType::F32).map(|value| value as f32).collect()
}

/// What packed weights stand for, number by number.
fn dequantized(packed: &[u8], scales: &[f32], biases: &[f32], bits: usize) -> Vec<f32> {
    let number = |index: usize| match bits {
        4 => packed[index / 2] >> (4 * (index % 2)) & 15,
        _ => packed[index],
    };
    (0..packed.len() * 8 / bits).map(|i| scales[i / 64] * f32::from(number(i)) + biases[i / 64]).collect()
}

fn parts() -> [String; 2] {
    ["scales", "biases"].map(|part| format!("{MODULE}.{part}"))
}

#[test]
fn a_packed_weight_is_merged_as_the_values_that_mlx_dequantizes() {
    let mlx = SafetensorsSource::open(&fixture("mlx/affine.safetensors")).unwrap();
    for bits in [4, 8] {
        let base = open(bits);
        let own: Vec<_> = values(&mlx, &format!("model.{bits}")).into_iter().map(f64::from).collect();
        for (seed, kind) in (1..).zip(kinds(0.05)) {
            let adapter = kind.adapter(MODULE, SHAPE, false, seed);
            let expected = merged(WEIGHT, &own, SHAPE.into(), false, &[(&adapter, f64::from(kind.weight))]);
            let with = over(&base, adapter, kind.weight);
            for want in [None, Some(FloatType::F32), Some(FloatType::Bf16)] {
                let data = bytes(&with.read(WEIGHT, want).unwrap());
                let want = want.unwrap_or(FloatType::F16);
                let found: Vec<f64> = decode(&data, want).collect();
                let worst = worst(&found, &expected, want);
                assert!(worst <= TOLERANCE, "{bits} bits, {kind:?} in {want}: {worst} of f32's roundings");
            }
        }
    }
}

#[test]
fn what_is_packed_again_is_what_is_read_as_floats_and_as_near_to_the_sum_as_its_groups_allow() {
    for bits in [4u8, 8] {
        let base = open(bits);
        for (seed, kind) in (1..).zip(kinds(0.05)) {
            let with = || over(&base, kind.adapter(MODULE, SHAPE, false, seed), kind.weight);
            let sum = values(&with(), WEIGHT);
            let again = with().requantized().unwrap();
            assert_eq!(again.entries(), base.tensors.entries());
            assert_eq!(again.info().tensors, base.info.tensors);
            let TensorData::Bytes(packed) = again.read(WEIGHT, None).unwrap() else { panic!("{kind:?}") };
            assert_eq!(Some(packed.len()), again.entry(WEIGHT).unwrap().stored_bytes());
            let [scales, biases] = parts().map(|part| {
                let TensorData::Half(stored) = again.read(&part, None).unwrap() else { panic!("{part}") };
                let wide = values(&again, &part);
                assert!(stored.iter().zip(&wide).all(|(bits, value)| f32::from_bits(u32::from(*bits) << 16) == *value));
                wide
            });
            let given = dequantized(&packed, &scales, &biases, bits.into());
            assert_eq!(values(&again, WEIGHT), given, "{bits} bits, {kind:?}");
            // Each number is the nearest that its group has.
            for (index, (value, given)) in sum.iter().zip(&given).enumerate() {
                let (scale, bias) = (scales[index / 64], biases[index / 64]);
                let last = bias + scale * f32::from((1u16 << bits) - 1);
                let off = (value.clamp(bias.min(last), bias.max(last)) - given).abs();
                assert!(off <= 0.5001 * scale.abs(), "{bits} bits, {index}: {value} became {given}");
            }
            // Untouched tensors stay where they are.
            let data = again.read("model.layers.0.mlp.up_proj.weight", None).unwrap();
            assert!(matches!(data, TensorData::Borrowed(_)));
        }
    }
}

#[test]
fn a_merge_as_floats_has_no_scales_and_biases_of_what_it_changes() {
    let base = open(4);
    let with = over(&base, kinds(0.05)[0].adapter(MODULE, SHAPE, false, 1), 1.0);
    assert_eq!(with.entries(), &with.info().tensors[..]);
    assert_eq!(with.entries().len(), base.tensors.entries().len() - 2);
    let entry = with.entry(WEIGHT).unwrap();
    assert_eq!((entry.encoding, entry.parts.len()), (Encoding::Float(FloatType::F16), 0));
    for part in parts() {
        assert_eq!(with.entry(&part), None);
        let error = with.read(&part, None).unwrap_err().to_string();
        assert!(error.contains(&part) && error.contains("is of floats once an adapter is merged"), "{error}");
    }
    let other = "model.layers.0.self_attn.v_proj.scales";
    assert_eq!(with.entry(other), base.tensors.entry(other));
    assert!(with.read(other, None).is_ok());
}

#[test]
fn the_packed_bits_do_not_depend_on_the_number_of_threads() {
    let base = open(4);
    let adapter = read_folder(&fixture("adapters/tiny-llama-lora-peft")).unwrap();
    let again = over(&base, adapter, 1.0).requantized().unwrap();
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let all = again.entries().iter().map(|entry| bytes(&again.read(&entry.name, None).unwrap()));
            all.collect::<Vec<_>>()
        })
    };
    assert!(with(1) == with(3));
}

#[test]
fn a_head_that_leaves_its_packed_embedding_is_of_floats() {
    let base = open(4);
    let embedding = "model.embed_tokens";
    let rows = || {
        let values = stored_floats(&numbers(1, 2 * 128), FloatType::F32);
        let replaced = ReplacedRows::new(format!("{embedding}.weight"), vec![3, 5], values);
        LoraAdapter::new("rows", "", Vec::new()).with_rows(vec![replaced])
    };
    let head = stored_floats(&numbers(2, 896 * 128), FloatType::F32);
    let head = ReplacementTensor::new("lm_head.weight", vec![896, 128], head);
    let adapter = rows().with_replacements(vec![head]);
    for requantized in [false, true] {
        let with = over(&base, adapter.clone(), 1.0);
        let with = if requantized { with.requantized().unwrap() } else { with };
        assert!(with.report().unties_embeddings);
        let head = with.entry("lm_head.weight").unwrap();
        assert_eq!((head.encoding, head.parts.len()), (Encoding::Float(FloatType::F16), 0));
        assert!(
            matches!(with.read("lm_head.weight", None).unwrap(), TensorData::Half(values) if values.len() == 896 * 128)
        );
        let own = with.entry("model.embed_tokens.weight").unwrap().encoding;
        assert_eq!(matches!(own, Encoding::MlxAffine { .. }), requantized);
        assert_eq!(with.entries(), &with.info().tensors[..]);
    }
}

#[test]
fn a_sum_beyond_the_scales_is_an_error() {
    let base = open(4);
    let mut b = vec![0.0; SHAPE[0]];
    b[33] = 3e38;
    let module = LoraModule::new(MODULE, (1, SHAPE[1], SHAPE[0]), vec![1.0; SHAPE[1]], b, 1.0);
    let again = over(&base, LoraAdapter::new("hf:some/adapter", "", vec![module]), 1.133);
    assert!(again.read(WEIGHT, Some(FloatType::F32)).is_ok());
    let again = again.requantized().unwrap();
    for (name, want) in [(WEIGHT.to_owned(), Some(FloatType::F32)), (parts()[1].clone(), None)] {
        let error = again.read(&name, want).unwrap_err();
        assert_eq!(error.code(), "adapter_merge_failed");
        for word in ["hf:some/adapter", WEIGHT, "row 33", "scales and biases of its groups can hold"] {
            assert!(error.to_string().contains(word), "`{word}` is not in: {error}");
        }
    }
}
