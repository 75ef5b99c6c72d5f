//! Specs of the Hugging Face Hub, from the ref to logits, against a hub on the loopback.

#![cfg(all(feature = "huggingface", feature = "candle"))]

use std::{fs, path::Path};

use crate::common::{fixture, tiny};
use futures_util::StreamExt;
use llm_local::{
    DownloadProgress, Engine, Input, LogitsRequest, ModelSpec,
    core::{Result, Want},
};
use llm_local_source_huggingface::HuggingFace;
use llm_local_testkit::hub::{Hub, Repo};
use pollster::block_on;

const TOKEN: &str = "hf_secret";

/// The folder of a fixture as a repository; weights are in LFS, as on the real Hub.
fn repo(id: &str, folder: &str) -> Repo {
    let mut repo = Repo::new(id);
    for entry in fs::read_dir(fixture(folder)).unwrap() {
        let path = entry.unwrap().path();
        let (name, bytes) = (path.file_name().unwrap().to_str().unwrap(), fs::read(&path).unwrap());
        repo = if name.ends_with(".safetensors") { repo.with_lfs(name, bytes) } else { repo.with_file(name, bytes) };
    }
    repo
}

fn hub() -> Hub {
    Hub::builder()
        .with_token(TOKEN)
        .with_repo(repo("org/tiny", "models/tiny-llama").with_license("mit"))
        .with_repo(repo("org/pirate", "adapters/tiny-llama-lora-peft").private())
        .start()
}

fn engine(hub: &Hub, folder: &Path, offline: bool) -> Engine {
    let source = HuggingFace::builder()
        .endpoint(hub.endpoint())
        .token(TOKEN)
        .cache_dir(folder.join("hub"))
        .offline(offline)
        .build()
        .unwrap();
    Engine::builder().source(source).cache_dir(folder.join("store")).offline(offline).build().unwrap()
}

fn spec() -> ModelSpec {
    ModelSpec::new("hf:org/tiny".parse().unwrap()).with_adapter("hf:org/pirate".parse().unwrap())
}

fn logits(engine: &Engine, spec: &ModelSpec) -> Result<Vec<f32>> {
    block_on(engine.logits(spec, LogitsRequest::new(Input::Text("Once upon a time".into()))))
}

#[test]
fn a_model_and_a_private_adapter_give_the_logits_of_the_same_files_on_disk() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    let from_hub = logits(&engine(&hub, folder.path(), false), &spec()).unwrap();
    let local = logits(&Engine::builder().build().unwrap(), &tiny(Some("peft"))).unwrap();
    assert_eq!(from_hub, local);

    hub.clear();
    let offline = engine(&hub, folder.path(), true);
    assert_eq!(logits(&offline, &spec()).unwrap(), local);
    assert!(hub.requests().is_empty(), "{:?}", hub.requests());
    let listing = offline.store().list().unwrap();
    let refs: Vec<_> = listing.artifacts.iter().map(|a| (a.reference.to_string(), a.want, a.license.clone())).collect();
    assert_eq!(
        refs,
        [
            ("hf:org/pirate".to_owned(), Want::Adapter, None),
            ("hf:org/tiny".to_owned(), Want::Model, Some("mit".to_owned()))
        ]
    );
}

#[test]
fn what_is_loaded_is_not_deleted() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    let engine = engine(&hub, folder.path(), false);
    let spec = ModelSpec::new("hf:org/tiny".parse().unwrap());
    let model = block_on(engine.load(&spec)).unwrap();
    assert!(model.plan().base.present);
    let error = engine.store().delete(&spec.base).unwrap_err();
    assert!(error.to_string().contains("loaded"), "{error}");
    block_on(model.unload()).unwrap();
    let deleted = engine.store().delete(&spec.base).unwrap();
    assert!(deleted.bytes > 100_000, "{deleted:?}");
    assert!(engine.store().list().unwrap().artifacts.is_empty());
}

