//! Records made and changed.

use std::{collections::BTreeMap, path::PathBuf, time::SystemTime};

use llm_local_core::{ArtifactRef, Digest, Manifest, Placement, Result};

use super::{
    Store,
    below::real,
    entry::{Fetched, Place, RecordFile},
    ledger::Ledger,
    record::{Record, to_millis},
};

/// How a file came to where it is used, by the call that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Came {
    /// Its content was brought here.
    Fetched,
    /// Its content was there, and a link to it, or a copy, was made.
    Linked,
}

impl Store {
    /// [`Store::record_files`] of files that either all were `fetched` now or were all there already.
    ///
    /// # Errors
    /// As [`Store::record_files`].
    pub fn record(
        &self,
        manifest: &Manifest,
        files: &BTreeMap<String, PathBuf>,
        computed: &BTreeMap<String, Digest>,
        placement: Option<&Placement>,
        fetched: bool,
        now: SystemTime,
    ) -> Result<()> {
        let came = manifest.files.iter().filter(|_| fetched).map(|file| (file.path.clone(), Came::Fetched)).collect();
        self.record_files(manifest, files, computed, placement, &came, now)
    }

    /// Records that every file of `manifest` is here, where `files` says for each path. `computed` has the digests of
    /// those for which the manifest promised none; `placement` is where the source wants them, if it does; `came` has
    /// those that were not there before, and not those that were found. What an earlier record of the same artifact
    /// knew, when it came, which of its files were fetched and whether it is pinned, stays.
    ///
    /// A file that lies neither at its placement nor in this store is its owner's: it is recorded and never deleted.
    /// One in the cache of another tool is evicted only if it was fetched, by this call or an earlier one.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`](llm_local_core::Error::InvalidSpec) if a file lies nowhere, or a path cannot be written
    /// as text; [`Error::Io`](llm_local_core::Error::Io).
    pub fn record_files(
        &self,
        manifest: &Manifest,
        files: &BTreeMap<String, PathBuf>,
        computed: &BTreeMap<String, Digest>,
        placement: Option<&Placement>,
        came: &BTreeMap<String, Came>,
        now: SystemTime,
    ) -> Result<()> {
        let mut record = Record::new(self, manifest, Some(files), computed, placement)?;
        let _changing = self.change()?;
        let ledger = self.ledger()?;
        record.created = to_millis(now);
        record.last_used = ledger.next_use(now);
        for i in 0..record.files.len() {
            let fetched = match came.get(&record.files[i].path) {
                Some(Came::Fetched) => true,
                // Ours with the content, if that is.
                Some(Came::Linked) => ledger.brought(self, &record, i),
                None => false,
            };
            if fetched {
                let used = record.used_path(self.root(), &record.files[i]);
                record.files[i].fetched = Some(Fetched::now(&used));
            }
        }
        if let Some(old) = self.existing(&record)? {
            record.take_over(old, self.root());
        }
        self.write(&record)
    }

    /// Notes that the artifact is used now. Nothing if there is no record of it.
    ///
    /// # Errors
    /// [`Error::Io`](llm_local_core::Error::Io).
    pub fn touch(&self, reference: &ArtifactRef, revision: &str, now: SystemTime) -> Result<()> {
        if !self.artifacts().exists() {
            return Ok(());
        }
        let _changing = self.change()?;
        let mut ledger = self.ledger()?;
        let last_used = ledger.next_use(now);
        let used = ledger.records.iter_mut().filter(|r| r.reference == *reference && r.revision == revision);
        for record in used {
            record.last_used = last_used;
            self.write(record)?;
        }
        Ok(())
    }

    /// Keeps what `which` names from eviction: all its revisions, unless it names one.
    ///
    /// # Errors
    /// [`Error::NotFound`](llm_local_core::Error::NotFound) if there is none; [`Error::Io`](llm_local_core::Error::Io).
    pub fn pin(&self, which: &ArtifactRef) -> Result<()> {
        self.set_pinned(which, true)
    }

    /// Undoes [`Store::pin`].
    ///
    /// # Errors
    /// As [`Store::pin`].
    pub fn unpin(&self, which: &ArtifactRef) -> Result<()> {
        self.set_pinned(which, false)
    }

    fn set_pinned(&self, which: &ArtifactRef, pinned: bool) -> Result<()> {
        // So that asking for what is not there makes no folder.
        self.ledger()?.find(which)?;
        let _changing = self.change()?;
        let mut ledger = self.ledger()?;
        for i in ledger.find(which)? {
            ledger.records[i].pinned = pinned;
            self.write(&ledger.records[i])?;
        }
        Ok(())
    }
}

impl Ledger {
    /// Whether the content of the file numbered `file` in `new` is of those that a record says were fetched.
    fn brought(&self, store: &Store, new: &Record, file: usize) -> bool {
        let content = |record: &Record, file: &RecordFile| match &file.place {
            Place::Linked { blob, .. } => Some(real(&blob.at(record.cache_root()))),
            Place::Blob(_) | Place::Elsewhere(_) => None,
        };
        let Some(wanted) = content(new, &new.files[file]) else { return false };
        let fetched = |record: &Record| {
            let mut files = record.files.iter();
            files.any(|f| content(record, f).as_ref() == Some(&wanted) && record.is_ours(store.root(), f))
        };
        self.records.iter().any(fetched)
    }

    /// The time of a use at `now`: later than all before it, even by a clock that was set back, so that the order of
    /// uses stays true.
    fn next_use(&self, now: SystemTime) -> u64 {
        let latest = self.records.iter().map(|r| r.last_used).max();
        to_millis(now).max(latest.map_or(0, |latest| latest.saturating_add(1)))
    }
}
