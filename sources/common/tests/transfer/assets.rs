//! Releases of a source that has their files in memory, and a store that they are fetched into.

use std::{
    collections::BTreeMap,
    fs,
    io::{Cursor, Write},
    ops::Range,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use llm_local_core::{
    ArtifactRef, ArtifactSource, CancellationToken, Digest, Error, FetchContext, Manifest, ManifestFile, Opened,
    ProgressEvent, Result, Unpack, Want, async_trait,
};
use llm_local_source_common::{
    network::{Network, NetworkConfig, testing::FakeTimer},
    store::Store,
    transfer::{Files, Job, Transfer, TransferConfig},
};
use llm_local_testkit::hub::Content;
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

pub(crate) const CONFIG: &str = "adapter_config.json";
pub(crate) const WEIGHTS: &str = "adapter_model.safetensors";

/// A zip of `files`, without compression.
pub(crate) fn zip_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (path, bytes) in files {
        zip.start_file(*path, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

pub(crate) fn sha256_of(bytes: &[u8]) -> Digest {
    format!("sha256:{}", Content::from(bytes.to_vec()).sha256()).parse().unwrap()
}

/// Files by their names.
type Bytes = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// What there is now, by name, and how often it was asked for.
pub(crate) struct Assets {
    pub(crate) root: tempfile::TempDir,
    pub(crate) assets: Bytes,
    pub(crate) opened: Arc<AtomicUsize>,
    pub(crate) events: Arc<Mutex<Vec<ProgressEvent>>>,
    pub(crate) cancel: CancellationToken,
    pub(crate) config: TransferConfig,
    pub(crate) timer: FakeTimer,
    pub(crate) want: Want,
}

struct Memory {
    assets: Bytes,
    opened: Arc<AtomicUsize>,
}

#[async_trait]
impl ArtifactSource for Memory {
    fn scheme(&self) -> &str {
        "test"
    }

    async fn resolve(&self, reference: &ArtifactRef, _: Want, _: &FetchContext) -> Result<Manifest> {
        Err(Error::not_found(reference, "these tests make their manifests themselves"))
    }

    async fn open(&self, _: &Manifest, file: &ManifestFile, range: Range<u64>, cx: &FetchContext) -> Result<Opened> {
        if cx.offline {
            return Err(Error::Offline { what: file.path.clone() });
        }
        self.opened.fetch_add(1, Ordering::SeqCst);
        let bytes = self.assets.lock().unwrap()[&file.path].clone();
        Ok(Opened::bytes(bytes[range.start as usize..range.end as usize].to_vec()))
    }
}

impl Assets {
    pub(crate) fn new(assets: &[(&str, Vec<u8>)]) -> Self {
        let new = Self {
            root: tempfile::tempdir().unwrap(),
            assets: Arc::default(),
            opened: Arc::default(),
            events: Arc::default(),
            cancel: CancellationToken::new(),
            config: TransferConfig::new(),
            timer: FakeTimer::new(),
            want: Want::Adapter,
        };
        assets.iter().for_each(|(name, bytes)| new.put(name, bytes.clone()));
        new
    }

    /// Has `bytes` under `name`, in place of what was there.
    pub(crate) fn put(&self, name: &str, bytes: Vec<u8>) {
        self.assets.lock().unwrap().insert(name.into(), bytes);
    }

    pub(crate) fn store(&self) -> Store {
        Store::new(self.root.path())
    }

    pub(crate) fn transfer(&self) -> Transfer {
        let network = Network::new(NetworkConfig::new()).with_timer(Arc::new(self.timer.clone()));
        Transfer::new(network, self.store(), self.config.clone())
    }

    /// The files of these names as they are now, with their digests if those are `told`.
    pub(crate) fn manifest(&self, reference: &str, revision: &str, names: &[&str], told: bool) -> Manifest {
        let assets = self.assets.lock().unwrap();
        let file = |name: &&str| {
            let bytes = &assets[*name];
            let file = ManifestFile::new(*name, bytes.len() as u64);
            if told { file.with_digest(sha256_of(bytes)) } else { file }
        };
        let files = names.iter().map(file).collect();
        Manifest::new(reference.parse().unwrap(), self.want, revision, files).unwrap()
    }

    /// The archive of this name, to be unpacked, of the release `v1` with this ref.
    pub(crate) fn archive(&self, reference: &str, name: &str) -> Manifest {
        let manifest = self.manifest(reference, "7:1", &[name], true).with_version("v1");
        manifest.with_unpack(vec![Unpack::Archive { file: name.into() }]).unwrap()
    }

    pub(crate) fn job(&self, manifest: &Manifest) -> Job {
        let source = Memory { assets: self.assets.clone(), opened: self.opened.clone() };
        Job::new(Arc::new(source), manifest.clone())
    }

    pub(crate) fn cx(&self) -> FetchContext {
        let events = self.events.clone();
        let handler = move |event: &ProgressEvent| events.lock().unwrap().push(event.clone());
        FetchContext::new().with_cancel(self.cancel.clone()).with_progress(Arc::new(handler))
    }

    pub(crate) fn fetch(&self, manifest: &Manifest) -> Result<Files> {
        self.fetch_all(&[manifest]).map(|mut files| files.remove(0))
    }

    pub(crate) fn fetch_all(&self, manifests: &[&Manifest]) -> Result<Vec<Files>> {
        let jobs = manifests.iter().map(|manifest| self.job(manifest)).collect();
        pollster::block_on(self.transfer().fetch(jobs, &self.cx()))
    }

    pub(crate) fn present(&self, manifest: &Manifest) -> Option<Files> {
        pollster::block_on(self.transfer().present(&self.job(manifest), &self.cx())).unwrap()
    }

    pub(crate) fn missing(&self, manifests: &[&Manifest]) -> u64 {
        let jobs: Vec<_> = manifests.iter().map(|manifest| self.job(manifest)).collect();
        pollster::block_on(self.transfer().unpublished_bytes(&jobs, &self.cx())).unwrap()
    }

    /// How often the source was asked since the last call of this.
    pub(crate) fn asked(&self) -> usize {
        self.opened.swap(0, Ordering::SeqCst)
    }

    /// The contents that are published, by their names, which are their digests where they have one.
    pub(crate) fn blobs(&self) -> BTreeMap<String, Vec<u8>> {
        let Ok(blobs) = fs::read_dir(self.root.path().join("blobs")) else { return BTreeMap::new() };
        let paths = blobs.map(|entry| entry.unwrap().path());
        paths.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap())).collect()
    }

    /// Asserts that these are the contents, and that nothing is on its way.
    pub(crate) fn assert_has(&self, contents: &[&[u8]]) {
        let name = |bytes: &&[u8]| (sha256_of(bytes).to_string().replace(':', "-"), bytes.to_vec());
        assert_eq!(self.blobs(), contents.iter().map(name).collect());
        self.assert_nothing_left();
    }

    /// Asserts that nothing is on its way.
    pub(crate) fn assert_nothing_left(&self) {
        for folder in ["partials", "unpacking"] {
            assert_eq!(self.below(folder), Vec::<PathBuf>::new());
        }
    }

    /// What is directly in the folder of this name.
    pub(crate) fn below(&self, folder: &str) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.root.path().join(folder)) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// The refs that are recorded.
    pub(crate) fn recorded(&self) -> Vec<String> {
        let artifacts = self.store().list().unwrap().artifacts;
        assert!(artifacts.iter().all(|artifact| artifact.damaged.is_empty()), "{artifacts:?}");
        artifacts.into_iter().map(|artifact| artifact.reference.to_string()).collect()
    }
}
