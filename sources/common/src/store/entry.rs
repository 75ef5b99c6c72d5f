//! A file of a record: what it is, where it lies, and who brought it there.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use llm_local_core::{Digest, Manifest, ManifestFile, Placement, Result};
use serde::{Deserialize, Serialize};

use super::{
    Store,
    below::Below,
    record::{Record, to_millis},
};
use crate::disk::FileKey;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct RecordFile {
    pub(super) path: String,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) digest: Option<Digest>,
    /// What a file without a promised digest had when it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) computed: Option<Digest>,
    /// That we brought it to that place; else it was found there. Of files below the store's root it says nothing:
    /// nobody else brings any there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) fetched: Option<Fetched>,
    /// That the artifact has it no more: other files are wanted now, or others were made.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) former: bool,
    pub(super) place: Place,
}

/// A file as its source has it, of an artifact whose files were made of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Origin {
    pub(super) path: String,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) digest: Option<Digest>,
    /// What a file without a promised digest had when it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) computed: Option<Digest>,
}

/// How content that we brought is told from content that another tool brought to the same place later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fetched {
    /// When it was last written, in milliseconds since 1970; unknown in records of version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) modified: Option<u64>,
}

/// Where a file lies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Place {
    /// Below the store's root.
    Blob(Below),
    /// Below the root of another tool's cache.
    Linked { blob: Below, link: Below },
    /// Somewhere on this machine: its owner's, never ours to delete.
    Elsewhere(PathBuf),
}

impl Origin {
    /// The files of `manifest`, if others are made of them. `computed` has the digests of those for which none was
    /// promised.
    pub(super) fn all(manifest: &Manifest, computed: &BTreeMap<String, Digest>) -> Vec<Self> {
        let origin = |file: &ManifestFile| {
            let (path, size, digest) = (file.path.clone(), file.size, file.digest);
            Self { computed: computed.get(&path).copied(), path, size, digest }
        };
        if manifest.unpack.is_empty() { Vec::new() } else { manifest.files.iter().map(origin).collect() }
    }
}

impl Fetched {
    /// That what is at `path` now was brought by us.
    pub(super) fn now(path: &Path) -> Self {
        Self { modified: modified(path) }
    }
}

impl Record {
    /// Whether we brought `file`, which is one of its, to where it is now.
    pub(super) fn is_ours(&self, store: &Path, file: &RecordFile) -> bool {
        let root = self.cache_root();
        match (&file.place, file.fetched) {
            (Place::Blob(blob), _) => blob.at(store).exists(),
            (Place::Linked { blob, link }, Some(Fetched { modified: then })) => {
                let there = [blob.at(root), link.at(root)].into_iter().filter_map(|path| modified(&path));
                there.into_iter().any(|now| then.is_none_or(|then| then == now))
            }
            (Place::Linked { .. }, None) | (Place::Elsewhere(_), _) => false,
        }
    }

    /// Whether we brought any of it.
    pub(super) fn has_ours(&self, store: &Path) -> bool {
        self.files.iter().any(|file| self.is_ours(store, file))
    }
}

/// When the file that `path` leads to was last written, in milliseconds since 1970. `None` if there is none.
fn modified(path: &Path) -> Option<u64> {
    fs::metadata(path).ok()?.modified().ok().map(to_millis)
}

/// The place of `file` of `manifest`: its own in `placed`, or in the store; or where it is `used`, if that is neither.
pub(super) fn place(
    store: &Store,
    manifest: &Manifest,
    file: &ManifestFile,
    placed: Option<(&Placement, usize)>,
    used: Option<&PathBuf>,
) -> Result<Place> {
    let (base, blob, link) = match placed {
        Some((placement, i)) => {
            (placement.root.as_path(), placement.files[i].blob.clone(), Some(&placement.files[i].link))
        }
        None => (store.root(), store.blob(&FileKey::new(manifest, file)), None),
    };
    match used {
        Some(used) if used != link.unwrap_or(&blob) => Ok(Place::Elsewhere(used.clone())),
        _ => {
            let blob = Below::new(base, &blob)?;
            Ok(match link {
                Some(link) => Place::Linked { blob, link: Below::new(base, link)? },
                None => Place::Blob(blob),
            })
        }
    }
}
