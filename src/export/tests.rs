use std::{cell::RefCell, collections::BTreeMap, fs, sync::Arc};

use llm_local_core::{FloatType, GgmlType, IntType, LoraAdapter, LoraModule, TensorEntry};
use llm_local_testkit::fakes::MemoryTensorSource;
use llm_local_weights::Checkpoint;
use serde_json::{Value, json};

use super::*;
use crate::lora::MergedSource;

fn source() -> MemoryTensorSource {
    let values = |n: usize| (0..n).map(|i| i as f32 - 2.5).collect::<Vec<_>>();
    MemoryTensorSource::new()
        .with_floats("a.weight", &[3, 4], FloatType::Bf16, &values(12))
        .with_floats("b.weight", &[5], FloatType::F32, &values(5))
        .with_bytes(TensorEntry::new("c", vec![3], llm_local_core::Encoding::Int(IntType::U8)), vec![1, 2, 3])
        .with_floats("d.weight", &[40], FloatType::F32, &values(40))
        .with_floats("e.weight", &[2, 2], FloatType::F16, &values(4))
}

fn info(config: Value, tensors: &dyn TensorSource) -> ModelInfo {
    ModelInfo::new("m", ModelFormat::Safetensors { config: Arc::new(config) }, tensors.entries().to_vec())
}

