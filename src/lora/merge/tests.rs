use std::sync::Arc;

use half::{bf16, f16};
use llm_local_core::{
    Encoding, FloatType, LoraAdapter, LoraModule, ModelFormat, ModelInfo, Result, TensorData, TensorEntry,
    TensorSource, lora::Floats,
};
use proptest::prelude::*;
use serde_json::json;

mod affine;
mod into;
mod layouts;
mod linear;
mod mlx;
mod naive;
mod peft;
#[cfg(feature = "candle")]
mod quantized;
#[cfg(feature = "candle")]
mod requantized;
mod tied;
mod variants;

use super::MergedSource;
use crate::lora::floats;
use crate::lora::testing::{Unreadable, fixture, read_folder, tiny_llama, tiny_llama_info};

/// A base of one touched matrix `m.weight` and one vector `n.weight`, whose bytes are unaligned if they are borrowed.
struct Base {
    entries: Vec<TensorEntry>,
    bytes: Vec<u8>,
    owned: bool,
}

const NORM: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

impl Base {
    fn new(values: &[f64], shape: [usize; 2], stored: FloatType, owned: bool) -> Self {
        let matrix = TensorEntry::new("m.weight", shape.to_vec(), Encoding::Float(stored));
        let norm = TensorEntry::new("n.weight", vec![2], Encoding::Float(FloatType::F32));
        let mut bytes = vec![0];
        values.iter().for_each(|v| bytes.extend(encode(*v, stored)));
        Self { entries: vec![matrix, norm], bytes, owned }
    }

    fn info(&self) -> ModelInfo {
        let config = Arc::new(json!({"model_type": "test"}));
        ModelInfo::new("base", ModelFormat::Safetensors { config }, self.entries.clone())
    }
}

impl TensorSource for Base {
    fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn read(&self, name: &str, want: Option<FloatType>) -> Result<TensorData<'_>> {
        if name == "n.weight" {
            return Ok(TensorData::Borrowed(&NORM));
        }
        assert_eq!((name, want), ("m.weight", None), "the merge reads the base as it is stored");
        let bytes = &self.bytes[1..];
        let Encoding::Float(stored) = self.entries[0].encoding else { unreachable!() };
        Ok(match (self.owned, stored) {
            (false, _) => TensorData::Borrowed(bytes),
            (true, FloatType::F32) => TensorData::F32(decode(bytes, stored).map(|v| v as f32).collect()),
            (true, FloatType::F64) => TensorData::Bytes(bytes.to_vec()),
            (true, _) => TensorData::Half(bytes.chunks(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect()),
        })
    }
}

fn encode(value: f64, to: FloatType) -> Vec<u8> {
    match to {
        FloatType::F64 => value.to_le_bytes().to_vec(),
        FloatType::F32 => (value as f32).to_le_bytes().to_vec(),
        FloatType::F16 => f16::from_f64(value).to_le_bytes().to_vec(),
        _ => bf16::from_f64(value).to_le_bytes().to_vec(),
    }
}

fn decode(bytes: &[u8], from: FloatType) -> impl Iterator<Item = f64> {
    bytes.chunks(from.size()).map(move |b| match from {
        FloatType::F64 => f64::from_le_bytes(b.try_into().unwrap()),
        FloatType::F32 => f64::from(f32::from_le_bytes(b.try_into().unwrap())),
        FloatType::F16 => f16::from_le_bytes(b.try_into().unwrap()).to_f64(),
        _ => bf16::from_le_bytes(b.try_into().unwrap()).to_f64(),
    })
}

