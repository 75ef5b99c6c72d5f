//! In which order the steps of a whole fetch reach the disk: after a power loss, what says that a file is there must not
//! be there without it.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use llm_local_core::{
    ArtifactRef, ArtifactSource, Digest, Error, FetchContext, Manifest, ManifestFile, Opened, PlacedFile, Placement,
    Result, Want, async_trait,
};
use sha2::{Digest as _, Sha256};

use super::{Job, Transfer, TransferConfig, small::SMALL};
use crate::{
    disk::{Step, steps_below},
    network::{Network, NetworkConfig},
    store::Store,
};

/// A small file and a large one. What the small one leaves to the end of the fetch, publishing the large one may do too.
const FILES: [(&str, u64); 2] = [("config.json", 1000), ("model.bin", SMALL + 1)];

struct Streaming(Option<Placement>);

#[async_trait]
impl ArtifactSource for Streaming {
    fn scheme(&self) -> &str {
        "test"
    }

    async fn resolve(&self, reference: &ArtifactRef, _: Want, _: &FetchContext) -> Result<Manifest> {
        Err(Error::not_found(reference, "this test makes its manifest itself"))
    }

    async fn open(&self, _: &Manifest, file: &ManifestFile, range: Range<u64>, _: &FetchContext) -> Result<Opened> {
        let bytes = Bytes::from(content(file.size)).slice(range.start as usize..range.end as usize);
        Ok(Opened::Stream(Box::pin(futures_util::stream::iter([Ok(bytes)]))))
    }

    fn placement(&self, _: &Manifest) -> Result<Option<Placement>> {
        Ok(self.0.clone())
    }
}

fn content(size: u64) -> Vec<u8> {
    (0..size).map(|at| (at % 251) as u8).collect()
}

fn manifest(files: &[(&str, u64)]) -> Manifest {
    let file = |&(path, size): &(&str, u64)| {
        let digest = Digest::Sha256(Sha256::digest(content(size)).into());
        ManifestFile::new(path, size).with_digest(digest)
    };
    Manifest::new("test:a".parse().unwrap(), Want::Model, "1", files.iter().map(file).collect()).unwrap()
}

/// Fetches `files` into `folder`, to a cache of another tool or to the store itself; gives the steps, and the blobs of the files.
fn fetch(folder: &Path, files: &[(&str, u64)], in_a_cache: bool) -> (Vec<Step>, Vec<PathBuf>) {
    let (manifest, store, cache) = (manifest(files), Store::new(folder.join("store")), folder.join("cache"));
    let place =
        |(path, _): &(&str, u64)| PlacedFile::new(cache.join("blobs").join(path), cache.join("links/1").join(path));
    let placed: Vec<_> = files.iter().map(place).collect();
    let blobs = match in_a_cache {
        true => placed.iter().map(|placed| placed.blob.clone()).collect(),
        false => manifest.files.iter().map(|file| store.blob(&crate::disk::FileKey::new(&manifest, file))).collect(),
    };
    let placement = Placement::new(&cache, cache.join("links"), placed).with_ref(cache.join("refs/main"), "1");
    let source = Streaming(in_a_cache.then_some(placement));
    let transfer = Transfer::new(Network::new(NetworkConfig::new()), store, TransferConfig::new());
    let jobs = vec![Job::new(Arc::new(source), manifest)];
    pollster::block_on(transfer.fetch(jobs, &FetchContext::new())).unwrap();
    (steps_below(folder), blobs)
}

/// Where the last step `what` that leads to `to` is; or, of a folder, the last before `end`.
#[track_caller]
fn at(steps: &[Step], what: &str, to: &Path) -> usize {
    let at = steps.iter().rposition(|step| step.what == what && step.to == to);
    at.unwrap_or_else(|| panic!("no {what} of {} in {steps:#?}", to.display()))
}

/// Asserts that the file at `to` was on the disk before it was renamed, and its name before the step number `end`.
#[track_caller]
fn assert_lasts(steps: &[Step], to: &Path, end: usize) {
    let renamed = at(steps, "rename", to);
    at(&steps[..renamed], "sync", &steps[renamed].from);
    let synced = at(&steps[..end], "sync folder", to.parent().unwrap());
    assert!(renamed < synced, "{} is renamed after its folder is synced: {steps:#?}", to.display());
}

#[test]
fn files_and_their_names_are_on_the_disk_before_the_record_and_that_before_the_ref() {
    for (files, in_a_cache) in [(&FILES[..], false), (&FILES[..], true), (&FILES[..1], false), (&FILES[..1], true)] {
        let folder = tempfile::tempdir().unwrap();
        let (steps, blobs) = fetch(folder.path(), files, in_a_cache);
        let is_record =
            |step: &&Step| step.what == "rename" && step.to.starts_with(folder.path().join("store/artifacts"));
        let record = steps.iter().find(is_record).expect("there is a record").to.clone();
        let recorded = at(&steps, "rename", &record);
        for blob in &blobs {
            assert_lasts(&steps, blob, recorded);
        }
        at(&steps[..recorded], "sync", &steps[recorded].from);
        let cache = folder.path().join("cache");
        if !in_a_cache {
            assert!(!cache.exists());
            continue;
        }
        let reference = at(&steps, "rename", &cache.join("refs/main"));
        assert_lasts(&steps, &record, reference);
        at(&steps[..reference], "sync", &steps[reference].from);
        if cfg!(unix) {
            for (name, _) in files {
                let link = cache.join("links/1").join(name);
                let synced = at(&steps[..recorded], "sync folder", link.parent().unwrap());
                assert!(at(&steps, "link", &link) < synced, "{steps:#?}");
            }
        }
    }
}
