//! A hub with a model, and the folders that it is fetched into.

use std::{collections::BTreeMap, fs, path::Path};

use llm_local::{ArtifactRef, Engine, Input, LogitsRequest, ModelSpec};
use llm_local_source_common::transfer::TransferConfig;
use llm_local_source_huggingface::HuggingFace;
use llm_local_testkit::hub::{Content, Host, Hub, Recorded, Repo};
use pollster::block_on;
use tempfile::TempDir;

use crate::common::fixture;

pub(crate) const REFERENCE: &str = "hf:org/tiny";
/// The file that comes in ranges.
pub(crate) const WEIGHTS: &str = "model.safetensors";
/// Ranges of it at a time.
pub(crate) const RANGES: usize = 4;
/// What a killed process may have to fetch again, for each range of a file.
pub(crate) const AGAIN: u64 = 1 << 20;

/// A hub with a model.
pub(crate) struct World {
    pub(crate) hub: Hub,
    /// The files of the model.
    pub(crate) files: BTreeMap<String, Content>,
    /// What the model gives for a prompt, from the same files in a folder.
    logits: Vec<f32>,
    /// Bytes that one request asks for.
    segment_bytes: u64,
}

/// Where one download ends up: gone when dropped.
pub(crate) struct Folder(TempDir);

impl World {
    /// The model of the fixture `tiny-llama` with so many tokens more, each of which makes its weights 256 bytes longer.
    /// They come in segments of `segment_bytes`.
    pub(crate) fn new(more: usize, segment_bytes: u64) -> Self {
        let (mut repo, mut files) = (Repo::new("org/tiny"), BTreeMap::new());
        let on_disk = Folder::new();
        for entry in fs::read_dir(fixture("models/tiny-llama")).unwrap() {
            let path = entry.unwrap().path();
            let (name, bytes) = (path.file_name().unwrap().to_str().unwrap(), fs::read(&path).unwrap());
            let bytes = match name {
                WEIGHTS => with_embeddings(&bytes, more),
                "config.json" => with_tokens(&bytes, more),
                _ => bytes,
            };
            fs::write(on_disk.path().join(name), &bytes).unwrap();
            let content = Content::from(bytes);
            repo = match name {
                WEIGHTS => repo.with_lfs(name, content.clone()),
                _ => repo.with_file(name, content.clone()),
            };
            files.insert(name.to_owned(), content);
        }
        let logits = logits(&Engine::builder().build().unwrap(), ArtifactRef::file(on_disk.path()).unwrap());
        Self { hub: Hub::builder().with_repo(repo).start(), files, logits, segment_bytes }
    }

    /// The size of the file that comes in ranges.
    pub(crate) fn size(&self) -> u64 {
        self.files[WEIGHTS].size()
    }

    /// The files that come in one request each.
    pub(crate) fn small(&self) -> impl Iterator<Item = (&String, &Content)> {
        self.files.iter().filter(|(name, _)| *name != WEIGHTS)
    }

    /// Asserts that the model that is in `folder` gives the logits it should, without a request.
    pub(crate) fn assert_loads(&self, folder: &Path) {
        self.hub.clear();
        let engine = engine(&self.hub.endpoint(), folder, self.segment_bytes, true);
        assert!(logits(&engine, REFERENCE.parse().unwrap()) == self.logits, "the model gives other logits");
        assert!(self.hub.requests().is_empty(), "{:?}", self.hub.requests());
    }

    pub(crate) fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }
}

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

/// An engine that fetches from `endpoint` into `folder`, and knows nothing of the user's own settings.
pub(crate) fn engine(endpoint: &str, folder: &Path, segment_bytes: u64, offline: bool) -> Engine {
    let source = HuggingFace::builder().endpoint(endpoint).token("").cache_dir(folder.join("hub")).offline(offline);
    let transfer = TransferConfig::new().with_ranges_per_file(RANGES).with_segment_bytes(segment_bytes);
    Engine::builder()
        .source(source.build().unwrap())
        .cache_dir(folder.join("store"))
        .transfer(transfer)
        .offline(offline)
        .build()
        .unwrap()
}

fn logits(engine: &Engine, model: ArtifactRef) -> Vec<f32> {
    let request = LogitsRequest::new(Input::Text("Once upon a time".into()));
    block_on(engine.logits(&ModelSpec::new(model), request)).unwrap()
}

/// Those that ask the second host for the weights.
pub(crate) fn of_weights(requests: &[Recorded]) -> impl Iterator<Item = &Recorded> {
    requests.iter().filter(|request| request.host == Host::Cdn && request.is_for(WEIGHTS))
}

/// How many bytes of the weights were handed to the system.
pub(crate) fn sent(requests: &[Recorded]) -> u64 {
    of_weights(requests).map(|request| request.body_bytes_sent).sum()
}

/// The first byte that a request asks for.
pub(crate) fn start(request: &Recorded) -> u64 {
    let range = request.header("range").and_then(|range| range.strip_prefix("bytes="));
    range.map_or(0, |range| range.split('-').next().unwrap().parse().unwrap())
}

/// The config of tiny-llama, with so many tokens more.
fn with_tokens(config: &[u8], more: usize) -> Vec<u8> {
    let mut config: serde_json::Value = serde_json::from_slice(config).unwrap();
    config["vocab_size"] = (config["vocab_size"].as_u64().unwrap() as usize + more).into();
    config.to_string().into_bytes()
}

/// The weights of tiny-llama, with so many tokens more, whose embeddings are small random numbers.
fn with_embeddings(file: &[u8], more: usize) -> Vec<u8> {
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let (header, data) = file[8..].split_at(length);
    let mut header: serde_json::Value = serde_json::from_slice(header).unwrap();
    let embeddings = &header["model.embed_tokens.weight"];
    let (end, width) = (embeddings["data_offsets"][1].as_u64().unwrap(), embeddings["shape"][1].as_u64().unwrap());
    let mut random = Random(4);
    let rows: Vec<u8> = (0..more * width as usize)
        // Of the type BF16, with the exponent of 0.0078 or, by another bit of it, four times that.
        .flat_map(|_| (0x3c00 | random.below(0x200) as u16).to_le_bytes())
        .collect();
    for (name, tensor) in header.as_object_mut().unwrap().iter_mut().filter(|(name, _)| *name != "__metadata__") {
        let offsets = tensor["data_offsets"].as_array_mut().unwrap();
        for offset in offsets {
            let at = offset.as_u64().unwrap();
            if at >= end {
                *offset = (at + rows.len() as u64).into();
            }
        }
        if name == "model.embed_tokens.weight" {
            tensor["shape"][0] = (tensor["shape"][0].as_u64().unwrap() as usize + more).into();
        }
    }
    let header = header.to_string();
    let (before, after) = data.split_at(end as usize);
    let length = (header.len() as u64).to_le_bytes();
    [&length[..], header.as_bytes(), before, &rows, after].concat()
}

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}
