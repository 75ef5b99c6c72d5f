//! Reads and writes records.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use llm_local_core::{ArtifactRef, Error, Result};

use super::{Store, near, record::Record};
use crate::disk::write_text_atomically;

/// All records at one moment.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// By ref, then revision.
    pub(super) records: Vec<Record>,
    /// Artifacts that are not whole and without a record, with the files that came for them.
    pub(super) unfinished: Vec<Record>,
    pub(super) unreadable: Vec<Unreadable>,
}

/// A record of another version, or a broken one. Nobody knows what it needs, so whatever its text names stays.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) path: PathBuf,
    pub(super) reason: String,
    /// `None` if the system does not give it: then it may name anything.
    pub(super) text: Option<String>,
    /// Whether a newer version of the program wrote it.
    pub(super) is_newer: bool,
}

/// What a file of `artifacts` or a mark holds.
pub(super) type Read = std::result::Result<Record, Unreadable>;

impl Store {
    /// Reads all records. What cannot be read is listed as such and does no harm to the others.
    pub(super) fn ledger(&self) -> Result<Ledger> {
        let mut ledger = Ledger::default();
        for path in files_ending(&self.artifacts(), ".json")? {
            match read(&path) {
                // Somebody deleted it since the folder was listed.
                None => {}
                Some(Ok(record)) if self.record_path(&record) == path => ledger.records.push(record),
                Some(Ok(record)) => {
                    let reason = format!("it should be called {}", self.record_path(&record).display());
                    let text = Some(record.to_text()?);
                    ledger.unreadable.push(Unreadable { path, reason, text, is_newer: false });
                }
                Some(Err(unreadable)) => ledger.unreadable.push(unreadable),
            }
        }
        ledger.records.sort_by(|a, b| (&a.reference, &a.revision).cmp(&(&b.reference, &b.revision)));
        for note in self.notes()? {
            match note {
                Ok(note) => match ledger.records.iter_mut().find(|record| record.key() == note.key()) {
                    Some(record) => record.take_over_files(&note, self.root()),
                    None => ledger.unfinished.push(note),
                },
                Err(unreadable) => ledger.unreadable.push(unreadable),
            }
        }
        Ok(ledger)
    }

    /// What is under the name of `record`.
    pub(super) fn existing(&self, record: &Record) -> Option<Read> {
        read(&self.record_path(record))
    }

    /// Writes `record`. A reader sees the old one or the new.
    pub(super) fn write(&self, record: &Record) -> Result<()> {
        write_text_atomically(&self.record_path(record), &record.to_text()?)
    }

    /// Where `record` lies.
    pub(super) fn record_path(&self, record: &Record) -> PathBuf {
        self.artifacts().join(format!("{}.json", record.key()))
    }
}

impl Ledger {
    /// The numbers of the records that `which` names.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none, with those that come near or else some of those that there are.
    pub(super) fn find(&self, which: &ArtifactRef) -> Result<Vec<usize>> {
        let found: Vec<_> = (0..self.records.len()).filter(|i| self.records[*i].is(which)).collect();
        if found.is_empty() { Err(self.none(which)) } else { Ok(found) }
    }

    /// What to say of a ref that names nothing.
    pub(super) fn none(&self, which: &ArtifactRef) -> Error {
        Error::not_found(which, near::what_there_is(&self.records, which))
    }

    /// Whether there is a record of which nobody can say what it names.
    pub(super) fn has_unknown(&self) -> bool {
        self.unreadable.iter().any(|u| u.text.is_none())
    }
}

/// The record or mark at `path`; `None` if nothing is there.
pub(super) fn read(path: &Path) -> Option<Read> {
    let unreadable = |reason, text, is_newer| Unreadable { path: path.to_owned(), reason, text, is_newer };
    match fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            Some(Record::parse(&text).map_err(|e| unreadable(e.reason, Some(text), e.is_newer)))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(_) if path.is_dir() => {
            let reason = "it is a folder, and no record; move it away".to_owned();
            Some(Err(unreadable(reason, Some(String::new()), false)))
        }
        Err(e) => {
            let reason = format!("it cannot be read: {e}; give yourself access to it, or remove it");
            Some(Err(unreadable(reason, None, false)))
        }
    }
}

/// The files in `folder` whose names end so, sorted. None if the folder is not there.
pub(super) fn files_ending(folder: &Path, end: &str) -> Result<Vec<PathBuf>> {
    let failed = |e| Error::io("list", folder, e);
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(end)) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
