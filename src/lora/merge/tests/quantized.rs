//! Bases in ggml's blocks: what is merged into one of their tensors is the sum with the dequantized values.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc};

use candle_core::{
    Device,
    quantized::{GgmlDType, QStorage, QTensor},
};
use llm_local_core::{
    Encoding, FloatType, GgmlType, LoraAdapter, LoraModule, ModelFormat, ModelInfo, TensorData, TensorEntry,
    TensorSource,
};
use llm_local_weights::GgufSource;
use serde_json::json;

use super::{
    MergedSource, bytes, decode,
    naive::{merged, worst},
    numbers, stored_floats,
    variants::{TOLERANCE, kinds},
};
use crate::lora::{quantized::dtype, testing::fixture};

/// A file, and its description as one whose names adapters have as they are.
pub(super) fn open(name: &str) -> (Arc<GgufSource>, ModelInfo) {
    let source = GgufSource::open(&fixture(&format!("gguf/{name}.gguf"))).unwrap();
    let format = ModelFormat::Safetensors { config: Arc::new(json!({"model_type": "test"})) };
    let info = ModelInfo::new(name, format, source.entries().to_vec());
    (Arc::new(source), info)
}

/// What candle makes of a whole tensor.
fn dequantized(source: &GgufSource, entry: &TensorEntry, dtype: GgmlDType) -> Vec<f64> {
    let data = bytes(&source.read(&entry.name, None).unwrap());
    let storage = QStorage::from_data(Cow::Owned(data), &Device::Cpu, dtype).unwrap();
    let tensor = QTensor::new(storage, &entry.shape[..]).unwrap().dequantize(&Device::Cpu).unwrap();
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
}

#[test]
fn each_block_format_is_merged_as_its_dequantized_values_are() {
    let files = [
        "mixed-q2_k",
        "mixed-q3_k_m",
        "mixed-q4_1",
        "mixed-q4_k_m",
        "mixed-q5_0",
        "mixed-q5_1",
        "mixed-q5_k_m",
        "mixed-q6_k",
        "mixed-q8_0",
        "tiny-llama-q4_0",
    ];
    let mut seen = BTreeSet::new();
    for name in files {
        let (source, info) = open(name);
        let mut entries = source.entries().to_vec();
        entries.sort_by_key(|entry| entry.elements());
        for entry in &entries {
            let (Encoding::Ggml(kind), &[rows, columns]) = (entry.encoding, &entry.shape[..]) else { continue };
            if !seen.insert(kind.to_string()) {
                continue;
            }
            let base = dequantized(&source, entry, dtype(kind).unwrap());
            let module = entry.name.strip_suffix(".weight").unwrap();
            for (seed, changed) in (1..).zip(kinds(0.5)) {
                let adapter = Arc::new(changed.adapter(module, [rows, columns], false, seed));
                let adapters = vec![(adapter.clone(), changed.weight)];
                let expected =
                    merged(&entry.name, &base, (rows, columns), false, &[(&adapter, f64::from(changed.weight))]);
                let with = MergedSource::new(source.clone(), adapters, &info).unwrap();
                for want in [None, Some(FloatType::F32), Some(FloatType::Bf16)] {
                    let data = bytes(&with.read(&entry.name, want).unwrap());
                    let want = want.unwrap_or(FloatType::F16);
                    let found: Vec<f64> = decode(&data, want).collect();
                    let worst = worst(&found, &expected, want);
                    assert!(
                        worst <= TOLERANCE,
                        "{name}: {kind} with {changed:?} in {want}: {worst} of f32's roundings"
                    );
                }
            }
        }
    }
    let all = ["Q2_K", "Q3_K", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0"];
    assert_eq!(seen.iter().map(String::as_str).collect::<Vec<_>>(), all);
}

pub(super) fn on(module: &str, [rows, columns]: [usize; 2]) -> Vec<(Arc<LoraAdapter>, f32)> {
    let floats = |seed, count| stored_floats(&numbers(seed, count), FloatType::F32);
    let module = LoraModule::new(module, (2, columns, rows), floats(1, 2 * columns), floats(2, 2 * rows), 0.5);
    vec![(Arc::new(LoraAdapter::new("hf:some/adapter", "", vec![module])), 1.0)]
}

#[test]
fn a_touched_tensor_becomes_floats_in_entries_and_description_and_the_others_stay_blocks() {
    let (source, info) = open("tiny-llama-q8_0");
    let touched = "blk.1.ffn_down.weight";
    let [rows, columns] = source.entry(touched).unwrap().shape[..] else { panic!("it is no matrix") };
    let merged = MergedSource::new(source.clone(), on("blk.1.ffn_down", [rows, columns]), &info).unwrap();
    assert_eq!(&merged.info().tensors[..], merged.entries());
    for (own, now) in source.entries().iter().zip(merged.entries()) {
        assert_eq!((&own.name, &own.shape), (&now.name, &now.shape));
        assert_eq!(merged.entry(&own.name), Some(now));
        let data = merged.read(&own.name, None).unwrap();
        if own.name == touched {
            assert_eq!(own.encoding, Encoding::Ggml(GgmlType::Q8_0));
            assert_eq!(now.encoding, Encoding::Float(FloatType::F16));
            assert!(matches!(&data, TensorData::Half(values) if values.len() == rows * columns));
        } else {
            assert_eq!(own.encoding, now.encoding);
            assert!(matches!(data, TensorData::Borrowed(_)), "{}", own.name);
        }
        assert_eq!(Some(data.byte_len()), now.stored_bytes());
    }
}

#[test]
fn formats_that_candle_cannot_dequantize_are_refused_by_name() {
    let (source, info) = open("mixed-iq4_nl");
    let entry = source.entries().iter().find(|e| e.encoding == Encoding::Ggml(GgmlType::IQ4_NL)).unwrap();
    let [rows, columns] = entry.shape[..] else { panic!("it is no matrix") };
    let module = entry.name.strip_suffix(".weight").unwrap();
    let error = MergedSource::new(source.clone(), on(module, [rows, columns]), &info).err().unwrap();
    for word in ["hf:some/adapter", &entry.name, "IQ4_NL", "candle", "keep the adapter unmerged"] {
        assert!(error.to_string().contains(word), "`{word}` is not in: {error}");
    }
}
