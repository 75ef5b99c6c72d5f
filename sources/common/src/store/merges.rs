//! Results of merges: tensors that were computed from a base and adapters, kept so that the next load need not compute them.
//!
//! Each is an artifact like any other, whose ref has the scheme [`MERGED_SCHEME`]: listed, verified, deleted and evicted
//! with the rest. No source has it, so what is deleted is computed anew.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use llm_local_core::{ArtifactRef, Digest, Error, Manifest, ManifestFile, Result, Want};
use tempfile::NamedTempFile;

use super::{Came, Hold, Store, group::hex_of, record::Record};
use crate::disk::{FileKey, FileLock, Folders, check_space, digest_file, publish_temporary, temporary, write_all_at};

/// The scheme of refs to results of merges. No source has it.
pub const MERGED_SCHEME: &str = "merged";

/// The one file of such an artifact.
const FILE: &str = "merged.safetensors";

/// What a merge is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergeKey {
    reference: ArtifactRef,
    revision: String,
}

/// A result of a merge that is kept, and stays while this lives.
#[derive(Debug)]
pub struct KeptMerge {
    /// The file.
    pub path: PathBuf,
    /// What its bytes had when they were written.
    pub digest: Digest,
    /// Keeps it from deletion.
    pub hold: Hold,
}

/// A result of a merge that is being written. Dropped before [`MergeWriter::finish`], nothing of it is left.
#[derive(Debug)]
pub struct MergeWriter {
    store: Store,
    key: MergeKey,
    file: NamedTempFile,
    end: AtomicU64,
    /// Nobody else writes this result.
    _lock: FileLock,
}

impl MergeKey {
    /// The key of what is made of `parts`, in which stands everything that the result depends on. `name` is what people
    /// see of it.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] for a name that is empty.
    pub fn new<'a>(name: &str, parts: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let plain = |c: char| if c.is_alphanumeric() || "+-._".contains(c) { c } else { '-' };
        let reference = ArtifactRef::new(MERGED_SCHEME, name.chars().map(plain).collect::<String>())?;
        Ok(Self { reference, revision: hex_of(parts) })
    }

    /// The ref by which the store lists the result.
    pub fn reference(&self) -> &ArtifactRef {
        &self.reference
    }

    /// The revision by which the store lists it: a SHA-256 over all that it depends on, as hex.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    fn lock(&self, store: &Store) -> PathBuf {
        store.locks().join(format!("merge-{}.lock", self.revision))
    }
}

impl Store {
    /// The result that is kept under `key`, if its file has the size that it was written with. [`Store::verify`] compares
    /// its digest, as it does with any content.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn kept_merge(&self, key: &MergeKey) -> Result<Option<KeptMerge>> {
        let Some(record) = self.merge_record(key)? else { return Ok(None) };
        let hold = self.hold_as(record.clone())?;
        // Looked at once it is held: what is there then stays there.
        let file = record.own_files().next();
        let Some((path, digest)) = file.and_then(|f| Some((record.used_path(self.root(), f), f.digest?))) else {
            return Ok(None);
        };
        if !record.is_whole(self.root()) {
            return Ok(None);
        }
        Ok(Some(KeptMerge { path, digest, hold }))
    }

    /// Counts the result that is kept under `key` as used now.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Cancelled`] as [`Store::with_cancel`].
    pub fn use_merge(&self, key: &MergeKey) -> Result<()> {
        self.touch(&key.reference, &key.revision, self.now())
    }

    fn merge_record(&self, key: &MergeKey) -> Result<Option<Record>> {
        let is_it = |record: &Record| {
            record.reference.scheme() == MERGED_SCHEME && record.revision == key.revision && record.want == Want::Model
        };
        Ok(self.ledger()?.records.into_iter().find(is_it))
    }

    /// Makes room within `quota` for `bytes` bytes, in the place of what is kept under `key`. Gives the bytes of that.
    fn evict_for_merge(&self, key: &MergeKey, quota: u64, bytes: u64) -> Result<u64> {
        let replaced = match self.merge_record(key)? {
            Some(record) => record.own_files().map(|file| size(&record.used_path(self.root(), file))).sum(),
            None => 0,
        };
        self.evict(quota, bytes.saturating_sub(replaced))?;
        Ok(replaced)
    }

    /// Begins to write the result of about `bytes` bytes that is to be kept under `key`: `None` if somebody else is at it.
    /// It does not look whether one is there: what is there and damaged is replaced, and its bytes are not counted twice.
    ///
    /// # Errors
    /// [`Error::InsufficientStorage`] if the disk has no room for so many bytes, or `quota` leaves none
    /// ([`Store::evict`]); [`Error::Io`]; [`Error::Cancelled`] as [`Store::with_cancel`].
    pub fn begin_merge(&self, key: &MergeKey, bytes: u64, quota: Option<u64>) -> Result<Option<MergeWriter>> {
        let Some(lock) = FileLock::try_acquire(&key.lock(self))? else { return Ok(None) };
        let folder = self.root().join("partials");
        check_space(&[(folder.clone(), bytes)])?;
        if let Some(quota) = quota {
            self.evict_for_merge(key, quota, bytes)?;
        }
        let (store, key, file) = (self.clone(), key.clone(), temporary(&folder)?);
        Ok(Some(MergeWriter { store, key, file, end: AtomicU64::new(0), _lock: lock }))
    }
}

/// The bytes of what is at `path`; none if nothing is.
fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |meta| meta.len())
}

impl MergeWriter {
    /// Sets so many bytes aside at the end of the file; gives where they begin.
    pub fn reserve(&self, bytes: u64) -> u64 {
        self.end.fetch_add(bytes, Ordering::Relaxed)
    }

    /// Writes `bytes` at `offset`, from any thread.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        write_all_at(self.file.as_file(), bytes, offset).map_err(|e| Error::io("write", self.file.path(), e))
    }

    /// Publishes what was written, under its SHA-256, once the disk has it, and records it. A crash leaves what was there
    /// before or all of this. Reads the file once, for its digest.
    ///
    /// # Errors
    /// As [`Store::begin_merge`], of the bytes that were written; nothing is left then.
    pub fn finish(self, quota: Option<u64>) -> Result<KeptMerge> {
        let Self { store, key, file, end, _lock } = self;
        let (size, digest) = (end.into_inner(), digest_file(file.path(), None)?);
        let replaced = quota.map(|quota| store.evict_for_merge(&key, quota, size)).transpose()?;
        let listed = ManifestFile::new(FILE, size).with_digest(digest);
        let manifest = Manifest::new(key.reference, Want::Model, key.revision, vec![listed])?;
        let path = store.blob(&FileKey::of_digest(&digest));
        let files = BTreeMap::from([(FILE.to_owned(), path.clone())]);
        let record = Record::new(&store, &manifest, Some(&files), &BTreeMap::<String, Digest>::new(), None)?;
        // Held before it is there, so that nobody evicts it before it is recorded.
        let hold = store.hold_as(record.clone())?;
        publish_temporary(file, &path, &Folders::default())?;
        store.keep_noted(record, &BTreeMap::from([(FILE.to_owned(), Came::Fetched)]), store.now())?;
        if let (Some(quota), Some(1..)) = (quota, replaced) {
            // Of other bytes, what was replaced is there still, and nobody's.
            if let Err(error) = store.evict(quota, 0) {
                tracing::warn!(%error, "there is more than the quota allows");
            }
        }
        Ok(KeptMerge { path, digest, hold })
    }
}
