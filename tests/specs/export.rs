//! Models exported as Hugging Face folders: what is in them, and that they are the merged model to the bit.

#![cfg(all(feature = "candle", feature = "local"))]

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc},
    task::{Context, Waker},
};

use crate::common::{ToldOfWaiting, engine, fixture, fixture_ref, tiny};
use futures_util::FutureExt;
use llm_local::{
    AdapterPolicy, ArtifactRef, ComputeDtype, Error, Exported, LogitsRequest, ModelSpec, ProgressEvent, Result,
};
use pollster::block_on;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

/// A folder for exports.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn model(&self) -> PathBuf {
        self.0.path().join("new/model")
    }

    fn export(&self, spec: &ModelSpec) -> Result<Exported> {
        block_on(engine().export(spec, &self.model()))
    }

    fn config(&self) -> Value {
        serde_json::from_slice(&fs::read(self.model().join("config.json")).unwrap()).unwrap()
    }

    /// Everything below, but what is in the export.
    fn others(&self) -> Vec<PathBuf> {
        fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { walk(&path, found) } else { found.push(path) }
            }
        }
        let mut found = Vec::new();
        walk(self.0.path(), &mut found);
        found.retain(|path| !path.starts_with(self.model()));
        found
    }
}

fn logits(spec: &ModelSpec) -> Vec<f32> {
    block_on(engine().logits(spec, LogitsRequest::new(vec![5, 17, 200, 3, 700]))).unwrap()
}

fn in_f32(adapter: &str) -> ModelSpec {
    tiny(Some(adapter)).with_dtype(ComputeDtype::F32).with_adapter_policy(AdapterPolicy::MergeDequantized)
}

