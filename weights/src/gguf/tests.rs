use std::fs;

use half::f16;
use llm_local_core::{Encoding, GgmlType, IntType, model::GgufValue};
use proptest::prelude::*;

use super::*;
use crate::{
    SafetensorsSource,
    testing::{bytes_of, fixture, peak_bytes},
};

fn tiny(kind: &str) -> GgufSource {
    GgufSource::open(&fixture(&format!("gguf/tiny-llama-{kind}.gguf"))).unwrap()
}

/// The Hugging Face name of a GGUF tensor, for those whose rows are not permuted (q and k are).
fn hugging_face(name: &str) -> Option<String> {
    let name = name.strip_suffix(".weight")?;
    Some(match name.strip_prefix("blk.") {
        None => match name {
            "token_embd" => "model.embed_tokens.weight".into(),
            "output_norm" => "model.norm.weight".into(),
            _ => return None,
        },
        Some(rest) => {
            let (layer, part) = rest.split_once('.')?;
            let part = match part {
                "attn_v" => "self_attn.v_proj",
                "attn_output" => "self_attn.o_proj",
                "ffn_gate" => "mlp.gate_proj",
                "ffn_up" => "mlp.up_proj",
                "ffn_down" => "mlp.down_proj",
                "attn_norm" => "input_layernorm",
                "ffn_norm" => "post_attention_layernorm",
                _ => return None,
            };
            format!("model.layers.{layer}.{part}.weight")
        }
    })
}

fn f32s(source: &dyn TensorSource, name: &str) -> Vec<f32> {
    let data = source.read(name, Some(FloatType::F32)).unwrap();
    bytes_of(&data).as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[test]
fn shapes_encodings_and_values_are_those_of_the_checkpoint_it_was_made_from() {
    let original = SafetensorsSource::open(&fixture("models/tiny-llama/model.safetensors")).unwrap();
    for (kind, matrix) in [
        ("f16", Encoding::Float(FloatType::F16)),
        ("bf16", Encoding::Float(FloatType::Bf16)),
        ("q8_0", Encoding::Ggml(GgmlType::Q8_0)),
        ("q4_0", Encoding::Ggml(GgmlType::Q4_0)),
    ] {
        let source = tiny(kind);
        assert_eq!(source.entries().len(), original.entries().len(), "{kind}");
        let mut compared = 0;
        for entry in source.entries() {
            let Some(name) = hugging_face(&entry.name) else { continue };
            assert_eq!(entry.shape, original.entry(&name).unwrap().shape, "{kind} {name}");
            let expected = f32s(&original, &name);
            compared += 1;
            if entry.shape.len() == 1 {
                assert_eq!(entry.encoding, Encoding::Float(FloatType::F32), "{kind} {name}");
                assert_eq!(f32s(&source, &entry.name), expected, "{kind} {name}");
                continue;
            }
            // llama.cpp keeps the embedding of a small Q4_0 model in Q8_0 or Q6_K.
            if entry.encoding != matrix {
                assert_eq!((kind, entry.name.as_str()), ("q4_0", "token_embd.weight"), "{}", entry.encoding);
            }
            match entry.encoding {
                Encoding::Float(FloatType::F16) => {
                    let rounded: Vec<f32> = expected.iter().map(|&x| f16::from_f32(x).to_f32()).collect();
                    assert_eq!(f32s(&source, &entry.name), rounded, "{kind} {name}");
                }
                Encoding::Float(_) => assert_eq!(f32s(&source, &entry.name), expected, "{kind} {name}"),
                Encoding::Ggml(ggml) => {
                    let TensorData::Borrowed(bytes) = source.read(&entry.name, None).unwrap() else { panic!("copied") };
                    compare_blocks(ggml, bytes, &expected, &name);
                    let error = source.read(&entry.name, Some(FloatType::F32)).unwrap_err();
                    assert_eq!(error.code(), "unsupported");
                    assert!(error.to_string().contains(&entry.name) && error.to_string().contains("Q"), "{error}");
                }
                other => panic!("{kind} {name}: {other}"),
            }
        }
        assert_eq!(compared, 2 + 4 * 7, "{kind}");
    }
}

/// Dequantizes by the formulas of `ggml-quants.c` and bounds each error by the step of its block.
fn compare_blocks(ggml: GgmlType, bytes: &[u8], expected: &[f32], name: &str) {
    let (elements, size) = ggml.block();
    assert_eq!(bytes.len() / size * elements, expected.len());
    for (block, expected) in bytes.chunks(size).zip(expected.chunks(elements)) {
        let step = f16::from_le_bytes([block[0], block[1]]).to_f32();
        let value = |i: usize| match ggml {
            GgmlType::Q8_0 => f32::from(block[2 + i] as i8),
            GgmlType::Q4_0 if i < 16 => f32::from(block[2 + i] & 15) - 8.0,
            GgmlType::Q4_0 => f32::from(block[2 + i - 16] >> 4) - 8.0,
            other => panic!("{other}"),
        };
        for (i, x) in expected.iter().enumerate() {
            // Half a step, and a whole one at the end of Q4_0's range, which lacks +8; the step itself is rounded.
            let bound = if ggml == GgmlType::Q8_0 { 0.57 } else { 1.01 } * step.abs();
            assert!((value(i) * step - x).abs() <= bound + 1e-7, "{name} {i}: {} against {x}", value(i) * step);
        }
    }
}

#[test]
fn metadata_is_read_with_all_its_kinds() {
    let source = tiny("q8_0");
    let metadata = source.metadata();
    assert_eq!(metadata.string("general.architecture"), Some("llama"));
    assert_eq!(metadata.usize("llama.block_count"), Some(4));
    assert_eq!(metadata.usize("llama.embedding_length"), Some(128));
    assert!((metadata.f64("llama.attention.layer_norm_rms_epsilon").unwrap() - 1e-5).abs() < 1e-9);
    let tokens = metadata.strings("tokenizer.ggml.tokens").unwrap();
    assert_eq!(tokens.len(), 896);
    assert_eq!(metadata.ints("tokenizer.ggml.token_type").unwrap().len(), 896);
    assert!(!source.is_adapter());
}

/// A GGUF file, piece by piece.
#[derive(Clone)]
struct Build {
    version: u32,
    keys: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: usize,
}

fn text(s: &str) -> Vec<u8> {
    let mut out = (s.len() as u64).to_le_bytes().to_vec();
    out.extend(s.as_bytes());
    out
}

fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [text(name), kind.to_le_bytes().to_vec(), value.to_vec()].concat()
}