fn export(
    most: u64,
    dtype: ComputeDtype,
    config: Value,
    tensors: &dyn TensorSource,
    into: &Path,
) -> Result<(Exported, Vec<(usize, usize)>)> {
    let (info, text, heard) = (info(config, tensors), TextFiles::default(), RefCell::new(Vec::new()));
    let model = Export { info: &info, tensors, text: &text, dtype, merged_tensors: 0 };
    let told = |done, total| heard.borrow_mut().push((done, total));
    let watch = Watch { wanted: &Wanted::new(), told: &told, last: &|| Ok(()) };
    let exported = write_in_files_of(most, &model, into, &watch)?;
    Ok((exported, heard.into_inner()))
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn tensors_are_spread_over_files_with_an_index_and_read_back_as_they_were() {
    let (source, folder) = (source(), tempfile::tempdir().unwrap());
    // 24, 20, 3, 160 and 8 bytes: the fourth is larger than a file, and stands alone.
    for (most, sizes) in [(1000, vec![215]), (215, vec![215]), (47, vec![47, 160, 8]), (24, vec![24, 23, 160, 8])] {
        let into = folder.path().join(most.to_string());
        let (exported, heard) = export(most, ComputeDtype::Auto, json!({}), &source, &into).unwrap();
        assert_eq!((exported.tensors, exported.weight_bytes), (5, 215));
        assert_eq!(heard, [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]);
        let files: BTreeMap<_, _> = exported.files.iter().map(|name| (name.clone(), into.join(name))).collect();
        let weights: Vec<_> = exported.files.iter().filter(|name| name.ends_with(".safetensors")).collect();
        let all = sizes.len();
        let names: Vec<_> = match all {
            1 => vec!["model.safetensors".to_owned()],
            _ => (1..=all).map(|i| format!("model-{i:05}-of-{all:05}.safetensors")).collect(),
        };
        assert_eq!(weights, names.iter().collect::<Vec<_>>());
        for (name, size) in names.iter().zip(&sizes) {
            let bytes = fs::read(&files[name]).unwrap();
            let head = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            assert_eq!((bytes.len() - head, head % 8), (*size, 0));
        }
        if all > 1 {
            let index = json_of(&into.join("model.safetensors.index.json"));
            assert_eq!(index["metadata"]["total_size"], 215);
            assert_eq!(index["weight_map"]["d.weight"], json!(names[all - 2]));
            assert_eq!(index["weight_map"].as_object().unwrap().len(), 5);
        }
        let read = Checkpoint::open("m", &files).unwrap();
        for entry in source.entries() {
            assert_eq!(read.tensors.entry(&entry.name), Some(entry));
            let bytes = |source: &dyn TensorSource| match source.read(&entry.name, None).unwrap() {
                llm_local_core::TensorData::Borrowed(bytes) => bytes.to_vec(),
                other => panic!("{other:?}"),
            };
            assert_eq!(bytes(&*read.tensors), bytes(&source), "{}", entry.name);
        }
    }
}

#[test]
fn a_type_that_is_asked_for_is_that_of_all_floats_and_of_no_integers() {
    let (source, folder) = (source(), tempfile::tempdir().unwrap());
    let into = folder.path().join("m");
    let (exported, _) = export(1000, ComputeDtype::F32, json!({ "dtype": "bfloat16" }), &source, &into).unwrap();
    assert_eq!(exported.weight_bytes, 4 * (12 + 5 + 40 + 4) + 3);
    assert_eq!(json_of(&into.join("config.json")), json!({ "dtype": "float32" }));
    let files = BTreeMap::from(["config.json", "model.safetensors"].map(|name| (name.to_owned(), into.join(name))));
    let read = Checkpoint::open("m", &files).unwrap();
    let encodings: Vec<_> = read.tensors.entries().iter().map(|entry| entry.encoding.to_string()).collect();
    assert_eq!(encodings, ["f32", "f32", "u8", "f32", "f32"]);
}

#[test]
fn the_config_says_the_type_where_it_said_it_before_or_said_none() {
    let entries = source().entries().to_vec();
    let text = |config: Value, float| serde_json::from_str::<Value>(&config::text(&config, float, &entries)).unwrap();
    let said = json!({ "torch_dtype": "bfloat16", "hidden_size": 4 });
    assert_eq!(text(said.clone(), None), said);
    assert_eq!(text(said, Some(FloatType::F16)), json!({ "torch_dtype": "float16", "hidden_size": 4 }));
    // Most values are of f32.
    assert_eq!(text(json!({ "dtype": null }), None), json!({ "dtype": null, "torch_dtype": "float32" }));
    let both = json!({ "dtype": "float32", "torch_dtype": "float32" });
    assert_eq!(text(both, Some(FloatType::Bf16)), json!({ "dtype": "bfloat16", "torch_dtype": "bfloat16" }));
    assert_eq!(text(json!({ "quantization_config": null }), Some(FloatType::F32)), json!({ "torch_dtype": "float32" }));
}

#[test]
fn what_is_quantized_or_has_no_files_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().join("m");
    let blocks = TensorEntry::new("q", vec![1, 32], llm_local_core::Encoding::Ggml(GgmlType::Q8_0));
    let quantized = MemoryTensorSource::new().with_bytes(blocks, vec![0; 34]);
    let refused = [
        (json!({}), quantized, ["`q`", "Q8_0"]),
        (json!({ "quantization_config": { "quant_method": "awq" } }), source(), ["`quantization_config`", "f16"]),
        (json!({ "quantization": { "bits": 4 } }), source(), ["`quantization`", "bf16"]),
    ];
    for (config, source, words) in refused {
        let error = export(1000, ComputeDtype::Auto, config, &source, &into).unwrap_err();
        assert_eq!(error.code(), "unsupported");
        assert!(words.iter().all(|word| error.to_string().contains(word)), "{error}");
    }
    let remote = ModelInfo::new("m", ModelFormat::Remote, Vec::new());
    assert!(check(&remote).unwrap_err().to_string().contains("no files"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn whatever_fails_on_the_way_leaves_nothing() {
    let (source, folder) = (source(), tempfile::tempdir().unwrap());
    let into = folder.path().join("m");
    let (info, text) = (info(json!({}), &source), TextFiles::default());
    let model = Export { info: &info, tensors: &source, text: &text, dtype: ComputeDtype::Auto, merged_tensors: 0 };
    let (wanted, calls) = (Wanted::new(), RefCell::new(0));
    let told = |done, _| {
        *calls.borrow_mut() += 1;
        if done == 2 {
            wanted.give_up();
        }
    };
    let cancelled = write(&model, &into, &Watch { wanted: &wanted, told: &told, last: &|| Ok(()) });
    assert!(matches!(cancelled, Err(Error::Cancelled)));
    assert_eq!(*calls.borrow(), 2);
    let last = || Err(Error::load("m", "it changed"));
    let changed = write(&model, &into, &Watch { wanted: &Wanted::new(), told: &|_, _| {}, last: &last });
    assert!(changed.unwrap_err().to_string().contains("it changed"));
    let missing = TextFiles::from_files(BTreeMap::from([("tokenizer.json".into(), folder.path().join("none"))]));
    let model = Export { text: &missing, ..model };
    let failed = write(&model, &into, &Watch { wanted: &Wanted::new(), told: &|_, _| {}, last: &|| Ok(()) });
    assert_eq!(failed.unwrap_err().code(), "io");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_value_that_the_type_asked_for_cannot_hold_is_an_error_and_what_was_infinite_before_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let all = [f32::INFINITY, 1.0, f32::NAN, -70000.0];
    let f64s = TensorEntry::new("w", vec![2], llm_local_core::Encoding::Float(FloatType::F64));
    let f64s = |value: f64| {
        let bytes = [f64::NEG_INFINITY, value].iter().flat_map(|value| value.to_le_bytes()).collect();
        MemoryTensorSource::new().with_bytes(f64s.clone(), bytes)
    };
    let floats = |float, values: &[f32]| MemoryTensorSource::new().with_floats("w", &[values.len()], float, values);
    let refused = [
        (floats(FloatType::F32, &all), ComputeDtype::F16, 3, "bf16 or f32"),
        (floats(FloatType::Bf16, &all), ComputeDtype::F16, 3, "bf16 or f32"),
        (floats(FloatType::F32, &[1.0, f32::MAX]), ComputeDtype::Bf16, 1, "f32"),
        (f64s(70000.0), ComputeDtype::F16, 1, "bf16 or f32"),
        (f64s(1e300), ComputeDtype::F32, 1, "no type"),
    ];
    for (number, (source, dtype, place, instead)) in refused.iter().enumerate() {
        let into = folder.path().join(number.to_string());
        let error = export(1000, *dtype, json!({}), source, &into).unwrap_err();
        assert_eq!(error.code(), "unsupported");
        let text = error.to_string();
        assert!(text.contains("`w`") && text.contains(&format!("number {place},")), "{text}");
        assert!(text.contains(&format!("ask for {instead}")), "{text}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
    let held = [
        (floats(FloatType::F32, &all[..3]), ComputeDtype::F16),
        (floats(FloatType::F32, &all), ComputeDtype::Bf16),
        (floats(FloatType::F16, &all), ComputeDtype::F32),
        (floats(FloatType::F32, &all), ComputeDtype::Auto),
        (f64s(65504.0), ComputeDtype::F16),
    ];
    for (number, (source, dtype)) in held.iter().enumerate() {
        export(1000, *dtype, json!({}), source, &folder.path().join(number.to_string())).unwrap();
    }
}

#[test]
fn a_value_beyond_the_type_asked_for_is_an_error_of_the_merge_where_an_adapter_changes_the_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let (into, values) = (folder.path().join("into"), [70000.0, 1.0, 2.0, 3.0]);
    let of = |name: &str| {
        let base = MemoryTensorSource::new().with_floats("m.q.weight", &[2, 2], FloatType::F32, &[1.0; 4]);
        let base: Arc<dyn TensorSource> = Arc::new(base.with_floats(name, &[2, 2], FloatType::F32, &values));
        let module = if name == "m.k.weight" { "m.q" } else { "m.v" };
        let module = LoraModule::new(module, (1, 2, 2), vec![1.0; 2], vec![1.0; 2], 1.0);
        let adapter = Arc::new(LoraAdapter::new("some/adapter", "a", vec![module]));
        let merged = MergedSource::new(base.clone(), vec![(adapter, 1.0)], &info(json!({}), &*base)).unwrap();
        export(1000, ComputeDtype::F16, json!({}), &merged, &into).unwrap_err()
    };
    let (unchanged, changed) = (of("m.k.weight"), of("m.v.weight"));
    assert_eq!((unchanged.code(), changed.code()), ("unsupported", "adapter_merge_failed"));
    let changed = changed.to_string();
    assert!(changed.contains("some/adapter") && changed.contains("`m.v.weight` is not finite any more"), "{changed}");
}

#[test]
fn a_disk_without_room_for_all_is_an_error_before_anything_is_written() {
    struct Large(Vec<TensorEntry>);
    impl TensorSource for Large {
        fn entries(&self) -> &[TensorEntry] {
            &self.0
        }
        fn read(&self, _: &str, _: Option<FloatType>) -> Result<llm_local_core::TensorData<'_>> {
            panic!("it is read")
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let shape = vec![1 << 30, 1 << 28];
    let large = Large(vec![TensorEntry::new("w", shape, llm_local_core::Encoding::Float(FloatType::F32))]);
    let failed = export(1000, ComputeDtype::Auto, json!({}), &large, &folder.path().join("m"));
    assert!(matches!(failed, Err(Error::InsufficientStorage { required, .. }) if required == 1 << 60));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn all_that_a_tokenizer_has_is_copied_and_what_is_missing_is_said() {
    let (source, folder) = (source(), tempfile::tempdir().unwrap());
    let auto_map = json!({ "AutoConfig": "configuration_m.Config", "AutoModel": "o/r--modeling_m.Model",
        "AutoTokenizer": ["tokenization_m.Slow", null] });
    let info = info(json!({ "auto_map": auto_map }), &source);
    let exported = |into: &str, names: &[&str]| {
        let text = names.iter().map(|name| {
            let path = folder.path().join(name);
            fs::write(&path, name).unwrap();
            ((*name).to_owned(), path)
        });
        let text = TextFiles::from_files(text.collect());
        let model = Export { info: &info, tensors: &source, text: &text, dtype: ComputeDtype::Auto, merged_tensors: 0 };
        let watch = Watch { wanted: &Wanted::new(), told: &|_, _| {}, last: &|| Ok(()) };
        write(&model, &folder.path().join(into), &watch).unwrap()
    };
    let all = ["vocab.json", "merges.txt", "added_tokens.json", "configuration_m.py", "tokenization_m.py", "README.md"];
    let whole = exported("whole", &all);
    assert_eq!(whole.files[1..6], all[..5]);
    assert_eq!(whole.files.len(), 7, "no README.md: {:?}", whole.files);
    assert_eq!(fs::read_to_string(folder.path().join("whole/merges.txt")).unwrap(), "merges.txt");
    assert!(whole.notes.is_empty(), "{:?}", whole.notes);
    let part = exported("part", &["vocab.json", "configuration_m.py"]);
    assert!(part.notes.len() == 2 && part.notes[0].contains("no tokenizer"), "{:?}", part.notes);
    for words in ["not fetched", "source does not list it", "copy tokenization_m.py into the folder by hand"] {
        assert!(part.notes[1].contains(words), "{:?}", part.notes);
    }
}
