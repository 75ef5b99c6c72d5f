//! Against the hub of the testkit, with the files of a small model.

mod engine;
mod environment;
mod indexed;
mod offline;
mod online;
mod refusals;
mod requests;
mod revisions;

use std::{fs, path::Path, sync::Arc};

use llm_local_core::{
    ArtifactRef, ArtifactSource, Error, FetchContext, Manifest, Opened, Placement, Registry, Request, Result, Want,
};
use llm_local_source_common::network::{Network, NetworkConfig, testing::FakeTimer};
use llm_local_testkit::hub::{Hub, Repo};
use pollster::block_on;
use tempfile::TempDir;

use super::*;

/// The token that the hub knows.
const TOKEN: &str = "hf_s3cretT0ken";

/// A hub, a source for it, and the cache's folder.
struct Setup {
    hub: Hub,
    source: HuggingFace,
    cache: TempDir,
    timer: FakeTimer,
}

fn setup(hub: Hub) -> Setup {
    with_token(hub, "")
}

fn with_token(hub: Hub, token: &str) -> Setup {
    let (cache, timer) = (tempfile::tempdir().unwrap(), FakeTimer::new());
    let source = source(&hub.endpoint(), cache.path(), &timer).token(token).build().unwrap();
    Setup { hub, source, cache, timer }
}

/// A source that takes nothing from the environment.
fn source(endpoint: &str, cache: &Path, timer: &FakeTimer) -> HuggingFaceBuilder {
    let network = Network::new(NetworkConfig::new()).with_timer(Arc::new(timer.clone()));
    HuggingFace::builder().token("").endpoint(endpoint).cache_dir(cache).offline(false).network(network)
}

/// A model in two shards, its tokenizer, and what is not of it.
fn model() -> Repo {
    let index = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    Repo::new("org/tiny")
        .with_file("README.md", "# Tiny")
        .with_file("config.json", "{}")
        .with_file("tokenizer.json", "{\"version\": \"1.0\"}")
        .with_file("model.safetensors.index.json", index)
        .with_lfs("model-00001-of-00002.safetensors", vec![1; 3000])
        .with_lfs("model-00002-of-00002.safetensors", vec![2; 2000])
        .with_lfs("pytorch_model.bin", vec![3; 9])
        .with_license("apache-2.0")
}

/// A model in one file.
fn single() -> Repo {
    Repo::new("org/tiny").with_file("config.json", "{}").with_lfs("model.safetensors", vec![1; 300])
}

/// The names of [`model`]'s files that are chosen.
const MODEL_FILES: [&str; 5] = [
    "config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
];

impl Setup {
    fn resolve(&self, reference: &str) -> Result<Manifest> {
        self.resolve_as(reference, Want::Model, &FetchContext::new())
    }

    fn resolve_as(&self, reference: &str, want: Want, cx: &FetchContext) -> Result<Manifest> {
        block_on(self.source.resolve(&reference.parse()?, want, cx))
    }

    fn offline(&self, reference: &str) -> Result<Manifest> {
        self.resolve_as(reference, Want::Model, &FetchContext::new().with_offline(true))
    }

    /// Paths and queries of the requests so far, which are then forgotten.
    fn asked(&self) -> Vec<String> {
        let line = |r: llm_local_testkit::hub::Recorded| match r.query.as_str() {
            "" => r.path,
            query => format!("{}?{query}", r.path),
        };
        let asked = self.hub.wait_until_idle().into_iter().map(line).collect();
        self.hub.clear();
        asked
    }

    fn commit(&self, revision: &str) -> String {
        self.hub.commit("org/tiny", revision).unwrap()
    }

    fn open(&self, manifest: &Manifest, path: &str) -> Opened {
        let file = manifest.file(path).unwrap_or_else(|| panic!("{path} is not in {manifest:?}"));
        block_on(self.source.open(manifest, file, 0..file.size, &FetchContext::new())).unwrap()
    }

    fn request(&self, manifest: &Manifest, path: &str) -> Request {
        match self.open(manifest, path) {
            Opened::Request(request) => request,
            other => panic!("{other:?}"),
        }
    }