fn bytes(data: &TensorData<'_>) -> Vec<u8> {
    match data {
        TensorData::Borrowed(b) => b.to_vec(),
        TensorData::Bytes(b) => b.clone(),
        TensorData::F32(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
        TensorData::Half(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
        other => panic!("unexpected {other:?}"),
    }
}

fn stored_floats(values: &[f64], stored: FloatType) -> Floats {
    match stored {
        FloatType::F16 => Floats::F16(values.iter().map(|v| f16::from_f64(*v).to_bits()).collect()),
        FloatType::Bf16 => Floats::Bf16(values.iter().map(|v| bf16::from_f64(*v).to_bits()).collect()),
        _ => Floats::F32(values.iter().map(|v| *v as f32).collect()),
    }
}

/// Numbers in [-1, 1) that are the same for one seed (Knuth's MMIX generator).
fn numbers(seed: u64, count: usize) -> Vec<f64> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// One adapter on `m`: rank, the type of its factors, scale and weight.
#[derive(Debug, Clone)]
struct Part {
    rank: usize,
    stored: FloatType,
    scale: f64,
    weight: f32,
}

fn float_type() -> impl Strategy<Value = FloatType> {
    prop_oneof![Just(FloatType::F32), Just(FloatType::F16), Just(FloatType::Bf16)]
}

fn part() -> impl Strategy<Value = Part> {
    let scale = prop_oneof![0.01..4.0f64, -4.0..-0.01f64];
    let weight = prop_oneof![0.1f32..2.0, -2.0f32..-0.1];
    (1usize..40, float_type(), scale, weight).prop_map(|(rank, stored, scale, weight)| Part {
        rank,
        stored,
        scale,
        weight,
    })
}

/// Largest error of the f32 sum, in units of f32's rounding (2^-24) times the sum of the absolute values of all terms.
///
/// Four roundings (base, A or B times the scale, product, last addition) and one for each addition of the product bound
/// it; measured over 20,000 cases with ranks that sum up to 117 it was 10.2. What the type asked for rounds comes on top.
fn tolerance(parts: &[Part]) -> f64 {
    let rank: usize = parts.iter().map(|p| p.rank).sum();
    (4.0 + rank as f64).min(16.0)
}

/// Half of the distance between neighbours, relative to the value; and below it, the smallest distance.
fn rounding(to: FloatType) -> (f64, f64) {
    match to {
        FloatType::F16 => (2f64.powi(-11), 2f64.powi(-25)),
        FloatType::Bf16 => (2f64.powi(-8), 2f64.powi(-134)),
        _ => (0.0, 0.0),
    }
}

fn check(shape: [usize; 2], types: (FloatType, Option<FloatType>), parts: &[Part], owned: bool, seed: u64) -> f64 {
    let ([rows, columns], (stored, want)) = (shape, types);
    let base = Arc::new(Base::new(&numbers(seed, rows * columns), shape, stored, owned));
    let w: Vec<f64> = decode(&base.bytes[1..], stored).collect();
    let (mut expected, mut magnitude) = (w.clone(), w.iter().map(|v| v.abs()).collect::<Vec<_>>());
    let mut adapters = Vec::new();
    for (i, part) in parts.iter().enumerate() {
        let Part { rank, stored, scale, weight } = *part;
        let a = stored_floats(&numbers(seed ^ (2 * i as u64 + 1), rank * columns), stored);
        let b = stored_floats(&numbers(seed ^ (2 * i as u64 + 2), rows * rank), stored);
        let wide = |values: &Floats| {
            let mut wide = vec![0.0; values.len()];
            floats::scale_into(values, 0, 1.0, &mut wide);
            wide.into_iter().map(f64::from).collect::<Vec<_>>()
        };
        let (a64, b64) = (wide(&a), wide(&b));
        for row in 0..rows {
            for column in 0..columns {
                for k in 0..rank {
                    let term = scale * f64::from(weight) * b64[row * rank + k] * a64[k * columns + column];
                    expected[row * columns + column] += term;
                    magnitude[row * columns + column] += term.abs();
                }
            }
        }
        let module = LoraModule::new("m", (rank, columns, rows), a, b, scale);
        adapters.push((Arc::new(LoraAdapter::new(format!("adapter {i}"), "", vec![module])), weight));
    }
    let merged = MergedSource::new(base.clone(), adapters, &base.info()).unwrap();
    let data = merged.read("m.weight", want).unwrap();
    let want = want.unwrap_or(stored);
    match (&data, want) {
        (TensorData::F32(_), FloatType::F32) | (TensorData::Bytes(_), FloatType::F64) => {}
        (TensorData::Half(_), FloatType::F16 | FloatType::Bf16) => {}
        _ => panic!("{want} came as {data:?}"),
    }
    let found: Vec<f64> = decode(&bytes(&data), want).collect();
    assert_eq!(found.len(), expected.len());
    let (relative, absolute) = rounding(want);
    let mut worst = 0f64;
    for ((found, expected), magnitude) in found.iter().zip(&expected).zip(&magnitude) {
        let beyond = (found - expected).abs() - relative * expected.abs().max(found.abs()) - absolute;
        worst = worst.max(beyond / (magnitude * 2f64.powi(-24)));
    }
    worst
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn a_merge_is_the_sum_in_f64_within_the_rounding_of_f32_and_of_the_type_asked_for(
        shape in (1usize..150, 1usize..150),
        wide in proptest::option::weighted(0.2, 500usize..1200),
        stored in prop_oneof![4 => float_type(), 1 => Just(FloatType::F64)],
        want in proptest::option::of(prop_oneof![4 => float_type(), 1 => Just(FloatType::F64)]),
        parts in proptest::collection::vec(part(), 1..4),
        owned: bool,
        seed: u64,
    ) {
        let shape = match wide { Some(columns) => [shape.0.min(70), columns], None => [shape.0, shape.1] };
        let worst = check(shape, (stored, want), &parts, owned, seed);
        prop_assert!(worst <= tolerance(&parts), "{worst} of f32's roundings");
    }
}

#[test]
fn an_untouched_tensor_is_the_base_s_own_bytes_in_place() {
    let base = Arc::new(Base::new(&[0.0; 6], [2, 3], FloatType::F32, false));
    let module = LoraModule::new("m", (1, 3, 2), vec![1.0; 3], vec![1.0; 2], 1.0);
    let adapters = vec![(Arc::new(LoraAdapter::new("x", "", vec![module])), 1.0)];
    let merged = MergedSource::new(base.clone(), adapters, &base.info()).unwrap();
    for want in [None, Some(FloatType::F32), Some(FloatType::F16)] {
        let Ok(TensorData::Borrowed(found)) = merged.read("n.weight", want) else { panic!("it is not borrowed") };
        assert!(std::ptr::eq(found, &NORM[..]));
    }
    assert!(std::ptr::eq(merged.entries(), base.entries()));
    assert_eq!(merged.entry("m.weight"), base.entry("m.weight"));
    assert!(merged.read("m.weight", None).is_ok());
}

#[test]
fn a_merged_fixture_differs_from_its_base_in_its_targets_alone() {
    let base = Arc::new(tiny_llama());
    let info = tiny_llama_info(|_| {});
    let adapter = Arc::new(read_folder(&fixture("adapters/tiny-llama-lora-qv-last2")).unwrap());
    let merged = MergedSource::new(base.clone(), vec![(adapter.clone(), 1.0)], &info).unwrap();
    for entry in base.entries() {
        let touched = adapter.module(entry.name.strip_suffix(".weight").unwrap()).is_some();
        let (plain, with) = (base.read(&entry.name, None).unwrap(), merged.read(&entry.name, None).unwrap());
        assert_eq!(matches!(with, TensorData::Borrowed(_)), !touched, "{}", entry.name);
        assert_eq!(bytes(&plain) != bytes(&with), touched, "{}", entry.name);
    }
}

#[test]
fn a_touched_tensor_is_not_rounded_to_the_base_s_type_first() {
    // 1 + 2^-10 is lost in bfloat16, whose next value after 1 is 1 + 2^-7.
    let base = Arc::new(Base::new(&[1.0], [1, 1], FloatType::Bf16, false));
    let module = LoraModule::new("m", (1, 1, 1), vec![1.0], vec![1.0], 2f64.powi(-10));
    let adapters = vec![(Arc::new(LoraAdapter::new("x", "", vec![module])), 1.0)];
    let merged = MergedSource::new(base.clone(), adapters, &base.info()).unwrap();
    let read = |want| decode(&bytes(&merged.read("m.weight", want).unwrap()), want.unwrap_or(FloatType::Bf16)).next();
    assert_eq!(read(None), Some(1.0));
    assert_eq!(read(Some(FloatType::F16)), Some(1.0 + 2f64.powi(-10)));
    assert_eq!(read(Some(FloatType::F32)), Some(1.0 + 2f64.powi(-10)));
}

#[test]
fn the_bits_do_not_depend_on_the_number_of_threads() {
    let base = Arc::new(Base::new(&numbers(1, 300 * 700), [300, 700], FloatType::F16, false));
    let (a, b) =
        (stored_floats(&numbers(2, 8 * 700), FloatType::F32), stored_floats(&numbers(3, 300 * 8), FloatType::F32));
    let module = LoraModule::new("m", (8, 700, 300), a, b, 0.5);
    let adapters = vec![(Arc::new(LoraAdapter::new("x", "", vec![module])), 1.0)];
    let merged = MergedSource::new(base.clone(), adapters, &base.info()).unwrap();
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| bytes(&merged.read("m.weight", Some(FloatType::F32)).unwrap()))
    };
    assert_eq!(with(1), with(3));
}