fn tensor(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut out = text(name);
    out.extend((dims.len() as u32).to_le_bytes());
    dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
    out.extend(kind.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out
}

impl Build {
    fn new() -> Self {
        Self {
            version: 3,
            keys: vec![key("general.architecture", 8, &text("llama"))],
            tensors: vec![tensor("a", &[2, 3], 0, 0), tensor("b", &[32], 8, 32)],
            data: 66,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        out.extend(self.keys.concat());
        out.extend(self.tensors.concat());
        out.resize(out.len().next_multiple_of(32), 0);
        out.resize(out.len() + self.data, 7);
        out
    }

    fn with_key(mut self, name: &str, kind: u32, value: &[u8]) -> Self {
        self.keys.push(key(name, kind, value));
        self
    }

    fn with_tensors(mut self, tensors: &[Vec<u8>]) -> Self {
        self.tensors = tensors.to_vec();
        self
    }
}

fn parse(bytes: &[u8]) -> Result<header::Header> {
    header::read(bytes, bytes.len() as u64, Path::new("x.gguf"))
}

#[test]
fn a_small_file_is_read_and_names_with_hyphens_are_fine() {
    let array =
        [5u32.to_le_bytes().to_vec(), 2u64.to_le_bytes().to_vec(), vec![1, 0, 0, 0, 255, 255, 255, 255]].concat();
    let build = Build::new().with_key("command-r.block_count", 4, &7u32.to_le_bytes()).with_key("A.b", 9, &array);
    let header = parse(&build.bytes()).unwrap();
    assert_eq!(header.metadata.usize("command-r.block_count"), Some(7));
    assert_eq!(header.metadata.get("A.b"), Some(&GgufValue::Ints(vec![1, -1])));
    assert_eq!(header.tensors[0].0, TensorEntry::new("a", vec![3, 2], Encoding::Float(FloatType::F32)));
    assert_eq!(header.tensors[1].0, TensorEntry::new("b", vec![32], Encoding::Ggml(GgmlType::Q8_0)));
    assert_eq!(header.tensors[1].1.end, build.bytes().len());
    let ints = Build::new().with_tensors(&[tensor("i", &[2], 26, 0), tensor("h", &[2], 30, 32)]);
    let header = parse(&ints.bytes()).unwrap();
    assert_eq!(header.tensors[0].0.encoding, Encoding::Int(IntType::I32));
    assert_eq!(header.tensors[1].0.encoding, Encoding::Float(FloatType::Bf16));
}

#[test]
fn each_defect_of_a_header_has_its_own_message() {
    let b = Build::new;
    let array = |kind: u32, n: u64| [kind.to_le_bytes().to_vec(), n.to_le_bytes().to_vec()].concat();
    let nested = (0..70).fold(vec![], |inner: Vec<u8>, _| [array(9, 1), inner].concat());
    let u32s = |n: u32| n.to_le_bytes();
    let long_key = {
        let mut k = u64::MAX.to_le_bytes().to_vec();
        k.extend([0; 20]);
        k
    };
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("empty", vec![], &["first 24 bytes", "cut off"]),
        ("magic", b"GGML................................".to_vec(), &["not a GGUF file"]),
        ("version 2", Build { version: 2, ..b() }.bytes(), &["version 2"]),
        ("big-endian", Build { version: 3u32.swap_bytes(), ..b() }.bytes(), &["big-endian"]),
        ("unknown kind", b().with_key("k", 13, &[0; 8]).bytes(), &["`k`", "13"]),
        ("bool of 2", b().with_key("k", 7, &[2]).bytes(), &["`k`", "boolean"]),
        ("not UTF-8", b().with_key("k", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]).bytes(), &["`k`", "UTF-8"]),
        ("huge text", b().with_key("k", 8, &u64::MAX.to_le_bytes()).bytes(), &["`k`", "budget"]),
        ("huge array", b().with_key("k", 9, &array(4, u64::MAX)).bytes(), &["`k`", "overflows"]),
        ("large array", b().with_key("k", 9, &array(0, 1 << 33)).bytes(), &["`k`", "budget"]),
        ("cut array", b().with_key("k", 9, &array(10, 4_000_000)).bytes(), &["`k`", "cut off"]),
        (
            "nested arrays",
            b().with_key("k", 9, &[array(9, 1), array(0, 0)].concat()).bytes(),
            &["`k`", "arrays of arrays"],
        ),
        ("deeply nested arrays", b().with_key("k", 9, &nested).bytes(), &["`k`", "nesting"]),
        (
            "key twice",
            b().with_key("general.architecture", 8, &text("x")).bytes(),
            &["`general.architecture`", "twice"],
        ),
        ("long key", Build { keys: vec![long_key], ..b() }.bytes(), &["metadata key 1 of 1"]),
        ("empty key", b().with_key("", 4, &u32s(1)).bytes(), &["metadata key 2 of 2", "0 bytes"]),
        (
            "u64 array above i64",
            b().with_key("k", 9, &[array(10, 1), vec![0xff; 8]].concat()).bytes(),
            &["`k`", "does not fit"],
        ),
        ("alignment 0", b().with_key("general.alignment", 4, &u32s(0)).bytes(), &["general.alignment"]),
        ("alignment 24", b().with_key("general.alignment", 4, &u32s(24)).bytes(), &["general.alignment"]),
        ("alignment 2^31", b().with_key("general.alignment", 4, &u32s(1 << 31)).bytes(), &["`a`", "the data has 0"]),
        ("alignment text", b().with_key("general.alignment", 8, &text("32")).bytes(), &["general.alignment"]),
        ("split", b().with_key("split.count", 2, &[3, 0]).bytes(), &["split GGUF"]),
        (
            "tensor twice",
            b().with_tensors(&[tensor("a", &[1], 0, 0), tensor("a", &[1], 0, 32)]).bytes(),
            &["`a`", "twice"],
        ),
        ("five dimensions", b().with_tensors(&[tensor("a", &[1; 5], 0, 0)]).bytes(), &["tensor 1 of 1", "5"]),
        ("no dimensions", b().with_tensors(&[tensor("a", &[], 0, 0)]).bytes(), &["tensor 1 of 1"]),
        ("overflow", b().with_tensors(&[tensor("a", &[1 << 40, 1 << 40], 0, 0)]).bytes(), &["overflows"]),
        ("overflow of bytes", b().with_tensors(&[tensor("a", &[1 << 62], 0, 0)]).bytes(), &["overflows"]),
        ("removed type", b().with_tensors(&[tensor("a", &[32], 4, 0)]).bytes(), &["tensor 1 of 1", "4"]),
        ("unknown type", b().with_tensors(&[tensor("a", &[64], 42, 0)]).bytes(), &["`a`", "type 42"]),
        ("half a block", b().with_tensors(&[tensor("a", &[16, 2], 8, 0)]).bytes(), &["not divisible"]),
        ("odd offset", b().with_tensors(&[tensor("a", &[1], 0, 4)]).bytes(), &["`a`", "multiple of the alignment 32"]),
        ("offset beyond", b().with_tensors(&[tensor("a", &[1], 0, 1 << 40)]).bytes(), &["`a`", "cut off"]),
        ("offset overflow", b().with_tensors(&[tensor("a", &[1], 0, u64::MAX - 31)]).bytes(), &["`a`", "cut off"]),
        (
            "overlap",
            b().with_tensors(&[tensor("a", &[16], 0, 0), tensor("b", &[1], 0, 32)]).bytes(),
            &["`a`", "`b`", "overlap"],
        ),
        ("short data", Build { data: 65, ..b() }.bytes(), &["`b`", "34 bytes", "has 65"]),
    ];
    for (what, bytes, words) in cases {
        let (peak, result) = peak_bytes(|| parse(&bytes));
        let error = result.expect_err(what).to_string();
        assert!(error.contains("x.gguf"), "{what}: {error}");
        assert!(words.iter().all(|w| error.contains(w)), "{what}: {error}");
        assert!(peak < 100_000, "{what}: {peak} bytes for a file of {}", bytes.len());
    }
    parse(&b().bytes()).unwrap();
}