#[test]
fn a_download_is_a_stream_that_ends_at_one_and_then_costs_nothing() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    let engine = engine(&hub, folder.path(), false);
    let fractions = || -> Vec<f64> {
        let stream = engine.download_with_progress(&spec());
        block_on(stream.map(|item: Result<DownloadProgress>| item.unwrap().fraction).collect())
    };
    let first = fractions();
    assert_eq!(first[0], 0.0);
    assert!(first.is_sorted(), "{first:?}");
    assert_eq!(first.last(), Some(&1.0));
    hub.clear();
    assert_eq!(fractions().last(), Some(&1.0));
    assert!(hub.requests().iter().all(|r| r.path.starts_with("/api/")), "{:?}", hub.requests());
}

/// A safetensors file of one tensor of `megabytes`.
fn weights(megabytes: usize) -> Vec<u8> {
    let header = format!(r#"{{"w":{{"dtype":"U8","shape":[{0}],"data_offsets":[0,{0}]}}}}"#, megabytes << 20);
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.resize(bytes.len() + (megabytes << 20), 7);
    bytes
}

#[test]
fn a_model_that_no_backend_can_run_costs_kilobytes() {
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{"architectures": ["MambaForCausalLM"], "model_type": "mamba"}"#;
    let repo = Repo::new("org/big").with_file("config.json", config).with_file("tokenizer.json", "{}");
    let hub = Hub::builder().with_token(TOKEN).with_repo(repo.with_lfs("model.safetensors", weights(8))).start();
    let engine = engine(&hub, folder.path(), false);
    let spec = ModelSpec::new("hf:org/big".parse().unwrap());
    for error in [block_on(engine.load(&spec)).unwrap_err(), block_on(engine.download(&spec, None)).unwrap_err()] {
        assert_eq!(error.code(), "no_backend", "{error}");
        assert!(error.to_string().contains("mamba"), "{error}");
    }
    assert!(hub.bytes_served() < 300_000, "{} bytes", hub.bytes_served());
}

#[test]
fn a_plan_knows_a_model_that_is_not_here_by_its_headers() {
    let gguf = fs::read(fixture("gguf/arch-gemma3.gguf")).unwrap();
    let size = gguf.len() as u64;
    let hub = Hub::builder().with_token(TOKEN).with_repo(Repo::new("org/gemma").with_lfs("g.Q8_0.gguf", gguf)).start();
    let folder = tempfile::tempdir().unwrap();
    let engine = engine(&hub, folder.path(), false);
    let plan = block_on(engine.plan(&ModelSpec::new("hf:org/gemma#g.Q8_0.gguf".parse().unwrap()))).unwrap();
    assert!(!plan.base.present);
    let model = plan.model.expect("its header was read");
    assert!(model.estimate.weights > 0, "{model:?}");
    assert!(hub.bytes_served_for("g.Q8_0.gguf") < size / 2, "{} of {size}", hub.bytes_served_for("g.Q8_0.gguf"));
}

#[test]
fn a_quota_evicts_what_was_used_least_recently() {
    let folder = tempfile::tempdir().unwrap();
    let one = |id: &str| repo(id, "models/tiny-llama").with_file("README.md", id.to_owned());
    let adapter = |id: &str, seed: u8| {
        repo(id, "adapters/tiny-llama-lora-peft").with_lfs("adapter_model.safetensors", vec![seed; 300_000])
    };
    let hub = Hub::builder()
        .with_repo(one("org/tiny"))
        .with_repo(adapter("org/a", 1))
        .with_repo(adapter("org/b", 2))
        .with_repo(adapter("org/c", 3))
        .start();
    let source = HuggingFace::builder().endpoint(hub.endpoint()).token("").cache_dir(folder.path().join("hub"));
    let engine = Engine::builder()
        .source(source.build().unwrap())
        .cache_dir(folder.path().join("store"))
        .cache_quota(700_000)
        .build()
        .unwrap();
    let refs = ["hf:org/a", "hf:org/b", "hf:org/c"].map(|r| r.parse().unwrap());
    for reference in &refs {
        block_on(engine.download_artifact(reference, Want::Adapter, None)).unwrap();
    }
    let kept: Vec<_> = engine.store().list().unwrap().artifacts.into_iter().map(|a| a.reference).collect();
    assert_eq!(kept, refs[1..]);
    let error = block_on(engine.download_artifact(&"hf:org/tiny".parse().unwrap(), Want::Model, None)).unwrap_err();
    assert_eq!(error.code(), "insufficient_storage", "{error}");
}
