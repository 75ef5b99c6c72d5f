//! A source of a third party, `tests/catalog-source`: what it gets from the engine without writing any of it.

#![cfg(all(feature = "candle", feature = "local"))]

mod common;

use std::{
    fs,
    path::Path,
    sync::Arc,
    task::{Context, Waker},
};

use catalog_source::{Catalog, Entry};
use common::{fixture, tiny};
use futures_util::StreamExt;
use llm_local::{
    ArtifactRef, DownloadProgress, Engine, Input, LogitsRequest, ModelSpec, builtin,
    core::{Digest, ManifestFile, Result, Want},
};
use llm_local_testkit::hub::{Fault, Hub, Repo};
use pollster::block_on;
use sha2::{Digest as _, Sha256};

/// Bytes of an adapter that is large enough to come in several requests.
const LARGE: usize = 6 << 20;

fn file(name: &str, bytes: &[u8]) -> ManifestFile {
    ManifestFile::new(name, bytes.len() as u64).with_digest(Digest::Sha256(Sha256::digest(bytes).into()))
}

/// A server of plain files, and the catalogue of what it has: `pirate`, which fits tiny-llama, and `large`.
fn setup() -> (Hub, Vec<Entry>) {
    let pirate = fixture("adapters/tiny-llama-lora-peft");
    let (mut repo, mut files) = (Repo::new("files/pirate"), Vec::new());
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let bytes = fs::read(pirate.join(name)).unwrap();
        files.push(file(name, &bytes));
        repo = repo.with_file(name, bytes);
    }
    let large = vec![7; LARGE];
    let other = vec![file("adapter.gguf", &large)];
    let hub =
        Hub::builder().with_repo(repo).with_repo(Repo::new("files/large").with_file("adapter.gguf", large)).start();
    let url = |name: &str| format!("{}/files/{name}/resolve/main", hub.endpoint());
    let entries = vec![("pirate", "1.0", url("pirate"), files), ("large", "2.0", url("large"), other)];
    (hub, entries)
}

fn engine(entries: &[Entry], folder: &Path) -> Engine {
    let registry = builtin::registry().unwrap().with_adapter_source(Arc::new(Catalog(entries.to_vec())));
    Engine::builder().registry(registry).cache_dir(folder).build().unwrap()
}

fn large() -> ArtifactRef {
    "catalog:large@2.0".parse().unwrap()
}

fn fetch(engine: &Engine) -> Result<()> {
    block_on(engine.download_artifact(&large(), Want::Adapter, None))
}

fn blobs(folder: &Path) -> usize {
    fs::read_dir(folder.join("blobs")).map_or(0, Iterator::count)
}

#[test]
fn an_adapter_of_the_catalogue_gives_the_logits_of_the_same_files_on_disk() {
    let ((_hub, entries), folder) = (setup(), tempfile::tempdir().unwrap());
    let engine = engine(&entries, folder.path());
    let logits = |spec: &ModelSpec| {
        block_on(engine.logits(spec, LogitsRequest::new(Input::Text("Once upon a time".into())))).unwrap()
    };
    let of_catalog = tiny(None).with_adapter("catalog:pirate".parse().unwrap());
    assert_eq!(logits(&of_catalog), logits(&tiny(Some("peft"))));
    assert_ne!(logits(&of_catalog), logits(&tiny(None)));
}

#[test]
fn a_download_that_broke_off_goes_on_where_it_was() {
    let ((hub, entries), folder) = (setup(), tempfile::tempdir().unwrap());
    hub.fault(Fault::cut(4 << 20).once());
    hub.fault(Fault::status(404));
    assert!(fetch(&engine(&entries, folder.path())).is_err());
    hub.wait_until_idle();
    let before = hub.bytes_served();
    assert!(before >= 4 << 20, "{before}");
    hub.clear_faults();
    fetch(&engine(&entries, folder.path())).unwrap();
    hub.wait_until_idle();
    // One range is open when the connection breaks: less than a mebibyte of it is not written yet.
    assert!(hub.bytes_served() < LARGE as u64 + (1 << 20), "{}", hub.bytes_served());
    assert_eq!(blobs(folder.path()), 1);
}

#[test]
fn wrong_bytes_are_refused_and_not_kept() {
    let ((hub, entries), folder) = (setup(), tempfile::tempdir().unwrap());
    hub.fault(Fault::wrong_byte(5_000_000));
    let error = fetch(&engine(&entries, folder.path())).unwrap_err();
    assert_eq!(error.code(), "adapter_merge_failed");
    assert!(error.to_string().contains("adapter.gguf of catalog:large@2.0"), "{error}");
    assert_eq!(blobs(folder.path()), 0);
}

#[test]
fn progress_ends_at_one_and_dropping_it_ends_the_requests() {
    let ((hub, entries), folder) = (setup(), tempfile::tempdir().unwrap());
    let engine = engine(&entries, folder.path());
    let spec = tiny(None).with_adapter("catalog:pirate".parse().unwrap());
    let progress: Vec<DownloadProgress> =
        block_on(engine.download_with_progress(&spec).map(Result::unwrap).collect::<Vec<_>>());
    assert!(progress.windows(2).all(|pair| pair[0].fraction <= pair[1].fraction));
    assert!(progress[0].fraction < 1.0 && progress.last().unwrap().fraction == 1.0, "{progress:?}");

    hub.clear();
    hub.fault(Fault::stall(1 << 20));
    let reference = large();
    let mut fetching = Box::pin(engine.download_artifact(&reference, Want::Adapter, None));
    let mut cx = Context::from_waker(Waker::noop());
    while hub.open_requests() == 0 {
        assert!(fetching.as_mut().poll(&mut cx).is_pending());
        std::thread::yield_now();
    }
    drop(fetching);
    assert!(hub.wait_until_idle().iter().all(|request| request.outcome.is_over()));
    assert_eq!(hub.open_requests(), 0);
}
