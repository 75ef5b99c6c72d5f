//! Every byte read again.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use llm_local_core::{ArtifactRef, Digest, Error, Result};
use tokio_util::sync::CancellationToken;

use super::{Store, entry::RecordFile, record::Record};
use crate::disk::digest_file;

/// What became of one file.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Verified {
    /// The artifact's ref.
    pub reference: ArtifactRef,
    /// Its revision.
    pub revision: String,
    /// The file's path in the artifact.
    pub path: String,
    /// Where it is used.
    pub file: PathBuf,
    /// What was found.
    pub outcome: Outcome,
    /// What the file was when it was read, so that one that was replaced since is not taken for it.
    pub(super) seen: Option<(u64, Option<SystemTime>)>,
}

/// How a file compares with its record.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It has its size and digest.
    Intact,
    /// It has its size; nobody ever knew a digest of it.
    Unproven,
    /// It is not there.
    Missing,
    /// It has another size, in bytes.
    WrongSize {
        /// The recorded one.
        expected: u64,
        /// The file's.
        found: u64,
    },
    /// It has another digest.
    WrongDigest {
        /// The recorded one.
        expected: Digest,
        /// The file's.
        found: Digest,
    },
    /// The system does not let it be read.
    Unreadable {
        /// Why.
        reason: String,
    },
}

impl Outcome {
    /// Whether the file cannot be used, or not be trusted.
    pub fn is_damage(&self) -> bool {
        !matches!(self, Self::Intact | Self::Unproven)
    }
}

impl Store {
    /// Reads every file of what `which` names, or of all artifacts, and compares sizes and digests. Changes nothing;
    /// [`Store::remove_damaged`] takes what this gives. Content that several artifacts share is read once. Until it is
    /// done, what it reads is in use.
    ///
    /// # Errors
    /// [`Error::NotFound`] if `which` names nothing; [`Error::Cancelled`], soon after `cancel`, between two files, and as
    /// [`Store::with_cancel`]; [`Error::Io`] where records cannot be read; those of [`Store::hold`].
    pub fn verify(&self, which: Option<&ArtifactRef>, cancel: &CancellationToken) -> Result<Vec<Verified>> {
        let ledger = self.ledger()?;
        let numbers = match which {
            Some(which) => ledger.find(which)?,
            None => (0..ledger.records.len()).collect(),
        };
        let (mut all, mut read) = (Vec::new(), HashMap::new());
        for record in numbers.into_iter().map(|i| &ledger.records[i]) {
            let _hold = self.hold_as(record.clone())?;
            // Deleted since it was listed.
            if self.existing(record).is_none() {
                continue;
            }
            for file in &record.files {
                if cancel.is_cancelled() {
                    return Err(Error::Cancelled);
                }
                all.push(self.verify_file(record, file, &mut read));
            }
        }
        Ok(all)
    }

    fn verify_file(&self, record: &Record, file: &RecordFile, read: &mut Read) -> Verified {
        let path = record.used_path(self.root(), file);
        let (seen, outcome) = match seen(&path) {
            Err(reason) => (None, reason),
            Ok(seen) if seen.0 != file.size => (Some(seen), Outcome::WrongSize { expected: file.size, found: seen.0 }),
            Ok(seen) => (Some(seen), digest(&path, file.digest.or(file.computed), read)),
        };
        Verified {
            reference: record.reference.clone(),
            revision: record.revision.clone(),
            path: file.path.clone(),
            file: path,
            outcome,
            seen,
        }
    }
}

/// What was read before: by the file, and by the kind of digest.
type Read = HashMap<(PathBuf, bool), Result<Digest>>;

fn digest(path: &Path, expected: Option<Digest>, read: &mut Read) -> Outcome {
    let Some(expected) = expected else { return Outcome::Unproven };
    let content = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let key = (content, matches!(expected, Digest::Sha256(_)));
    match read.entry(key).or_insert_with(|| digest_file(path, Some(&expected))) {
        Ok(found) if *found == expected => Outcome::Intact,
        Ok(found) => Outcome::WrongDigest { expected, found: *found },
        Err(e) => Outcome::Unreadable { reason: e.to_string() },
    }
}

/// The size and time of the file at `path`.
pub(super) fn seen(path: &Path) -> std::result::Result<(u64, Option<SystemTime>), Outcome> {
    match fs::metadata(path) {
        Ok(m) if m.is_file() => Ok((m.len(), m.modified().ok())),
        Ok(_) => Err(Outcome::Unreadable { reason: "it is no file".into() }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(Outcome::Missing),
        Err(e) => Err(Outcome::Unreadable { reason: e.to_string() }),
    }
}
