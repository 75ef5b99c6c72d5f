//! Bases that MLX packed, of more than one block of rows and one tile, in memory: what is packed again is the whole sum,
//! packed in one go, but for rows that nothing is placed in.

use std::sync::Arc;

use llm_local_core::{
    Encoding, FloatType, LoraAdapter, LoraModule, ModelFormat, ModelInfo, Result, TensorData, TensorEntry,
    TensorSource, lora::ReplacedRows, model::Layout,
};
use serde_json::json;

use super::{MergedSource, bytes, decode, encode, numbers, stored_floats, variants::Kind};
use crate::lora::quantized::{AffineQuantizer, Packing};

/// A base of one packed tensor, with its scales and biases after it.
struct Base {
    entries: Vec<TensorEntry>,
    quantizer: AffineQuantizer,
    packed: Packed,
}

/// Packed weights, and the bytes of their scales and biases.
#[derive(Debug, Clone, PartialEq)]
struct Packed([Vec<u8>; 3]);

impl Packed {
    fn new(quantizer: &AffineQuantizer, factors: FloatType, values: &[f32]) -> Self {
        let (elements, size) = quantizer.packing().group();
        let mut packed = vec![0; values.len() / elements * size];
        quantizer.pack(values, &mut packed);
        let groups: Vec<_> = values.chunks(elements).map(|group| quantizer.factors(group)).collect();
        let all = |of: fn(&(f32, f32)) -> f32| groups.iter().flat_map(|g| encode(of(g).into(), factors)).collect();
        Self([packed, all(|group| group.0), all(|group| group.1)])
    }

    fn of(source: &dyn TensorSource, module: &str) -> Self {
        Self(["weight", "scales", "biases"].map(|p| bytes(&source.read(&format!("{module}.{p}"), None).unwrap())))
    }

    /// With the rows of `other` that `keeps` tells, of `rows`.
    fn with_rows(mut self, other: &Self, rows: usize, keeps: impl Fn(usize) -> bool) -> Self {
        for (own, other) in self.0.iter_mut().zip(&other.0) {
            let size = own.len() / rows;
            for row in (0..rows).filter(|row| keeps(*row)) {
                own[row * size..(row + 1) * size].copy_from_slice(&other[row * size..(row + 1) * size]);
            }
        }
        self
    }
}

const FACTORS: FloatType = FloatType::Bf16;

impl Base {
    fn new(module: &str, shape: &[usize], (bits, group_size): (u8, u32)) -> Self {
        let name = |part: &str| format!("{module}.{part}");
        let mut weight = TensorEntry::new(name("weight"), shape.to_vec(), Encoding::MlxAffine { bits, group_size });
        weight.parts = ["scales", "biases"].map(name).into();
        let mut groups = shape.to_vec();
        *groups.last_mut().unwrap() /= group_size as usize;
        let part = |part| TensorEntry::new(name(part), groups.clone(), Encoding::Float(FACTORS));
        let entries = vec![weight, part("scales"), part("biases")];
        let quantizer = AffineQuantizer::new(Packing::new(bits, group_size).unwrap(), FACTORS);
        // Bits, scales and biases at random, which nothing that quantizes would choose.
        let bytes = entries[0].stored_bytes().unwrap();
        let bits = numbers(5, bytes).into_iter().map(|v| ((v + 1.0) * 128.0) as u8).collect();
        let groups: usize = groups.iter().product();
        let scales = numbers(6, groups).into_iter().flat_map(|v| encode((v + 2.0) / 64.0, FACTORS)).collect();
        let biases = numbers(7, groups).into_iter().flat_map(|v| encode(v / 2.0, FACTORS)).collect();
        Self { entries, quantizer, packed: Packed([bits, scales, biases]) }
    }

    /// What a sum in f32 is once it is packed.
    fn pack(&self, sum: &dyn TensorSource) -> Packed {
        let data = bytes(&sum.read(&self.entries[0].name, Some(FloatType::F32)).unwrap());
        let values: Vec<_> = decode(&data, FloatType::F32).map(|value| value as f32).collect();
        Packed::new(&self.quantizer, FACTORS, &values)
    }

    fn info(&self) -> ModelInfo {
        let format = ModelFormat::Safetensors { config: Arc::new(json!({"model_type": "test"})) };
        ModelInfo::new("base", format, self.entries.clone())
    }
}

impl TensorSource for Base {
    fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn read(&self, name: &str, want: Option<FloatType>) -> Result<TensorData<'_>> {
        let index = self.entries.iter().position(|entry| entry.name == name).unwrap();
        let stored = &self.packed.0[index];
        Ok(match want.filter(|want| *want != FACTORS) {
            None => TensorData::Borrowed(stored),
            Some(want) => {
                assert_eq!((want, index == 0), (FloatType::F32, false), "`{name}` is read as it is stored");
                TensorData::F32(decode(stored, FACTORS).map(|value| value as f32).collect())
            }
        })
    }
}

const PACKINGS: [(u8, u32); 8] = [(2, 32), (3, 64), (4, 32), (4, 64), (4, 128), (5, 128), (6, 64), (8, 32)];

fn pair() -> Kind {
    Kind {
        rank: 3,
        stored: FloatType::F32,
        scale: 0.2,
        weight: 0.75,
        has_pair: true,
        has_magnitude: false,
        replaces: false,
        rows: Vec::new(),
    }
}

