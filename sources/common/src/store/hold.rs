//! What is loaded or being fetched, in whatever process.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use llm_local_core::{Digest, Error, Manifest, Placement, Result};
use sha2::{Digest as _, Sha256};

use super::{
    Store,
    ledger::{Unreadable, files_ending, read},
    record::Record,
};
use crate::disk::{FileLock, write_text_atomically};

/// How the names of locks and marks of artifacts begin; those of files begin with the kind of their digest.
const ARTIFACT: &str = "artifact-";

/// An artifact in use: it is neither deleted nor evicted, nor is anything it needs, until this is dropped or the process
/// ends, however it ends.
#[derive(Debug)]
#[must_use = "dropping it ends the hold"]
pub struct Hold {
    /// None in a store that cannot be written to.
    _lock: Option<FileLock>,
}

/// What an artifact that somebody holds needs.
#[derive(Debug)]
pub(super) enum Held {
    /// These files.
    Needs(Box<Record>),
    /// Whatever this text names, of a mark of another version.
    Text(String),
    /// Nobody can say: the lock or the mark at `path` cannot be read.
    Unknown { path: PathBuf, reason: String },
}

impl Store {
    /// Marks the artifact as in use, whether its files are here already or are about to come. Take it before its files
    /// are looked for: what is there then stays there. Any number of holds may be on one artifact.
    ///
    /// What lies in a store that cannot be written to, or on a full disk, can be used all the same; nothing then keeps
    /// somebody else, who can write there, from deleting it.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] as [`Store::record`]; [`Error::Io`], also where the file system knows no locks;
    /// [`Error::Cancelled`] as [`Store::with_cancel`].
    pub fn hold(&self, manifest: &Manifest, placement: Option<&Placement>) -> Result<Hold> {
        self.hold_as(self.needs(manifest, placement)?)
    }

    /// [`Store::hold`] of what `record` says.
    pub(super) fn hold_as(&self, record: Record) -> Result<Hold> {
        let reference = record.reference.clone();
        match self.try_hold(record) {
            Ok(lock) => Ok(Hold { _lock: Some(lock) }),
            Err(error) if is_unwritable(&error) => {
                tracing::debug!(%reference, %error, "cannot be marked as in use");
                Ok(Hold { _lock: None })
            }
            Err(error) => Err(error),
        }
    }

    fn try_hold(&self, record: Record) -> Result<FileLock> {
        let needs = record.into_needs().to_text()?;
        // Holds of one artifact that need other files, by two versions of a program, have marks of their own.
        let digest = Digest::Sha256(Sha256::digest(&needs).into()).to_string();
        let mark = self.locks().join(format!("{ARTIFACT}{}.json", digest.trim_start_matches("sha256:")));
        // Deletes run under the same right, so that none is between its look at the marks and its last file.
        let _changing = self.change()?;
        // The mark comes before the lock: a lock that is held has one.
        if fs::read_to_string(&mark).ok().as_ref() != Some(&needs) {
            write_text_atomically(&mark, &needs)?;
        }
        let path = lock_of(&mark);
        FileLock::try_share(&path)?.ok_or_else(|| {
            let reason = "something that is no part of this program has it for itself";
            Error::io("lock", &path, io::Error::new(io::ErrorKind::ResourceBusy, reason))
        })
    }

    /// The marks of all holds, also of those that ended.
    pub(super) fn marks(&self) -> Result<Vec<PathBuf>> {
        let mut marks = files_ending(&self.locks(), ".json")?;
        marks.retain(|mark| mark.file_name().is_some_and(|name| name.to_string_lossy().starts_with(ARTIFACT)));
        Ok(marks)
    }

    /// What is held now. Only for those who have the right to change the store: a look takes each lock for a moment. Marks
    /// whose holders are gone go.
    pub(super) fn held(&self) -> Result<Vec<Held>> {
        let mut held = Vec::new();
        for mark in self.marks()? {
            let lock = lock_of(&mark);
            match FileLock::try_acquire(&lock) {
                Ok(Some(_)) => {
                    // Nobody can be about to take it: that needs the right to change the store. What cannot be removed
                    // is tried again the next time.
                    let _ = fs::remove_file(&lock);
                    let _ = fs::remove_file(&mark);
                }
                Ok(None) => held.extend(read(&mark).map(|read| match read {
                    Ok(needs) => Held::Needs(Box::new(needs)),
                    Err(Unreadable { text: Some(text), .. }) => Held::Text(text),
                    Err(Unreadable { path, reason, .. }) => Held::Unknown { path, reason },
                })),
                // A folder is nobody's lock.
                Err(_) if lock.is_dir() => {}
                Err(e) => held.push(Held::Unknown { path: lock, reason: e.to_string() }),
            }
        }
        Ok(held)
    }
}

/// Whether `error` says that nothing can be written where it happened. What is there can be used all the same.
pub(super) fn is_unwritable(error: &Error) -> bool {
    use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let Error::Io { source, .. } = error else { return false };
    matches!(source.kind(), PermissionDenied | ReadOnlyFilesystem | StorageFull | QuotaExceeded)
}

fn lock_of(mark: &Path) -> PathBuf {
    mark.with_extension("lock")
}
