use std::{collections::BTreeMap, path::PathBuf};

use llm_local_core::{FloatType, TensorData};
use serde_json::json;

use super::*;
use crate::{Checkpoint, testing::fixture};

const UP: &str = "model.layers.0.mlp.up_proj";

fn open(name: &str) -> Checkpoint {
    let files = ["config.json", "model.safetensors", "model.safetensors.index.json"];
    let path = |file: &str| (file.to_owned(), fixture(&format!("models/{name}")).join(file));
    let files: BTreeMap<String, PathBuf> = files.into_iter().map(path).collect();
    Checkpoint::open(name, &files).unwrap()
}

#[test]
fn quantized_modules_of_a_folder_have_the_shapes_of_the_dense_model_and_name_their_parts() {
    let files = ["config.json", "model.safetensors"];
    let path = |file: &str| (file.to_owned(), fixture("models/tiny-llama").join(file));
    let dense = Checkpoint::open("dense", &files.into_iter().map(path).collect()).unwrap();
    for (name, bits) in [("tiny-llama-mlx-4bit", 4u8), ("tiny-llama-mlx-8bit", 8)] {
        let found = open(name);
        assert_eq!(found.info.decoder.as_ref().unwrap(), dense.info.decoder.as_ref().unwrap());
        assert_eq!(*found.info.tensors, *found.tensors.entries());
        let float = Encoding::Float(FloatType::Bf16);
        let mut quantized = 0;
        for own in dense.tensors.entries() {
            let entry = found.tensors.entry(&own.name).unwrap();
            assert_eq!(entry.shape, own.shape, "{}", own.name);
            let data = found.tensors.read(&own.name, None).unwrap();
            assert_eq!(Some(data.byte_len()), entry.stored_bytes(), "{}", own.name);
            if own.shape.len() < 2 {
                assert_eq!((entry.encoding, entry.parts.len()), (float, 0));
                continue;
            }
            quantized += 1;
            assert_eq!(entry.encoding, Encoding::MlxAffine { bits, group_size: 64 }, "{}", own.name);
            let module = own.name.strip_suffix(".weight").unwrap();
            assert_eq!(entry.parts, [format!("{module}.scales"), format!("{module}.biases")]);
            for part in &entry.parts {
                let part = found.tensors.entry(part).unwrap();
                assert_eq!((&part.shape[..], part.encoding), (&[own.shape[0], own.shape[1] / 64][..], float));
                assert!(found.tensors.read(&part.name, Some(FloatType::F32)).is_ok());
            }
        }
        assert_eq!(quantized, 29);
        assert_eq!(found.tensors.entries().len(), dense.tensors.entries().len() + 2 * quantized);
        let error = found.tensors.read(&format!("{UP}.weight"), Some(FloatType::F32)).unwrap_err();
        assert!(error.to_string().contains("read it as stored"), "{error}");
        assert!(matches!(found.tensors.read(&format!("{UP}.weight"), None), Ok(TensorData::Borrowed(_))));
    }
}

/// A packed module `a` of three rows and 128 columns in 4 bits, and a plain one.
fn entries() -> Vec<TensorEntry> {
    let scales = Encoding::Float(FloatType::F16);
    vec![
        TensorEntry::new("a.weight", vec![3, 16], Encoding::Int(IntType::U32)),
        TensorEntry::new("a.scales", vec![3, 2], scales),
        TensorEntry::new("a.biases", vec![3, 2], scales),
        TensorEntry::new("b.weight", vec![3, 16], scales),
    ]
}

fn unpacked(quantization: Value, change: impl FnOnce(&mut Vec<TensorEntry>)) -> Result<Vec<TensorEntry>> {
    let mut entries = entries();
    change(&mut entries);
    unpack("the-model", &json!({ "quantization": quantization }), &mut entries).map(|()| entries)
}

fn sizes(bits: u8, group_size: u32) -> Value {
    json!({ "bits": bits, "group_size": group_size })
}

#[test]
fn sizes_of_a_module_are_its_own_and_stacked_experts_have_theirs() {
    let plain = unpacked(sizes(4, 64), |_| ()).unwrap();
    assert_eq!(plain[0].shape, [3, 128]);
    assert_eq!(plain[0].stored_bytes(), Some(3 * 16 * 4));
    assert_eq!(plain[3], entries()[3]);
    let own = json!({ "bits": 4, "group_size": 64, "a": sizes(8, 32), "b": false });
    let own = unpacked(own, |_| ()).unwrap();
    assert_eq!((&own[0].shape[..], own[0].encoding), (&[3, 64][..], Encoding::MlxAffine { bits: 8, group_size: 32 }));
    let stacked = unpacked(sizes(4, 64), |entries| {
        entries.iter_mut().for_each(|entry| entry.shape.insert(0, 5));
    });
    assert_eq!(stacked.unwrap()[0].shape, [5, 3, 128]);
    // 3 bits: 128 weights in 12 words.
    let three = unpacked(sizes(3, 64), |entries| entries[0].shape[1] = 12).unwrap();
    assert_eq!((&three[0].shape[..], three[0].stored_bytes()), (&[3, 128][..], Some(3 * 12 * 4)));
}

#[test]
fn a_config_that_says_nothing_of_it_leaves_tensors_as_they_are() {
    let mut left = entries();
    for config in [json!({}), json!({ "quantization": { "mode": "mxfp4", "bits": 4, "group_size": 32 } })] {
        unpack("m", &config, &mut left).unwrap();
        assert_eq!(left, entries());
    }
}

#[test]
fn tensors_that_do_not_go_together_are_named() {
    type Change = fn(&mut Vec<TensorEntry>);
    let table: [(Value, Change, &[&str]); 10] = [
        (sizes(8, 64), |_| (), &["`a`", "(3, 16)", "(3, 2)", "8 bits, group 64"]),
        (sizes(4, 32), |_| (), &["`a`", "4 bits, group 32"]),
        (sizes(4, 64), |e| e[1].shape[0] = 4, &["`a`", "`scales` of the shape (4, 2)", "(3, 2)"]),
        (
            sizes(4, 64),
            |e| e[2].encoding = Encoding::Float(FloatType::F32),
            &["`a`", "f16", "f32", "one shape and type"],
        ),
        (sizes(4, 64), |e| e.truncate(2), &["`a`", "no `biases`"]),
        (sizes(4, 64), |e| drop(e.remove(0)), &["`a`", "no `weight`"]),
        (sizes(4, 64), |e| drop(e.drain(1..3)), &["`a`", "no `scales`"]),
        (json!({ "bits": 4, "group_size": 64, "a": false }), |_| (), &["`a`", "not quantized"]),
        (json!({ "bits": 4, "group_size": 64, "b": true }), |_| (), &["`b`", "but has no `scales`"]),
        (sizes(4, 64), |e| e[0].encoding = Encoding::Int(IntType::U8), &["`a`", "stored as u8"]),
    ];
    for (quantization, change, words) in table {
        let error = unpacked(quantization.clone(), change).unwrap_err();
        assert_eq!(error.code(), "load_failed");
        let text = error.to_string();
        for word in words.iter().chain(&["the-model", "convert it anew"]) {
            assert!(text.contains(word), "{quantization}: `{word}` is not in: {text}");
        }
    }
}
