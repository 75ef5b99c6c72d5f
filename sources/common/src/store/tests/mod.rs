//! Stores in folders of their own: contents of this store, and a cache of another tool as the Hugging Face Hub's tools
//! lay it out.

mod cleaning;
mod damaged;
mod deleting;
mod evicting;
#[cfg(unix)]
mod found;
#[cfg(unix)]
mod hub;
mod keeping;
mod merges;
mod processes;
#[cfg(unix)]
mod read_only;
mod sharing;
#[cfg(unix)]
mod unfinished;
mod verifying;
mod versions;
mod waiting;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use llm_local_core::{ArtifactRef, Digest, Manifest, ManifestFile, PlacedFile, Placement, Want};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::Store;
use crate::disk::FileKey;

/// A store in a folder that goes with it.
struct Fixture {
    folder: TempDir,
    store: Store,
}

/// `seconds` after a moment in 2027.
fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
}

fn reference(text: &str) -> ArtifactRef {
    text.parse().unwrap()
}

fn sha256(content: &str) -> Digest {
    Digest::Sha256(Sha256::digest(content).into())
}

fn manifest(text: &str, revision: &str, files: &[(&str, &str)]) -> Manifest {
    let file =
        |(path, content): &(&str, &str)| ManifestFile::new(*path, content.len() as u64).with_digest(sha256(content));
    Manifest::new(reference(text), Want::Model, revision, files.iter().map(file).collect()).unwrap()
}

fn write(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("store"));
        Self { folder, store }
    }

    /// Publishes and records an artifact in the store itself, as fetched at second `now`.
    fn own(&self, text: &str, revision: &str, files: &[(&str, &str)], now: u64) -> Manifest {
        let manifest = manifest(text, revision, files);
        let mut paths = BTreeMap::new();
        for (file, (path, content)) in manifest.files.iter().zip(files) {
            let blob = self.store.blob(&FileKey::new(&manifest, file));
            write(&blob, content);
            paths.insert((*path).to_owned(), blob);
        }
        self.store.record(&manifest, &paths, &BTreeMap::new(), None, true, at(now)).unwrap();
        manifest
    }

    /// Where the content of this text is in the store itself.
    fn blob(&self, content: &str) -> PathBuf {
        self.store.blob(&FileKey::of_digest(&sha256(content)))
    }

    /// The folder of one repository in a cache of another tool.
    fn repo(&self) -> PathBuf {
        self.folder.path().join("hub/models--org--name")
    }

    /// Where such a cache wants an artifact, whose ref is `main` if it has one.
    fn placement(&self, manifest: &Manifest, branch: Option<&str>) -> Placement {
        let repo = self.repo();
        let placed = |file: &ManifestFile| {
            let etag = file.digest.unwrap().to_string().replace("sha256:", "");
            let link = repo.join("snapshots").join(&manifest.revision).join(&file.path);
            PlacedFile::new(repo.join("blobs").join(etag), link)
        };
        let placement = Placement::new(&repo, repo.join("snapshots"), manifest.files.iter().map(placed).collect());
        match branch {
            Some(branch) => placement.with_ref(repo.join("refs").join(branch), &manifest.revision),
            None => placement,
        }
    }

    /// The refs and revisions that are listed, and whether each is whole.
    fn listed(&self) -> Vec<(String, String, bool)> {
        let artifacts = self.store.list().unwrap().artifacts.into_iter();
        artifacts.map(|a| (a.reference.to_string(), a.revision, a.damaged.is_empty())).collect()
    }

    /// Every file, link and empty folder of the test, by its path.
    fn tree(&self) -> Vec<String> {
        fn walk(folder: &Path, top: &Path, found: &mut Vec<String>) {
            let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap()).collect();
            entries.sort_by_key(fs::DirEntry::path);
            if entries.is_empty() {
                found.push(format!("{}/", folder.strip_prefix(top).unwrap().display()));
            }
            for entry in entries {
                if entry.file_type().unwrap().is_dir() {
                    walk(&entry.path(), top, found);
                } else {
                    found.push(entry.path().strip_prefix(top).unwrap().display().to_string());
                }
            }
        }
        let mut found = Vec::new();
        walk(self.folder.path(), self.folder.path(), &mut found);
        found.into_iter().map(|path| path.replace(std::path::MAIN_SEPARATOR, "/")).collect()
    }
}