#[test]
fn an_export_is_the_merged_model_to_the_bit() {
    let combined = in_f32("peft").with_weighted_adapter(fixture_ref("adapters/tiny-llama-lora-rslora"), -0.5);
    for (spec, merged) in
        [(in_f32("peft"), 28), (in_f32("dora"), 28), (combined, 28), (tiny(None).with_dtype(ComputeDtype::F32), 0)]
    {
        let place = Place::new();
        let exported = place.export(&spec).unwrap();
        assert_eq!((exported.tensors, exported.merged_tensors), (38, merged));
        assert_eq!(exported.folder, place.model());
        let mut there: Vec<_> =
            fs::read_dir(place.model()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        there.sort();
        let mut files = exported.files.clone();
        files.sort();
        assert_eq!(there, files);
        assert_eq!(
            there,
            ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
        );
        assert!(place.others().is_empty());
        let alone = ModelSpec::new(ArtifactRef::file(place.model()).unwrap()).with_dtype(ComputeDtype::F32);
        assert_eq!(logits(&alone), logits(&spec));

        let mut expected: Value =
            serde_json::from_slice(&fs::read(fixture("models/tiny-llama/config.json")).unwrap()).unwrap();
        expected["dtype"] = json!("float32");
        expected["torch_dtype"] = json!("float32");
        assert_eq!(place.config(), expected);
        for name in ["generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
            let base = fs::read(fixture(&format!("models/tiny-llama/{name}"))).unwrap();
            assert_eq!(fs::read(place.model().join(name)).unwrap(), base, "{name}");
        }
    }
}

#[test]
fn floats_stay_what_they_are_unless_another_type_is_asked_for() {
    let base = fs::read(fixture("models/tiny-llama/model.safetensors")).unwrap();
    let base = SafeTensors::deserialize(&base).unwrap();
    for (dtype, stored, name) in [
        (ComputeDtype::Auto, Dtype::BF16, "bfloat16"),
        (ComputeDtype::Bf16, Dtype::BF16, "bfloat16"),
        (ComputeDtype::F16, Dtype::F16, "float16"),
    ] {
        let place = Place::new();
        let exported = place.export(&tiny(Some("peft")).with_dtype(dtype)).unwrap();
        let bytes = fs::read(place.model().join("model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.len(), base.len());
        let (mut same, mut all) = (0, 0);
        for (name, tensor) in tensors.tensors() {
            assert_eq!(tensor.dtype(), stored, "{name}");
            all += tensor.data().len() as u64;
            same += usize::from(tensor.data() == base.tensor(&name).unwrap().data());
        }
        assert_eq!(same, if stored == Dtype::BF16 { 10 } else { 0 }, "the embedding and nine norms are the base's");
        assert_eq!(exported.weight_bytes, all);
        assert_eq!((&place.config()["dtype"], &place.config()["torch_dtype"]), (&json!(name), &json!(name)));
        let text = String::from_utf8_lossy(&bytes[8..200]).into_owned();
        assert!(text.contains(r#""format":"pt""#), "{text}");
    }
}

#[test]
fn a_head_that_an_adapter_unties_is_a_tensor_of_its_own() {
    for adapter in ["modules-to-save-lm_head", "modules-to-save-embed_tokens"] {
        let (place, spec) = (Place::new(), in_f32(adapter));
        let exported = place.export(&spec).unwrap();
        assert_eq!(exported.tensors, 39);
        assert_eq!(place.config()["tie_word_embeddings"], json!(false));
        let bytes = fs::read(place.model().join("model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let data = |name| tensors.tensor(name).unwrap().data();
        assert_ne!(data("lm_head.weight"), data("model.embed_tokens.weight"));
        let alone = ModelSpec::new(ArtifactRef::file(place.model()).unwrap()).with_dtype(ComputeDtype::F32);
        assert_eq!(logits(&alone), logits(&spec));
    }
    // One that changes both leaves them tied.
    let (place, spec) = (Place::new(), in_f32("embed"));
    assert_eq!(place.export(&spec).unwrap().tensors, 38);
    assert_eq!(place.config()["tie_word_embeddings"], json!(true));
    let alone = ModelSpec::new(ArtifactRef::file(place.model()).unwrap()).with_dtype(ComputeDtype::F32);
    assert_eq!(logits(&alone), logits(&spec));
}

/// An adapter as PEFT saves it for tiny-llama once its embedding was resized.
fn resized(rows: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let from = fixture("adapters/tiny-llama-lora-peft");
    fs::copy(from.join("adapter_config.json"), folder.path().join("adapter_config.json")).unwrap();
    let bytes = fs::read(from.join("adapter_model.safetensors")).unwrap();
    let pairs = SafeTensors::deserialize(&bytes).unwrap();
    let values: Vec<u8> = (0..rows * 128).flat_map(|i| ((i % 97) as f32 / 1000.0 - 0.05).to_le_bytes()).collect();
    let embedding = safetensors::tensor::TensorView::new(Dtype::F32, vec![rows, 128], &values).unwrap();
    let mut tensors: Vec<_> = pairs.tensors();
    tensors.push(("base_model.model.model.embed_tokens.weight".into(), embedding));
    let written = safetensors::serialize(tensors, None).unwrap();
    fs::write(folder.path().join("adapter_model.safetensors"), written).unwrap();
    folder
}

#[test]
fn a_vocabulary_that_an_adapter_grows_is_in_the_config() {
    let folder = resized(900);
    let spec = tiny(None).with_adapter(ArtifactRef::file(folder.path()).unwrap()).with_dtype(ComputeDtype::F32);
    let place = Place::new();
    place.export(&spec).unwrap();
    let bytes = fs::read(place.model().join("model.safetensors")).unwrap();
    let rows = SafeTensors::deserialize(&bytes).unwrap().tensor("model.embed_tokens.weight").unwrap().shape()[0];
    assert_eq!((rows, &place.config()["vocab_size"]), (900, &json!(900)));
    let alone = ModelSpec::new(ArtifactRef::file(place.model()).unwrap()).with_dtype(ComputeDtype::F32);
    assert_eq!(logits(&alone), logits(&spec));
}

#[test]
fn adapters_are_merged_whatever_the_policy_says() {
    let exported =
        [AdapterPolicy::Auto, AdapterPolicy::KeepUnmerged, AdapterPolicy::MergeRequantized { max_error: 0.1 }].map(
            |policy| {
                let place = Place::new();
                place.export(&tiny(Some("peft")).with_adapter_policy(policy)).unwrap();
                fs::read(place.model().join("model.safetensors")).unwrap()
            },
        );
    assert!(exported.iter().all(|bytes| *bytes == exported[0]));
}

#[test]
fn what_is_there_is_never_written_over() {
    let place = Place::new();
    fs::create_dir_all(place.model()).unwrap();
    place.export(&tiny(None)).unwrap();
    let before = fs::read(place.model().join("config.json")).unwrap();
    let error = place.export(&tiny(Some("peft"))).unwrap_err();
    let Error::Io { source, .. } = &error else { panic!("{error}") };
    assert_eq!(source.kind(), std::io::ErrorKind::AlreadyExists);
    assert!(error.to_string().contains("not empty") && error.to_string().contains("name a new one"), "{error}");
    assert_eq!(fs::read(place.model().join("config.json")).unwrap(), before);
    let file = place.0.path().join("file");
    fs::write(&file, "mine").unwrap();
    // Before anything is asked for.
    let spec = ModelSpec::new("nothing:knows/this".parse().unwrap());
    let error = block_on(engine().export(&spec, &file)).unwrap_err().to_string();
    assert!(error.contains("no folder"), "{error}");
    let error = block_on(engine().export(&spec, Path::new("."))).unwrap_err().to_string();
    assert!(error.contains("name a new one in it"), "{error}");
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    assert_eq!(place.others(), [file]);
}

#[test]
fn after_an_error_nothing_is_left() {
    let place = Place::new();
    // Beyond what f16 can hold.
    let adapter = fixture_ref("adapters/tiny-llama-lora-peft");
    let spec = tiny(None).with_weighted_adapter(adapter, 1e9).with_dtype(ComputeDtype::F16);
    let error = place.export(&spec).unwrap_err();
    assert_eq!(error.code(), "adapter_merge_failed", "{error}");
    assert!(!place.model().exists() && place.others().is_empty());
    assert_eq!(fs::read_dir(place.model().parent().unwrap()).unwrap().count(), 0);

    let spec = ModelSpec::new(fixture_ref("gguf/tiny-llama-q8_0.gguf"));
    for spec in [spec.clone(), spec.with_adapter(fixture_ref("adapters/tiny-llama-lora-peft"))] {
        let error = place.export(&spec).unwrap_err();
        assert_eq!(error.code(), "unsupported");
        let text = error.to_string();
        assert!(text.contains("GGUF") && text.contains("that it was made of"), "{text}");
        assert!(!place.model().exists() && place.others().is_empty());
    }
}

#[test]
fn a_base_that_changes_during_an_export_is_an_error() {
    let base = tempfile::tempdir().unwrap();
    for file in fs::read_dir(fixture("models/tiny-llama")).unwrap() {
        let file = file.unwrap();
        fs::write(base.path().join(file.file_name()), fs::read(file.path()).unwrap()).unwrap();
    }
    let weights = base.path().join("model.safetensors");
    let handler = move |event: &ProgressEvent| {
        if let ProgressEvent::Loading { done: 1, .. } = event {
            let other = weights.with_extension("new");
            fs::copy(&weights, &other).unwrap();
            fs::OpenOptions::new().append(true).open(&other).unwrap().write_all(b" ").unwrap();
            fs::rename(other, &weights).unwrap();
        }
    };
    let place = Place::new();
    let spec = ModelSpec::new(ArtifactRef::file(base.path()).unwrap());
    let error = block_on(engine().export_with_progress(&spec, &place.model(), Some(Arc::new(handler)))).unwrap_err();
    assert!(error.to_string().contains("model.safetensors has changed"), "{error}");
    assert!(!place.model().exists() && place.others().is_empty());
}

#[test]
fn an_export_that_is_given_up_leaves_nothing() {
    let place = Place::new();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let told = heard.clone();
    let ((at_work, working), (go_on, going)) = (mpsc::channel(), mpsc::channel());
    let going = Mutex::new(going);
    // Stops after each tensor until it is told to go on.
    let handler = move |event: &ProgressEvent| {
        if let ProgressEvent::Loading { done, total, .. } = event {
            told.lock().unwrap().push((*done, *total));
            at_work.send(()).unwrap();
            going.lock().unwrap().recv().unwrap();
        }
    };
    let (engine, spec, into) = (engine(), tiny(Some("peft")), place.model());
    let mut export = engine.export_with_progress(&spec, &into, Some(Arc::new(handler))).boxed();
    let mut context = Context::from_waker(Waker::noop());
    while working.try_recv().is_err() {
        assert!(export.poll_unpin(&mut context).is_pending());
        std::thread::yield_now();
    }
    let (waits, waiting) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || tracing::subscriber::with_default(ToldOfWaiting(waits), || drop(export)));
        waiting.recv().expect("it waits for the tensor at hand");
        // For that one, and no other.
        go_on.send(()).unwrap();
        drop(go_on);
    });
    let done = heard.lock().unwrap().len();
    assert_eq!(done, 1, "it goes on behind the tensor at hand");
    assert!(!into.exists() && place.others().is_empty());
    assert_eq!(fs::read_dir(into.parent().unwrap()).unwrap().count(), 0);
    assert_eq!(heard.lock().unwrap().len(), done, "nothing goes on");

    // Whole, it tells of each tensor.
    heard.lock().unwrap().clear();
    place.export(&spec).unwrap();
    let told = heard.clone();
    let handler = move |event: &ProgressEvent| {
        if let ProgressEvent::Loading { done, total, .. } = event {
            told.lock().unwrap().push((*done, *total));
        }
    };
    let other = place.0.path().join("other");
    block_on(engine.export_with_progress(&spec, &other, Some(Arc::new(handler)))).unwrap();
    assert_eq!(*heard.lock().unwrap(), (1..=38).map(|done| (done, 38)).collect::<Vec<_>>());
}