    /// All bytes of the file at `path`, however the source gives them.
    fn content(&self, manifest: &Manifest, path: &str) -> Vec<u8> {
        match self.open(manifest, path) {
            Opened::Request(request) => {
                let (status, body) = self.get(&request);
                assert_eq!(status, 200, "{path}");
                body
            }
            Opened::Stream(stream) => {
                block_on(futures_util::TryStreamExt::try_collect::<Vec<_>>(stream)).unwrap().concat()
            }
            other => panic!("{other:?}"),
        }
    }

    fn placement(&self, manifest: &Manifest) -> Placement {
        self.source.placement(manifest).unwrap().unwrap()
    }

    /// Status and body of a request by the network that the transfer engine uses.
    fn get(&self, request: &Request) -> (u16, Vec<u8>) {
        let (network, request) = (Network::new(NetworkConfig::new()), request.clone());
        let inner = network.clone();
        let getting = async move {
            let mut response = inner.get(&request, &[]).await.map_err(|failure| failure.error)?;
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(|failure| failure.error)? {
                body.extend_from_slice(&chunk);
            }
            Ok((response.status(), body))
        };
        block_on(network.run(getting)).unwrap()
    }

    /// Downloads the files of `manifest` to where the cache wants them, but for those that `without` names.
    fn publish(&self, manifest: &Manifest, without: &[&str]) {
        let placement = self.placement(manifest);
        for (file, placed) in manifest.files.iter().zip(&placement.files) {
            if without.contains(&file.path.as_str()) {
                continue;
            }
            let body = self.content(manifest, &file.path);
            assert_eq!(body.len() as u64, file.size, "{}", file.path);
            link(&placed.blob, &placed.link, &body);
        }
        for (path, commit) in &placement.refs {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, commit).unwrap();
        }
    }
}

/// Writes a blob and a relative link to it; where there are no links, the file itself.
fn link(blob: &Path, link: &Path, body: &[u8]) {
    for path in [blob, link] {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
    }
    #[cfg(unix)]
    {
        let root = blob.parent().and_then(Path::parent).unwrap();
        let ups = link.strip_prefix(root).unwrap().components().count() - 1;
        let target = "../".repeat(ups) + "blobs/" + blob.file_name().unwrap().to_str().unwrap();
        fs::write(blob, body).unwrap();
        std::os::unix::fs::symlink(target, link).unwrap();
    }
    #[cfg(not(unix))]
    fs::write(link, body).unwrap();
}

fn paths(manifest: &Manifest) -> Vec<&str> {
    manifest.files.iter().map(|f| f.path.as_str()).collect()
}

/// The error's text, after its kind was checked and that all `words` are in it, and no secret.
fn said<T: std::fmt::Debug>(result: Result<T>, code: &str, words: &[&str]) -> String {
    let error = result.expect_err(code);
    let text = error.to_string();
    assert_eq!(error.code(), code, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?}: {text}");
    }
    assert!(!text.contains(TOKEN) && !format!("{error:?}").contains(TOKEN), "{text}");
    text
}

#[test]
fn the_plugin_is_found_and_makes_both_sources() {
    let found = llm_local_core::plugin::discovered();
    assert_eq!(found.iter().filter(|p| p.crate_name == "llm-local-source-huggingface").count(), 1);
    let registry = Registry::discover(&[PLUGIN]).unwrap();
    let reference: ArtifactRef = "hf:a/b".parse().unwrap();
    assert_eq!(registry.model_source(&reference).unwrap().scheme(), "hf");
    assert_eq!(registry.adapter_source(&reference).unwrap().scheme(), "hf");
}

#[test]
fn nothing_that_is_shown_of_the_source_has_the_token() {
    let setup = with_token(Hub::start(), TOKEN);
    let builder = source("https://hub.test", setup.cache.path(), &setup.timer).token(TOKEN);
    for shown in [format!("{:?}", setup.source), format!("{builder:?}")] {
        assert!(!shown.contains(TOKEN), "{shown}");
    }
    let error = builder.token(format!("{TOKEN} x")).build().unwrap_err();
    assert!(!error.to_string().contains(TOKEN), "{error}");
    assert!(matches!(error, Error::InvalidSpec { .. }));
}
