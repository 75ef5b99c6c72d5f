//! Notes of what came into the cache of another tool for an artifact that is not whole yet: should the download be given
//! up, nothing else tells these files from that tool's own. Below the store's root such files need none, since nobody
//! else brings any there.
//!
//! A note is a record without files, on one line, and then a line for each file as it comes. It goes when the artifact
//! is recorded.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use llm_local_core::{Error, Manifest, Placement, Result};

use super::{
    Store,
    entry::{Fetched, RecordFile, place},
    ledger::{Read, Unreadable, files_ending},
    record::Record,
};
use crate::disk::write_text_atomically;

impl Store {
    /// Notes that the file called `path` of `manifest` came to its place in `placement` while others are still missing.
    /// If the artifact never becomes whole, [`Store::clean`] frees what came, and if it does, this is remembered. Call it
    /// right after the file was published, under the artifact's [`Store::hold`].
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] if the manifest has no such file, or as [`Store::record_files`]; [`Error::Io`];
    /// [`Error::Cancelled`] as [`Store::with_cancel`].
    pub fn note_fetched(&self, manifest: &Manifest, placement: &Placement, path: &str) -> Result<()> {
        let bad = |reason| Error::invalid_spec(format!("record of {}", manifest.reference), reason);
        if placement.files.len() != manifest.files.len() {
            return Err(bad("its placement does not have one place for each file".into()));
        }
        let Some(number) = manifest.files.iter().position(|file| file.path == path) else {
            return Err(bad(format!("its manifest lists no file `{path}` to note")));
        };
        let note = Record::without_files(manifest, Some(placement))?;
        let listed = &manifest.files[number];
        let mut file = RecordFile {
            path: path.to_owned(),
            size: listed.size,
            digest: listed.digest,
            computed: None,
            fetched: None,
            former: false,
            place: place(self, manifest, listed, Some((placement, number)), None)?,
        };
        file.fetched = Some(Fetched::now(&note.used_path(self.root(), &file)));
        let as_line = |text: serde_json::Result<String>| text.map_err(|e| bad(e.to_string()));
        // A line begins with its break: what a crash cut off spoils no other.
        let line = format!("\n{}", as_line(serde_json::to_string(&file))?);
        let at = self.note_path(&note);
        let _changing = self.change()?;
        match OpenOptions::new().append(true).open(&at) {
            Ok(mut there) => there.write_all(line.as_bytes()).map_err(|e| Error::io("write", &at, e)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                write_text_atomically(&at, &(as_line(serde_json::to_string(&note))? + &line))
            }
            Err(e) => Err(Error::io("write", &at, e)),
        }
    }

    /// All notes.
    pub(super) fn notes(&self) -> Result<Vec<Read>> {
        let paths = files_ending(&self.unfinished(), END)?;
        Ok(paths.iter().filter_map(|path| self.read_note(path)).collect())
    }

    /// What is noted of the artifact of `record`.
    pub(super) fn note_of(&self, record: &Record) -> Option<Record> {
        self.read_note(&self.note_path(record))?.ok()
    }

    /// Where notes of the artifact of `record` lie.
    pub(super) fn note_path(&self, record: &Record) -> PathBuf {
        self.unfinished().join(format!("{}{END}", record.key()))
    }

    fn unfinished(&self) -> PathBuf {
        self.root().join("unfinished")
    }

    fn read_note(&self, path: &Path) -> Option<Read> {
        let unreadable = |reason, text| Unreadable { path: path.to_owned(), reason, text, is_newer: false };
        let text = match fs::read(path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
            Err(_) if path.is_dir() => {
                return Some(Err(unreadable("it is a folder, and no note; move it away".into(), Some(String::new()))));
            }
            Err(e) => {
                return Some(Err(unreadable(
                    format!("it cannot be read: {e}; give yourself access to it, or remove it"),
                    None,
                )));
            }
        };
        let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
        let note = Record::parse(first).and_then(|mut note| {
            // A line that is no file was cut off by a crash.
            note.files.extend(rest.lines().filter_map(|line| serde_json::from_str::<RecordFile>(line).ok()));
            note.checked()
        });
        Some(match note {
            Ok(note) if self.note_path(&note) == path => Ok(note),
            Ok(note) => Err(unreadable(format!("it should be called {}", self.note_path(&note).display()), Some(text))),
            Err(e) => Err(Unreadable { is_newer: e.is_newer, ..unreadable(e.reason, Some(text)) }),
        })
    }
}

/// How the names of notes end.
const END: &str = ".jsonl";