#[test]
fn matrices_of_several_blocks_and_tiles_are_packed_as_their_whole_sum_is() {
    let [rows, columns] = [70, 1280];
    for packing in PACKINGS {
        let base = Arc::new(Base::new("m", &[rows, columns], packing));
        for kind in [pair(), Kind { has_magnitude: true, ..pair() }, Kind { rows: vec![3, 69], ..pair() }] {
            let adapter = Arc::new(kind.adapter("m", [rows, columns], false, 9));
            let with = || MergedSource::new(base.clone(), vec![(adapter.clone(), kind.weight)], &base.info()).unwrap();
            let expected = base.pack(&with());
            assert!(expected != base.packed);
            assert!(Packed::of(&with().requantized().unwrap(), "m") == expected, "{packing:?} with {kind:?}");
        }
    }
}

#[test]
fn stacked_experts_are_packed_as_their_whole_sum_is() {
    let (experts, rows, columns) = (3, 70, 256);
    for packing in PACKINGS {
        let base = Arc::new(Base::new("m", &[experts, rows, columns], packing));
        let rank = 2;
        let some = |seed, count| stored_floats(&numbers(seed, count), FloatType::F32);
        let (a, b) = (some(1, experts * rank * columns), some(2, experts * rows * rank));
        let module = LoraModule::of_experts("m", experts, (rank, columns, rows), a, b, 0.2);
        let adapter = Arc::new(LoraAdapter::new("experts", "", vec![module]));
        let with = || MergedSource::new(base.clone(), vec![(adapter.clone(), 1.0)], &base.info()).unwrap();
        let expected = base.pack(&with());
        assert!(expected != base.packed);
        assert!(Packed::of(&with().requantized().unwrap(), "m") == expected, "{packing:?}");
    }
}

#[test]
fn rows_that_an_adapter_does_not_list_keep_their_bits_scales_and_biases() {
    let [rows, columns] = [70, 1280];
    let changed = [0, 33, 69];
    for packing in PACKINGS {
        let base = Arc::new(Base::new("m", &[rows, columns], packing));
        let values = stored_floats(&numbers(3, changed.len() * columns), FloatType::Bf16);
        let replaced = ReplacedRows::new("m.weight", changed.to_vec(), values);
        let adapter = Arc::new(LoraAdapter::new("rows", "", Vec::new()).with_rows(vec![replaced]));
        let with = || MergedSource::new(base.clone(), vec![(adapter.clone(), 1.0)], &base.info()).unwrap();
        let again = base.pack(&with());
        let expected = again.clone().with_rows(&base.packed, rows, |row| !changed.contains(&row));
        assert!(again != expected, "{packing:?}: packing is idempotent here, and tells nothing");
        let requantized = with().requantized().unwrap();
        assert!(Packed::of(&requantized, "m") == expected, "{packing:?}");
        // As floats too, they are what they were.
        let data = |source: &MergedSource| bytes(&source.read("m.weight", Some(FloatType::F32)).unwrap());
        let (kept, sum) = (data(&requantized), data(&with()));
        for row in (0..rows).filter(|row| !changed.contains(row)) {
            let bytes = row * columns * 4..(row + 1) * columns * 4;
            assert!(kept[bytes.clone()] == sum[bytes], "{packing:?}, row {row}");
        }
    }
}

#[test]
fn keys_and_values_of_a_fused_projection_keep_their_bits_where_queries_alone_change() {
    let config = json!({
        "model_type": "phi3", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 10, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32, "tie_word_embeddings": false, "rope_theta": 10000.0,
    });
    let module = "model.layers.0.self_attn.qkv_proj";
    let [queries, rows, columns] = [64, 128, 64];
    let base = Arc::new(Base::new(module, &[rows, columns], (4, 32)));
    let format = ModelFormat::Safetensors { config: Arc::new(config) };
    let decoder = ModelInfo::new("phi3", format.clone(), Vec::new()).decoder.unwrap();
    let others = decoder.base_tensors(Layout::HuggingFace).into_iter().filter(|t| !t.name.contains("qkv_proj"));
    let others = others.map(|t| TensorEntry::new(t.name, t.shape, Encoding::Float(FACTORS)));
    let info = ModelInfo::new("phi3", format, base.entries.iter().cloned().chain(others).collect::<Vec<_>>());
    let adapter = Arc::new(pair().adapter("model.layers.0.self_attn.q_proj", [queries, columns], false, 4));
    let with = || MergedSource::new(base.clone(), vec![(adapter.clone(), 1.0)], &info).unwrap();
    let again = base.pack(&with());
    let expected = again.clone().with_rows(&base.packed, rows, |row| row >= queries);
    assert!(again != expected);
    assert!(Packed::of(&with().requantized().unwrap(), module) == expected);
}

#[test]
fn scales_and_biases_beyond_the_type_that_they_are_asked_for_in_are_an_error() {
    let base = Arc::new(Base::new("m", &[70, 64], (4, 32)));
    let mut b = vec![0.0; 70];
    b[66] = 1e5;
    let module = LoraModule::new("m", (1, 64, 70), vec![1.0; 64], b, 1.0);
    let adapter = Arc::new(LoraAdapter::new("hf:some/adapter", "", vec![module]));
    let again = MergedSource::new(base.clone(), vec![(adapter, 1.0)], &base.info()).unwrap().requantized().unwrap();
    for want in [None, Some(FloatType::F32), Some(FloatType::Bf16)] {
        again.read("m.biases", want).unwrap();
    }
    let error = again.read("m.biases", Some(FloatType::F16)).unwrap_err();
    assert_eq!(error.code(), "adapter_merge_failed");
    for word in ["hf:some/adapter", "`m.weight`", "row 66", "biases", "beyond f16", "read them as bf16"] {
        assert!(error.to_string().contains(word), "`{word}` is not in: {error}");
    }
}
