//! A hub with tiny-llama, a GitHub, and engines that know both.

use std::{fs, io::Write, path::Path};

use llm_local::{
    ArtifactRef, ComputeDtype, Engine, EngineBuilder, Error, GenerateRequest, Model, ModelSpec, Result,
    core::GenerationStats,
};
use llm_local_source_github::GitHub;
use llm_local_source_huggingface::HuggingFace;
use llm_local_testkit::{
    github::{GitHub as Releases, Host, Release, Repository},
    hub::{Hub, Repo},
};
use pollster::block_on;
use tempfile::TempDir;

use crate::common::{fixture, reference};

/// Prompts are answered with so many tokens, few enough for the references to be certain of them.
const TOKENS: usize = 12;
/// Logits differ from those of the references by at most 2e-5: what is nearer than this could go either way.
const MARGIN: f32 = 1e-4;

pub(crate) struct World {
    pub(crate) hub: Hub,
    pub(crate) github: Releases,
    pub(crate) folder: TempDir,
}

/// The files of the fixture `tiny-llama-lora-<adapter>`, by name.
pub(crate) fn adapter_files(adapter: &str) -> Vec<(String, Vec<u8>)> {
    files(&fixture(&format!("adapters/tiny-llama-lora-{adapter}")))
}

pub(crate) fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let named =
        |path: std::path::PathBuf| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap());
    let mut files: Vec<_> = entries.map(named).collect();
    files.sort();
    files
}

/// A release whose assets are the files of an adapter.
pub(crate) fn loose(tag: &str, adapter: &str) -> Release {
    adapter_files(adapter).into_iter().fold(Release::new(tag), |release, (name, bytes)| release.with_file(name, bytes))
}

/// A release whose asset is an archive of an adapter's folder.
pub(crate) fn zipped(tag: &str, adapter: &str) -> Release {
    Release::new(tag).with_file("pirate.zip", zip_of(adapter))
}