#[test]
fn a_sum_that_is_not_finite_is_an_error_that_names_the_tensor_and_the_adapter() {
    for (value, stored, want, factor) in [
        (60000.0, FloatType::F16, FloatType::F16, 6000.0),
        (3e38, FloatType::Bf16, FloatType::Bf16, 3e38),
        (3e38, FloatType::F32, FloatType::F32, 3e38),
        (3e38, FloatType::F32, FloatType::F64, 3e38),
        (1.0, FloatType::F32, FloatType::F16, 70000.0),
        (f64::NAN, FloatType::F32, FloatType::Bf16, 1.0),
        (f64::INFINITY, FloatType::F16, FloatType::F32, 1.0),
    ] {
        let mut values = vec![1.0; 100 * 3];
        values[3 * 70 + 1] = value;
        let base = Arc::new(Base::new(&values, [100, 3], stored, false));
        let mut b = vec![0.0; 100];
        b[70] = 1.0;
        let module = LoraModule::new("m", (1, 3, 100), vec![factor; 3], b, 1.0);
        let adapters = vec![(Arc::new(LoraAdapter::new("hf:some/adapter", "", vec![module])), 1.0)];
        let merged = MergedSource::new(base.clone(), adapters, &base.info()).unwrap();
        let error = merged.read("m.weight", Some(want)).unwrap_err();
        assert_eq!(error.code(), "adapter_merge_failed", "{stored} {want}: {error}");
        for word in ["`m.weight`", "not finite", "row 70", "hf:some/adapter"] {
            assert!(error.to_string().contains(word), "{stored} {want}: `{word}` is not in: {error}");
        }
    }
}

#[test]
fn a_base_that_is_not_what_its_description_says_is_an_error() {
    let base = Base::new(&[0.0; 6], [2, 3], FloatType::F32, false);
    let info = base.info();
    let module = LoraModule::new("m", (1, 3, 2), vec![1.0; 3], vec![1.0; 2], 1.0);
    let adapters = || vec![(Arc::new(LoraAdapter::new("x", "", vec![module.clone()])), 1.0)];
    let other = Arc::new(Base::new(&[0.0; 6], [3, 2], FloatType::F32, false));
    let error = MergedSource::new(other, adapters(), &info).err().unwrap();
    assert!(error.to_string().contains("`m.weight` has the shape (3, 2)"), "{error}");
    let none = Arc::new(Unreadable(Arc::new([])));
    let error = MergedSource::new(none, adapters(), &info).err().unwrap();
    assert!(error.to_string().contains("`m.weight` is missing"), "{error}");
    let mut short = base;
    short.bytes.pop();
    let merged = MergedSource::new(Arc::new(short), adapters(), &info).unwrap();
    let error = merged.read("m.weight", None).unwrap_err();
    assert_eq!(error.code(), "load_failed");
    assert!(error.to_string().contains("23 bytes; expected 24"), "{error}");
}