#[test]
fn many_keys_and_many_tensors_that_are_not_there_take_no_memory() {
    for (tensors, keys) in [(u64::MAX, 0), (0, u64::MAX), (1_000_000, 0), (0, 100_000)] {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(u64::to_le_bytes(tensors));
        bytes.extend(u64::to_le_bytes(keys));
        let (peak, result) = peak_bytes(|| parse(&bytes));
        assert!(result.is_err() && peak < 10_000, "{peak}");
    }
}

#[test]
fn a_part_of_a_split_model_is_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let open = |name: &str| {
        let path = folder.path().join(name);
        fs::write(&path, Build::new().bytes()).unwrap();
        GgufSource::open(&path)
    };
    let error = open("m-00001-of-00003.gguf").unwrap_err();
    assert_eq!(error.code(), "unsupported_model_format");
    assert!(error.to_string().contains("llama-gguf-split --merge"), "{error}");
    for name in ["m-00001-of-00001.gguf", "best-of-00003.gguf", "m.gguf", "m-1-of-3.gguf"] {
        open(name).unwrap();
    }
}

/// Reads a header, which must not panic, nor take memory out of proportion; what it accepts must lie in the file.
fn survive(bytes: &[u8]) -> Result<bool, TestCaseError> {
    let (peak, result) = peak_bytes(|| parse(bytes));
    prop_assert!(peak < 200_000 + 64 * bytes.len(), "{peak} bytes for a file of {}", bytes.len());
    let Ok(header) = result else { return Ok(false) };
    for (entry, range) in header.tensors {
        prop_assert_eq!(entry.stored_bytes(), Some(range.len()));
        prop_assert!(range.start <= range.end && range.end <= bytes.len());
    }
    Ok(true)
}

