//! Records made and changed.

use std::{collections::BTreeMap, path::PathBuf, time::SystemTime};

use llm_local_core::{ArtifactRef, Digest, Error, Manifest, Placement, Result};

use super::{
    Store,
    below::real,
    entry::{Fetched, Place, RecordFile},
    hold::is_unwritable,
    ledger::{Ledger, Unreadable},
    record::{Record, to_millis},
    tree,
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
    /// One in the cache of another tool is evicted only if it was fetched, by this call or an earlier one. A record of a
    /// newer version of the program stays as it is.
    ///
    /// If nothing came and the record cannot be written, as in a store that is read-only, that is logged and no error.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] if a file lies nowhere, or a path cannot be written as text; [`Error::Io`];
    /// [`Error::Cancelled`] as [`Store::with_cancel`].
    pub fn record_files(
        &self,
        manifest: &Manifest,
        files: &BTreeMap<String, PathBuf>,
        computed: &BTreeMap<String, Digest>,
        placement: Option<&Placement>,
        came: &BTreeMap<String, Came>,
        now: SystemTime,
    ) -> Result<()> {
        self.keep_noted(Record::new(self, manifest, Some(files), computed, placement)?, came, now)
    }

    /// Keeps `record`, or logs that it cannot be written if nothing `came`.
    pub(super) fn keep_noted(&self, record: Record, came: &BTreeMap<String, Came>, now: SystemTime) -> Result<()> {
        let reference = record.reference.clone();
        match self.keep(record, came, now) {
            // To use what is there needs no record of it.
            Err(error) if came.is_empty() && matches!(error, Error::Io { .. }) => {
                not_noted(&reference, &error);
                Ok(())
            }
            result => result,
        }
    }

    fn keep(&self, mut record: Record, came: &BTreeMap<String, Came>, now: SystemTime) -> Result<()> {
        let _changing = self.change()?;
        let old = match self.existing(&record) {
            Some(Err(Unreadable { path, reason, is_newer: true, .. })) => {
                tracing::debug!(path = %path.display(), reason, "the record stays as it is");
                return Ok(());
            }
            old => old.and_then(std::result::Result::ok),
        };
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
        if let Some(old) = old {
            record.take_over(old, self.root());
        }
        let note = self.note_of(&record);
        if let Some(note) = &note {
            record.take_over_files(note, self.root());
        }
        self.write(&record)?;
        self.trust(&record, now)?;
        if note.is_some() {
            tree::remove(&self.note_path(&record))?;
        }
        Ok(())
    }

    /// Notes that the artifact is used now. Nothing if there is no record of it; if that cannot be written, as in a store
    /// that is read-only, that is logged and no error.
    ///
    /// # Errors
    /// [`Error::Io`] where the records cannot be read; [`Error::Cancelled`] as [`Store::with_cancel`].
    pub fn touch(&self, reference: &ArtifactRef, revision: &str, now: SystemTime) -> Result<()> {
        let is_used = |record: &Record| record.reference == *reference && record.revision == revision;
        if !self.ledger()?.records.iter().any(is_used) {
            return Ok(());
        }
        let touch = || {
            let _changing = self.change()?;
            let mut ledger = self.ledger()?;
            let last_used = ledger.next_use(now);
            for record in ledger.records.iter_mut().filter(|record| is_used(record)) {
                record.last_used = last_used;
                self.write(record)?;
            }
            Ok(())
        };
        match touch() {
            Err(error @ Error::Io { .. }) => {
                not_noted(reference, &error);
                Ok(())
            }
            result => result,
        }
    }

    /// Keeps what `which` names from eviction: all its revisions, unless it names one.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none; [`Error::Io`]; [`Error::Cancelled`] as [`Store::with_cancel`].
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

/// Logs that a use of `reference` is in no record.
fn not_noted(reference: &ArtifactRef, error: &Error) {
    if is_unwritable(error) {
        tracing::debug!(%reference, %error, "its use cannot be noted");
    } else {
        tracing::warn!(%reference, %error, "its use cannot be noted");
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
        self.records.iter().chain(&self.unfinished).any(fetched)
    }

    /// The time of a use at `now`: later than all before it, even by a clock that was set back, so that the order of
    /// uses stays true.
    fn next_use(&self, now: SystemTime) -> u64 {
        let latest = self.records.iter().map(|r| r.last_used).max();
        to_millis(now).max(latest.map_or(0, |latest| latest.saturating_add(1)))
    }
}
