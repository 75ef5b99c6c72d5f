use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use llm_local_core::{
    ArtifactRef, LoraAdapter, LoraModule, Result,
    lora::{AdapterFiles, AdapterFormat},
};
use tempfile::TempDir;

use llm_local_core::lora::BareFormat;

use super::{ReadOptions, read, read_with};
use crate::lora::{
    AdapterOutline, fit_outlines_allowing,
    testing::{fit_unread, fixture, outline_folder, read_folder, tiny_llama_info},
};

/// What must be in the message for each folder of `bad-adapters`.
const DEFECTS: &[(&str, &[&str])] = &[
    ("config-not-json", &["adapter_config.json", "is not JSON", "line 1"]),
    ("empty-tensors", &["adapter_model.safetensors", "no tensors"]),
    ("full-weights-not-lora", &["`model.layers.3.self_attn.q_proj.weight`", "full weight"]),
    ("header-not-json", &["adapter_model.safetensors", "JSON"]),
    ("int-dtype", &["model.layers.2.self_attn.q_proj.lora_A.weight", "i32", "expected floats"]),
    ("missing-lora-A", &["lora_A.weight` is missing", "only lora_B"]),
    ("missing-lora-B", &["lora_B.weight` is missing", "only lora_A"]),
    ("nan-values", &["NaN at (", ".weight`"]),
    ("no-config", &["adapter_config.json", "scale"]),
    ("no-weights", &["adapter_model.safetensors is missing"]),
    ("offsets-out-of-range", &["adapter_model.safetensors"]),
    ("peft-type-ia3", &["`peft_type` is \"IA3\"", "LORA"]),
    ("pickle-bin-only", &["pickle", "adapter_model.bin"]),
    ("r-zero", &["`r` must be a rank of at least 1", "found 0"]),
    ("rank-mismatch-A8-B4", &["lora_B.weight` has the shape (128, 4)", "rank 4", "expected (out, 8)", "(8, 384)"]),
    ("truncated-7-bytes", &["adapter_model.safetensors", "7"]),
    ("truncated-data", &["adapter_model.safetensors", "bytes"]),
    ("truncated-header", &["adapter_model.safetensors", "bytes"]),
    ("unknown-target-modules", &["`target_modules` declares `c_attn`", "transformer.h.2.attn.c_attn"]),
    ("wrong-base-hidden96", &["model.layers.2.mlp.down_proj.lora_A` has the shape (8, 288)", "expected (8, 384)"]),
];