/// Where the data of the smallest fixture begins: all before it is header.
fn header_length(bytes: &[u8]) -> usize {
    parse(bytes).unwrap().tensors.iter().map(|(_, range)| range.start).min().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn mutated_headers_never_panic(edits in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..6)) {
        let mut bytes = fs::read(fixture("gguf/tiny-llama-q4_0.gguf")).unwrap();
        let length = header_length(&bytes);
        for (at, value) in edits {
            bytes[at % length] = value;
        }
        survive(&bytes)?;
    }

    /// Of a small file nearly every byte is a count, a length, a type or an offset.
    #[test]
    fn mutated_small_headers_never_panic(
        edits in proptest::collection::vec((any::<usize>(), prop_oneof![any::<u8>(), Just(0xff), Just(0x7f), Just(0)]), 1..12),
    ) {
        let array = [8u32.to_le_bytes().to_vec(), 2u64.to_le_bytes().to_vec(), text("x"), text("y")].concat();
        let mut bytes = Build::new().with_key("k", 9, &array).with_key("f", 6, &[0; 4]).bytes();
        for (at, value) in edits {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        survive(&bytes)?;
    }

    #[test]
    fn truncated_files_are_refused(cut in any::<usize>()) {
        let bytes = fs::read(fixture("gguf/tiny-llama-q4_0.gguf")).unwrap();
        // Padding may follow the last tensor.
        let end = parse(&bytes).unwrap().tensors.iter().map(|(_, range)| range.end).max().unwrap();
        prop_assert!(!survive(&bytes[..cut % end])?);
    }

    #[test]
    fn arbitrary_bytes_after_the_magic_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut bytes = b"GGUF\x03\0\0\0\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0".to_vec();
        bytes.extend(tail);
        survive(&bytes)?;
    }
}
