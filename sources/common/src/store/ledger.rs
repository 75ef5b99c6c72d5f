//! Reads and writes records.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use llm_local_core::{ArtifactRef, Error, Result};

use super::{Store, record::Record};
use crate::disk::{prepare_root, write_text_atomically};

/// All records at one moment.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// By ref, then revision.
    pub(super) records: Vec<Record>,
    pub(super) unreadable: Vec<Unreadable>,
}

/// A record of another version, or a broken one. Nobody knows what it needs, so whatever its text names stays.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) path: PathBuf,
    pub(super) reason: String,
    pub(super) text: String,
}

/// The right to change a store, until it is dropped.
#[derive(Debug)]
pub(super) struct Changing {
    // Closing the file gives the lock back.
    _file: File,
}

impl Store {
    /// Waits for the right to change the store. Whoever has it makes no request and hashes nothing, so that the wait is
    /// short. Makes the store's folder.
    pub(super) fn change(&self) -> Result<Changing> {
        prepare_root(self.root())?;
        let path = self.locks().join("store.lock");
        fs::create_dir_all(self.locks()).map_err(|e| Error::io("create the folder", self.locks(), e))?;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(|e| Error::io("open", &path, e))?;
        file.lock().map_err(|e| Error::io("lock", &path, e))?;
        Ok(Changing { _file: file })
    }

    /// Reads all records.
    pub(super) fn ledger(&self) -> Result<Ledger> {
        let mut ledger = Ledger::default();
        for path in files_ending(&self.artifacts(), ".json")? {
            match read(&path)? {
                // Somebody deleted it since the folder was listed.
                None => {}
                Some(Ok(record)) if self.record_path(&record) == path => ledger.records.push(record),
                Some(Ok(record)) => {
                    let reason = format!("it should be called {}", self.record_path(&record).display());
                    ledger.unreadable.push(Unreadable { path, reason, text: record.to_text()? });
                }
                Some(Err((reason, text))) => ledger.unreadable.push(Unreadable { path, reason, text }),
            }
        }
        ledger.records.sort_by(|a, b| (&a.reference, &a.revision).cmp(&(&b.reference, &b.revision)));
        Ok(ledger)
    }

    /// The record under the name of `record`, if there is one that can be read.
    pub(super) fn existing(&self, record: &Record) -> Result<Option<Record>> {
        Ok(read(&self.record_path(record))?.and_then(std::result::Result::ok))
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
    /// [`Error::NotFound`] if there is none, with those that come near.
    pub(super) fn find(&self, which: &ArtifactRef) -> Result<Vec<usize>> {
        let found: Vec<_> = (0..self.records.len()).filter(|i| self.records[*i].is(which)).collect();
        if !found.is_empty() {
            return Ok(found);
        }
        let near = self.records.iter().filter(|r| r.reference.locator() == which.locator());
        let near: Vec<_> = near.map(|r| format!("`{}` at {}", r.reference, r.revision)).collect();
        let reason = match (&near[..], self.records.len()) {
            ([], n) => {
                format!("none of the {n} artifacts of this store is of that name; list them to see which there are")
            }
            (near, _) => format!("this store has {}", near.join(", ")),
        };
        Err(Error::not_found(which, reason))
    }
}

/// The record or mark at `path`; `None` if nothing is there, and why it cannot be read with its text if it cannot.
pub(super) fn read(path: &Path) -> Result<Option<std::result::Result<Record, (String, String)>>> {
    match fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            Ok(Some(Record::parse(&text).map_err(|reason| (reason, text))))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path, e)),
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