#[test]
fn every_bad_adapter_is_refused_for_its_defect_and_no_base_weight_is_read() {
    let info = tiny_llama_info(|_| {});
    let mut folders: Vec<String> = fs::read_dir(fixture("bad-adapters"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "_control-good")
        .collect();
    folders.sort();
    assert_eq!(folders, DEFECTS.iter().map(|(folder, _)| *folder).collect::<Vec<_>>());
    for (folder, words) in DEFECTS {
        let path = fixture("bad-adapters").join(folder);
        let error = read_folder(&path).and_then(|adapter| fit_unread(adapter, &info)).unwrap_err();
        assert_eq!(error.code(), "adapter_merge_failed", "{folder}: {error}");
        let message = error.to_string();
        assert!(message.contains(path.to_str().unwrap()), "{folder} is not named: {message}");
        for word in *words {
            assert!(message.contains(word), "{folder}: `{word}` is not in: {message}");
        }
    }
}

#[test]
fn good_adapters_fit_without_a_base_weight_being_read() {
    let info = tiny_llama_info(|_| {});
    for (folder, modules, scale) in [
        ("bad-adapters/_control-good", 14, 2.0),
        ("adapters/tiny-llama-lora-peft", 28, 2.0),
        ("adapters/tiny-llama-lora-rslora", 28, 4.0),
        ("adapters/tiny-llama-lora-qv-last2", 4, 2.0),
        ("adapters/tiny-llama-lora-mlx", 28, 2.0),
        ("adapters/tiny-llama-lora-dora-mlx", 28, 2.0),
        // `num_layers` is 3, of 4 layers.
        ("adapters/tiny-llama-lora-mlx-trained", 9, 6.0),
    ] {
        let adapter = read_folder(&fixture(folder)).unwrap();
        assert_eq!(adapter.base.name.as_deref(), Some("tiny-llama"));
        assert_eq!(adapter.digest.len(), 64);
        let report = fit_unread(adapter, &info).unwrap();
        assert_eq!(report.adapters[0].modules, modules, "{folder}");
        assert_eq!(report.touched.len(), modules, "{folder}");
        assert_eq!(report.adapters[0].scales, (scale, scale), "{folder}");
    }
}

/// Defects that only values have.
const BY_VALUES: [&str; 1] = ["nan-values"];

#[test]
fn what_is_wrong_with_an_adapter_is_found_without_its_values_but_for_theirs() {
    let info = tiny_llama_info(|_| {});
    for (folder, words) in DEFECTS {
        let path = fixture("bad-adapters").join(folder);
        let fitted = outline_folder(&path).and_then(|outline| fit_outlines_allowing(&[(outline, 1.0)], &[], &info));
        if BY_VALUES.contains(folder) {
            fitted.unwrap();
            continue;
        }
        let error = fitted.unwrap_err();
        assert_eq!(error.code(), "adapter_merge_failed", "{folder}: {error}");
        let message = error.to_string();
        assert!(message.contains(path.to_str().unwrap()), "{folder} is not named: {message}");
        for word in *words {
            assert!(message.contains(word), "{folder}: `{word}` is not in: {message}");
        }
    }
}

#[test]
fn an_outline_is_what_a_read_adapter_has_beside_its_values() {
    let info = tiny_llama_info(|_| {});
    for folder in [
        "adapters/tiny-llama-lora-peft",
        "adapters/tiny-llama-lora-rslora",
        "adapters/tiny-llama-lora-qv-last2",
        "adapters/tiny-llama-lora-mlx",
    ] {
        let adapter = read_folder(&fixture(folder)).unwrap();
        let outline = outline_folder(&fixture(folder)).unwrap();
        assert_eq!(outline, AdapterOutline::from(&adapter), "{folder}");
        assert_eq!(
            fit_outlines_allowing(&[(outline, 1.0)], &[], &info).unwrap(),
            fit_unread(adapter, &info).unwrap(),
            "{folder}"
        );
    }
}

/// Names of files and what they hold.
type Folder<'a> = &'a [(&'a str, &'a [u8])];

/// The message for a folder with these files.
fn refusal(files: Folder<'_>) -> String {
    let folder = TempDir::new().unwrap();
    for (name, bytes) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let files: BTreeMap<_, _> = files.iter().map(|(name, _)| ((*name).into(), folder.path().join(name))).collect();
    let error = read(&ArtifactRef::file(folder.path()).unwrap(), &files).unwrap_err();
    assert_eq!(error.code(), "adapter_merge_failed", "{error}");
    error.to_string()
}

#[test]
fn files_that_are_no_known_format_say_what_was_expected() {
    let cases: &[(Folder<'_>, &[&str])] = &[
        (&[], &["expected adapter_config.json", "no files"]),
        (&[("README.md", b"")], &["found `README.md`"]),
        (&[("a.gguf", b"GGUF\x03\0\0\0")], &["a.gguf", "cut off"]),
        (&[("a.gguf", b"GG")], &["`a.gguf` does not start with GGUF"]),
        (&[("a.safetensors", b"")], &["`a.safetensors` comes without adapter_config.json"]),
        (&[("adapter_model.bin", b"")], &["pickle (`adapter_model.bin`)"]),
        (&[("pirate/adapter_config.json", b"{}")], &["in the folder `pirate`"]),
        (&[("adapter_config.json", b"[]")], &["adapter_config.json", "expected an object"]),
        (&[("adapter_config.json", b"{\"r\": 8}")], &["`peft_type`", "found `r`"]),
        (&[("adapters.npz", b"")], &["`adapters.npz`", "mx.save_safetensors"]),
        (&[("a.gguf", b""), ("b.GGUF", b"")], &["`a.gguf`, `b.GGUF`", "name it"]),
        (&[("adapter_config.json", b"{\"rank\": 8, \"alpha\": 1}")], &["mlx-vlm", "1 up to 0.1, 0.125 later"]),
        (&[("adapter_config.json", b"{\"lora_parameters\": {}}")], &["`lora_parameters.scale` is missing"]),
        (&[("adapter_config.json", b"{\"fine_tune_type\": \"dora\"}")], &["`lora_parameters` is missing"]),
        (
            &[("adapter_config.json", b"{\"fine_tune_type\": \"full\"}")],
            &["adapters.safetensors is missing beside adapter_config.json"],
        ),
    ];
    for (files, words) in cases {
        let message = refusal(files);
        for word in *words {
            assert!(message.contains(word), "`{word}` is not in: {message}");
        }
    }
}

#[test]
fn a_config_too_large_for_one_is_refused_before_it_is_in_memory() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("adapter_config.json");
    fs::File::create(&path).unwrap().set_len((16 << 20) + 1).unwrap();
    let files = BTreeMap::from([("adapter_config.json".into(), path)]);
    let error = read(&ArtifactRef::file(folder.path()).unwrap(), &files).unwrap_err();
    assert_eq!(error.code(), "adapter_merge_failed");
    assert!(error.to_string().contains("adapter_config.json") && error.to_string().contains("too many"), "{error}");
}

#[test]
fn weights_of_another_name_are_read_if_no_other_file_could_be_meant() {
    let good = fixture("bad-adapters/_control-good");
    let (config, weights) = (good.join("adapter_config.json"), good.join("adapter_model.safetensors"));
    let of = |names: &[&str]| {
        let mut files: BTreeMap<String, _> = names.iter().map(|n| ((*n).to_owned(), weights.clone())).collect();
        files.insert("adapter_config.json".into(), config.clone());
        read(&ArtifactRef::file(&good).unwrap(), &files)
    };
    let expected = read_folder(&good).unwrap();
    assert_eq!(of(&["pirate.safetensors"]).unwrap(), expected);
    assert_eq!(of(&["Pirate.SafeTensors", "README.md", "checkpoint-9/adapter_model.safetensors"]).unwrap(), expected);
    let message = of(&["a.safetensors", "b.safetensors"]).unwrap_err().to_string();
    for word in ["`a.safetensors`, `b.safetensors`", "expected adapter_model.safetensors", "adapter_config.json"] {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
    let message = of(&["checkpoint-9/adapter_model.safetensors"]).unwrap_err().to_string();
    assert!(message.contains("adapter_model.safetensors is missing"), "{message}");

    // With PEFT's own name among several, the others are not looked at.
    let mut files = BTreeMap::from([("a.safetensors".to_owned(), fixture("bad-adapters/no-such-file"))]);
    files.insert("adapter_config.json".into(), config);
    files.insert("adapter_model.safetensors".into(), weights);
    assert_eq!(read(&ArtifactRef::file(&good).unwrap(), &files).unwrap(), expected);
}

#[test]
fn a_defect_of_renamed_weights_is_reported_with_their_name() {
    let folder = fixture("bad-adapters/empty-tensors");
    let files = BTreeMap::from([
        ("adapter_config.json".into(), folder.join("adapter_config.json")),
        ("pirate.safetensors".into(), folder.join("adapter_model.safetensors")),
    ]);
    let error = read(&ArtifactRef::file(&folder).unwrap(), &files).unwrap_err().to_string();
    assert!(error.contains("pirate.safetensors: it holds no tensors"), "{error}");
}

#[test]
fn a_file_that_cannot_be_read_is_an_adapter_error_with_its_cause() {
    let files = BTreeMap::from([("adapter_config.json".into(), Path::new("/no/such/file").to_owned())]);
    let error = read(&"hf:org/name".parse().unwrap(), &files).unwrap_err();
    assert_eq!(error.code(), "adapter_merge_failed");
    assert!(error.to_string().contains("/no/such/file"), "{error}");
    assert!(std::error::Error::source(&error).is_some());
}

/// A format of one file, `magic`, whose content is its mark.
struct Marked(&'static str);

impl AdapterFormat for Marked {
    fn name(&self) -> &str {
        self.0
    }

    fn recognizes(&self, files: &AdapterFiles<'_>) -> Result<bool> {
        Ok(files.files.contains_key("magic"))
    }

    fn read(&self, files: &AdapterFiles<'_>) -> Result<LoraAdapter> {
        let value = if self.0 == "broken" { f32::NAN } else { 1.0 };
        let module = LoraModule::new("q", (1, 1, 1), vec![value], vec![1.0], 1.0);
        Ok(LoraAdapter::new(files.reference.to_string(), "00", vec![module]).with_format(self.0))
    }
}

#[test]
fn formats_of_a_caller_are_tried_beside_the_built_in_ones_and_two_that_recognize_one_are_named() {
    let reference: ArtifactRef = "hf:org/name".parse().unwrap();
    let formats = |names: &[&'static str]| -> Vec<Arc<dyn AdapterFormat>> {
        names.iter().map(|name| Arc::new(Marked(name)) as Arc<dyn AdapterFormat>).collect()
    };
    let folder = TempDir::new().unwrap();
    let magic = folder.path().join("magic");
    fs::write(&magic, "x").unwrap();
    let mut files = BTreeMap::from([("magic".to_owned(), magic.clone())]);
    let with = |files: &BTreeMap<_, _>, names| read_with(&reference, files, ReadOptions::new(), &formats(names));
    assert!(with(&files, &[]).unwrap_err().to_string().contains("found `magic`"));
    let one = with(&files, &["one"]).unwrap();
    assert_eq!((one.format.as_str(), one.digest.len()), ("one", 64));
    assert_eq!(with(&files, &["one"]).unwrap(), one);
    assert_ne!(with(&files, &["two"]).unwrap().digest, one.digest);
    fs::write(&magic, "y").unwrap();
    assert_ne!(with(&files, &["one"]).unwrap().digest, one.digest, "whatever the format says");
    let message = with(&files, &["broken"]).unwrap_err().to_string();
    assert!(message.contains("the A of `q` has values that are not finite"), "{message}");
    let message = with(&files, &["one", "two"]).unwrap_err().to_string();
    assert!(message.contains("`one` and `two` both recognize it"), "{message}");
    let good = fixture("bad-adapters/_control-good");
    files.insert("adapter_config.json".into(), good.join("adapter_config.json"));
    files.insert("adapter_model.safetensors".into(), good.join("adapter_model.safetensors"));
    let message = with(&files, &["one"]).unwrap_err().to_string();
    assert!(message.contains("`peft` and `one` both recognize it"), "{message}");
    files.remove("magic");
    assert_eq!(with(&files, &["one"]).unwrap(), read(&reference, &files).unwrap());
}

#[test]
fn the_first_format_in_order_is_the_one_and_a_gguf_file_beside_another_adapter_is_left_alone() {
    let good = fixture("bad-adapters/_control-good");
    let config = fs::read_to_string(good.join("adapter_config.json")).unwrap();
    // Fields of all three formats at once.
    let both = config.replacen('{', r#"{"lora_parameters": {}, "rank": 0, "alpha": 0,"#, 1);
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("adapter_config.json"), both).unwrap();
    let mut files = BTreeMap::from([
        ("adapter_config.json".to_owned(), folder.path().join("adapter_config.json")),
        ("adapter_model.safetensors".to_owned(), good.join("adapter_model.safetensors")),
    ]);
    let reference = ArtifactRef::file(&good).unwrap();
    // PEFT's reader, which does not know the fields.
    let message = read(&reference, &files).unwrap_err().to_string();
    assert!(
        message.contains("`rank`") || message.contains("`alpha`") || message.contains("`lora_parameters`"),
        "{message}"
    );
    files.insert("adapter_config.json".into(), good.join("adapter_config.json"));
    files.insert("a.gguf".into(), fixture("gguf/tiny-llama-lora-qv-last2-f16.gguf"));
    assert_eq!(read(&reference, &files).unwrap().format, "peft");
    // Beside a config that says no format, the GGUF file is it.
    fs::write(folder.path().join("adapter_config.json"), "{}").unwrap();
    files.insert("adapter_config.json".into(), folder.path().join("adapter_config.json"));
    assert_eq!(read(&reference, &files).unwrap().format, "gguf");
}

#[test]
fn tensors_without_a_config_are_read_if_format_and_scale_are_given() {
    for (folder, file, format, scale) in [
        ("tiny-llama-lora-peft", "adapter_model.safetensors", BareFormat::Peft, 2.0),
        ("tiny-llama-lora-qv-last2", "adapter_model.safetensors", BareFormat::Peft, 0.1),
        ("tiny-llama-lora-mlx", "adapters.safetensors", BareFormat::MlxLm, 2.0),
        ("tiny-llama-lora-dora-mlx", "adapters.safetensors", BareFormat::MlxLm, 2.0),
    ] {
        let path = fixture("adapters").join(folder);
        let reference = ArtifactRef::file(&path).unwrap();
        let files = BTreeMap::from([(file.to_owned(), path.join(file))]);
        let with = |options| read_with(&reference, &files, options, &[]);
        let options = ReadOptions::new().with_format(format);
        let adapter = with(options.clone().with_scale(scale)).unwrap();
        assert_eq!((&*adapter.format, adapter.targets.as_ref()), (format.as_str(), None));
        let configured = read_folder(&path).unwrap();
        let modules: Vec<_> = configured
            .modules
            .into_iter()
            .map(|mut m| {
                m.scale = scale;
                m
            })
            .collect();
        assert_eq!(adapter.modules, modules, "{folder}");
        assert_ne!(adapter.digest, with(options.clone().with_scale(3.0)).unwrap().digest, "the scale is a part of it");
        for (options, word) in [
            (ReadOptions::new(), "scale are unknown"),
            (options.clone(), "no scale is given"),
            (ReadOptions::new().with_scale(scale), "no format is given"),
            (options.clone().with_scale(0.0), "given as 0"),
        ] {
            let message = with(options).unwrap_err().to_string();
            assert!(message.contains(word) && message.contains(path.to_str().unwrap()), "{word}: {message}");
        }
        // Of several files the one that the format itself writes is it.
        let mut several = files.clone();
        several.insert("0000100_adapters.safetensors".into(), fixture("bad-adapters/no-such-file"));
        let given = options.clone().with_scale(scale);
        assert_eq!(read_with(&reference, &several, given.clone(), &[]).unwrap().modules, modules);
        several.insert("a.safetensors".into(), several[file].clone());
        several.remove(file);
        let refused =
            |several: &BTreeMap<_, _>, options| read_with(&reference, several, options, &[]).unwrap_err().to_string();
        let message = refused(&several, given);
        let expected = format!("which safetensors file is meant is not clear: expected {file} or one file alone");
        assert!(message.contains(&expected) && !message.contains("`format`"), "{message}");
        // Where nobody says the format, that is a way too.
        let message = refused(&several, ReadOptions::new().with_scale(scale));
        for word in
            ["which safetensors file is meant", "`a.safetensors`", "name it", "`format`", "--adapter-format", file]
        {
            assert!(message.contains(word), "`{word}` is not in: {message}");
        }
        several.clear();
        several.insert("readme".into(), path.join(file));
        let message = refused(&several, ReadOptions::new().with_scale(scale));
        assert!(message.contains("a safetensors file is missing; found `readme`"), "{message}");
        // Tensors of the other format are told by their names.
        let other = if format == BareFormat::Peft { BareFormat::MlxLm } else { BareFormat::Peft };
        let message = with(ReadOptions::new().with_format(other).with_scale(scale)).unwrap_err().to_string();
        let spelled = if format == BareFormat::Peft { "as PEFT does" } else { "mlx-lm" };
        assert!(message.contains(spelled), "{message}");
    }
}

#[test]
fn options_that_the_files_answer_themselves_are_refused() {
    let good = fixture("bad-adapters/_control-good");
    let reference = ArtifactRef::file(&good).unwrap();
    let files = ["adapter_config.json", "adapter_model.safetensors"];
    let files: BTreeMap<_, _> = files.into_iter().map(|name| (name.to_owned(), good.join(name))).collect();
    let with = |options| read_with(&reference, &files, options, &[]);
    let message = with(ReadOptions::new().with_scale(2.0)).unwrap_err().to_string();
    assert!(message.contains("given as 2") && message.contains("peft"), "{message}");
    let message = with(ReadOptions::new().with_format(BareFormat::MlxLm)).unwrap_err().to_string();
    assert!(message.contains("given as mlx-lm") && message.contains("it is peft"), "{message}");
    assert!(with(ReadOptions::new().with_format(BareFormat::Peft)).is_ok());
}