/// An archive of an adapter's folder.
pub(crate) fn zip_of(adapter: &str) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in adapter_files(adapter) {
        zip.start_file(format!("pirate/{name}"), zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(&bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// The folder of a fixture as a repository of the Hub.
fn repo(id: &str, folder: &str) -> Repo {
    files(&fixture(folder)).into_iter().fold(Repo::new(id), |repo, (name, bytes)| {
        if name.ends_with(".safetensors") { repo.with_lfs(name, bytes) } else { repo.with_file(name, bytes) }
    })
}

impl World {
    /// With the repository `acme/lora`, which has this release.
    pub(crate) fn new(release: Release) -> Self {
        let hub = Hub::builder()
            .with_repo(repo("org/tiny", "models/tiny-llama"))
            .with_repo(repo("org/pirate", "adapters/tiny-llama-lora-peft"));
        let repository = Repository::new("acme/lora").with_license("MIT").with_release(release);
        let github = Releases::builder().with_repository(repository);
        Self { hub: hub.start(), github: github.start(), folder: tempfile::tempdir().unwrap() }
    }

    /// As [`World::new`], and with the repository `org/unnamed` of the Hub, which has one file.
    pub(crate) fn with_repository(release: Release, name: &str, bytes: &[u8]) -> Self {
        Self { hub: Self::hub_with(&[(name.to_owned(), bytes.to_vec())]), ..Self::new(release) }
    }

    /// As [`World::with_repository`], where it has these files, and no release matters.
    pub(crate) fn with_unnamed(files: &[(String, Vec<u8>)]) -> Self {
        Self { hub: Self::hub_with(files), ..Self::new(loose("v1", "peft")) }
    }

    fn hub_with(unnamed: &[(String, Vec<u8>)]) -> Hub {
        let repository = Repo::new("org/unnamed");
        let unnamed =
            unnamed.iter().fold(repository, |repository, (name, bytes)| repository.with_lfs(name, bytes.clone()));
        let hub = Hub::builder()
            .with_repo(repo("org/tiny", "models/tiny-llama"))
            .with_repo(repo("org/pirate", "adapters/tiny-llama-lora-peft"))
            .with_repo(unnamed);
        hub.start()
    }

    pub(crate) fn builder(&self) -> EngineBuilder {
        let folder = self.folder.path();
        let hub = HuggingFace::builder().endpoint(self.hub.endpoint()).token("").cache_dir(folder.join("hub"));
        let github = GitHub::builder().token("").api(self.github.api_url()).answers(folder.join("answers"));
        let builder = Engine::builder().source(hub.build().unwrap()).source(github.build().unwrap());
        builder.cache_dir(folder.join("store"))
    }

    pub(crate) fn engine(&self) -> Engine {
        self.builder().build().unwrap()
    }

    pub(crate) fn offline(&self) -> Engine {
        self.builder().offline(true).build().unwrap()
    }

    /// Nothing that was fetched is here any more.
    pub(crate) fn forget(&self) {
        for folder in ["store", "hub", "answers"] {
            let _ = fs::remove_dir_all(self.folder.path().join(folder));
        }
    }

    /// The files below the store, but its locks with their marks, and what tells backups that it is a cache.
    pub(crate) fn stored(&self) -> Vec<String> {
        let root = self.folder.path().join("store");
        let (mut folders, mut found) = (vec![root.clone()], Vec::new());
        while let Some(folder) = folders.pop() {
            for path in fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()) {
                match path.is_dir() {
                    true => folders.push(path),
                    false => found.push(path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned()),
                }
            }
        }
        found.retain(|path| !path.starts_with("locks/") && path != "CACHEDIR.TAG");
        found.sort();
        found
    }

    /// The contents of the store, sorted.
    pub(crate) fn contents(&self) -> Vec<Vec<u8>> {
        let stored = self.stored().into_iter().filter(|path| path.starts_with("blobs/"));
        let mut contents: Vec<_> =
            stored.map(|path| fs::read(self.folder.path().join("store").join(path)).unwrap()).collect();
        contents.sort();
        contents
    }

    /// How many requests there were to either server since this was called last.
    pub(crate) fn requests(&self) -> usize {
        let count = self.github.wait_until_idle().len() + self.hub.wait_until_idle().len();
        self.github.clear();
        self.hub.clear();
        count
    }

    /// The paths that GitHub's API was asked for since [`World::requests`] was called last.
    pub(crate) fn asked(&self) -> Vec<String> {
        let requests = self.github.wait_until_idle();
        requests.into_iter().filter(|r| r.host == Host::Api).map(|r| r.path).collect()
    }
}

/// tiny-llama of the Hub with this adapter.
pub(crate) fn spec(adapter: &str) -> ModelSpec {
    let base: ArtifactRef = "hf:org/tiny".parse().unwrap();
    ModelSpec::new(base).with_adapter(adapter.parse().unwrap()).with_dtype(ComputeDtype::F32)
}

/// What the model of `spec` answers to each prompt of the references.
pub(crate) fn answers(engine: &Engine, spec: &ModelSpec) -> Result<Vec<Vec<u32>>> {
    Ok(answers_of(&block_on(engine.load(spec))?))
}

pub(crate) fn answers_of(model: &Model) -> Vec<Vec<u32>> {
    let cases = reference("tiny-llama").cases;
    cases.iter().map(|case| answer(model, &case.prompt_ids).0).collect()
}

/// What the model answers to one prompt, and the statistics of it.
pub(crate) fn answer(model: &Model, prompt: &[u32]) -> (Vec<u32>, GenerationStats) {
    let request = GenerateRequest::new(prompt.to_vec()).with_max_tokens(TOKENS).with_ignore_eos(true);
    let completion = block_on(model.generate(request).complete()).unwrap();
    (completion.tokens, completion.stats)
}

/// Asserts that `answers` are those of the reference for tiny-llama with this adapter, wherever it is certain of them, and
/// not those without one.
#[track_caller]
pub(crate) fn assert_reference(answers: &[Vec<u32>], adapter: &str) {
    let with = reference(&format!("tiny-llama__tiny-llama-lora-{adapter}")).cases;
    let without = reference("tiny-llama").cases;
    let (mut compared, mut differ) = (0, 0);
    for ((case, base), answer) in with.iter().zip(&without).zip(answers) {
        assert_eq!(case.prompt_ids, base.prompt_ids);
        if case.min_margin > MARGIN {
            let expected = &case.greedy_ids[..TOKENS.min(case.greedy_ids.len())];
            assert_eq!(&answer[..expected.len()], expected, "{:?}", case.prompt);
            compared += 1;
            differ += usize::from(&base.greedy_ids[..expected.len()] != expected);
        }
    }
    assert!(compared >= 4 && differ >= 1, "{compared} answers compared, {differ} of them changed by the adapter");
}

/// Asserts that it is the one kind of error that an adapter's trouble has, around one of this kind, and says all of these.
#[track_caller]
pub(crate) fn assert_adapter_error<T: std::fmt::Debug>(result: Result<T>, cause: &str, parts: &[&str]) {
    let error = result.unwrap_err();
    assert_eq!(error.code(), "adapter_merge_failed", "{error}");
    let Error::AdapterMergeFailed { source, .. } = &error else { unreachable!("its code says so") };
    let source = source.as_ref().and_then(|cause| cause.downcast_ref::<Error>());
    assert_eq!(source.map_or("none", Error::code), cause, "{error:?}");
    for part in parts {
        assert!(error.to_string().contains(part), "`{part}` is not in: {error}");
    }
}
