//! What there is, and how large.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use llm_local_core::{ArtifactRef, Result, Want};

use super::{
    Store,
    below::real,
    entry::{Place, RecordFile},
    ledger::Ledger,
    record::{Record, from_millis},
    tree,
};

/// An artifact that this store has a record of.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Artifact {
    /// The ref as it was asked for.
    pub reference: ArtifactRef,
    /// What it was wanted as.
    pub want: Want,
    /// The immutable revision.
    pub revision: String,
    /// Its files: the path in the artifact, and where it is used.
    pub files: Vec<(String, PathBuf)>,
    /// The paths of those that are missing, or of another size than they should be. Empty for a whole artifact.
    pub damaged: Vec<String>,
    /// Bytes on disk. Content that others share counts for each.
    pub bytes: u64,
    /// The licence, where the source tells.
    pub license: Option<String>,
    /// Whether its owner grants access to those who ask, where the source tells.
    pub gated: Option<bool>,
    /// Whether any of it was brought here, and not found in the cache of another tool.
    pub fetched: bool,
    /// The paths of those that are there and were found in the cache of another tool, or are their owner's. Eviction
    /// leaves them alone.
    pub found: Vec<String>,
    /// Whether it is kept from eviction.
    pub pinned: bool,
    /// When it was first recorded.
    pub created: SystemTime,
    /// When it was last used.
    pub last_used: SystemTime,
}

/// What a store has.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Listing {
    /// By ref, then revision.
    pub artifacts: Vec<Artifact>,
    /// Records that this version of the program does not understand. They are left alone, and so is what they name.
    pub unreadable: Vec<UnreadableRecord>,
}

/// A record that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnreadableRecord {
    /// The file.
    pub path: PathBuf,
    /// Why, and what to do.
    pub reason: String,
}

/// Bytes on disk, each content counted once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Size {
    /// Of files that were brought here. Content that found ones share counts here.
    pub fetched: u64,
    /// Of files that were found in the caches of other tools.
    pub found: u64,
    /// Of content without a record: what came of artifacts that are not whole.
    pub unrecorded: u64,
    /// Of files on their way, and of what is being unpacked.
    pub partials: u64,
}

impl Store {
    /// All artifacts. Looks at files' sizes, not at their bytes; [`Store::verify`] does. Takes no lock.
    ///
    /// # Errors
    /// [`Error::Io`](llm_local_core::Error::Io).
    pub fn list(&self) -> Result<Listing> {
        let ledger = self.ledger()?;
        let unreadable = ledger.unreadable.into_iter();
        Ok(Listing {
            artifacts: ledger.records.iter().map(|record| self.artifact(record)).collect(),
            unreadable: unreadable.map(|u| UnreadableRecord { path: u.path, reason: u.reason }).collect(),
        })
    }

    /// How many bytes it all takes. Takes no lock.
    ///
    /// # Errors
    /// [`Error::Io`](llm_local_core::Error::Io).
    pub fn size(&self) -> Result<Size> {
        let mut size = Size::default();
        let contents = self.contents(&self.ledger()?)?;
        for content in contents.values() {
            let sum = match (content.users.is_empty(), content.fetched) {
                (true, _) => &mut size.unrecorded,
                (false, true) => &mut size.fetched,
                (false, false) => &mut size.found,
            };
            *sum += content.bytes;
        }
        for folder in [self.root().join("partials"), self.all_making()] {
            size.partials += tree::files(&folder)?.iter().map(|path| allocated(path)).sum::<u64>();
        }
        Ok(size)
    }

    /// The files that records keep on disk, and those that came and that none of them knows, by their real paths.
    pub(super) fn contents(&self, ledger: &Ledger) -> Result<BTreeMap<PathBuf, Content>> {
        let mut contents = BTreeMap::<_, Content>::new();
        for (path, is_folder) in tree::entries(&self.blobs())? {
            if !is_folder {
                let bytes = tree::own_bytes(&path);
                contents.insert(real(&path), Content { bytes, ..Content::default() });
            }
        }
        for (number, record) in ledger.records.iter().enumerate() {
            for file in &record.files {
                let is_ours = record.is_ours(self.root(), file);
                for path in self.kept_paths(record, file) {
                    let bytes = tree::own_bytes(&path);
                    let content = contents.entry(path).or_default();
                    content.bytes = bytes;
                    content.fetched |= is_ours;
                    content.users.push(number);
                }
            }
        }
        for note in &ledger.unfinished {
            for file in note.files.iter().filter(|file| note.is_ours(self.root(), file)) {
                for path in self.kept_paths(note, file) {
                    let bytes = tree::own_bytes(&path);
                    contents.entry(path).or_insert(Content { bytes, ..Content::default() }).fetched = true;
                }
            }
        }
        Ok(contents)
    }

    /// The regular files that hold `file` for us: none if it is its owner's, two where a copy stands for a link.
    fn kept_paths(&self, record: &Record, file: &RecordFile) -> Vec<PathBuf> {
        let root = record.cache_root();
        let paths = match &file.place {
            Place::Blob(blob) => vec![blob.at(self.root())],
            Place::Linked { blob, link } => vec![blob.at(root), link.at(root)],
            Place::Elsewhere(_) => Vec::new(),
        };
        let is_file = |path: &PathBuf| fs::symlink_metadata(path).is_ok_and(|m| m.is_file());
        paths.into_iter().filter(is_file).map(|path| real(&path)).collect()
    }

    /// Bytes on disk of `record`.
    pub(super) fn bytes_of(&self, record: &Record) -> u64 {
        let mut kept: Vec<_> = record.files.iter().flat_map(|file| self.kept_paths(record, file)).collect();
        kept.sort();
        kept.dedup();
        kept.iter().map(|path| tree::own_bytes(path)).sum()
    }

    fn artifact(&self, record: &Record) -> Artifact {
        let used = |file: &RecordFile| record.used_path(self.root(), file);
        let whole = |file: &&RecordFile| fs::metadata(used(file)).is_ok_and(|m| m.is_file() && m.len() == file.size);
        let is_found =
            |file: &&RecordFile| fs::exists(used(file)).unwrap_or_default() && !record.is_ours(self.root(), file);
        Artifact {
            reference: record.reference.clone(),
            want: record.want,
            revision: record.revision.clone(),
            files: record.files.iter().map(|file| (file.path.clone(), used(file))).collect(),
            damaged: record.files.iter().filter(|file| !whole(file)).map(|file| file.path.clone()).collect(),
            bytes: self.bytes_of(record),
            license: record.license.clone(),
            gated: record.gated,
            fetched: record.has_ours(self.root()),
            found: record.files.iter().filter(is_found).map(|file| file.path.clone()).collect(),
            pinned: record.pinned,
            created: from_millis(record.created),
            last_used: from_millis(record.last_used),
        }
    }
}

/// A file on disk and who needs it.
#[derive(Debug, Default)]
pub(super) struct Content {
    pub(super) bytes: u64,
    /// Whether it was brought here.
    pub(super) fetched: bool,
    /// The numbers of the records.
    pub(super) users: Vec<usize>,
}

/// Bytes that the file at `path` takes on disk: a partial has its full length from the start, and holes.
pub(super) fn allocated(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    #[cfg(unix)]
    return std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
    #[cfg(not(unix))]
    return metadata.len();
}
