//! What downloads that were given up have left.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use llm_local_core::{Error, Result};
use sha2::{Digest as _, Sha256};

use super::{
    Store, below::real, delete::is_held, entry::Place, hold::Held, ledger::Ledger, list::allocated, record::Record,
    removal::Taking, tree, usage::Usage,
};
use crate::disk::{FileKey, FileLock, SOURCE_ANSWERS, sweep_temporaries};

/// What nobody locks is written within moments: younger ones are never taken for left behind.
const IN_THE_MAKING: Duration = Duration::from_secs(60 * 60);

/// What a source keeps of its API's answers goes if it was not used for so long: those it has not may cost of an hourly
/// limit, and nobody ever asks for most again.
const ANSWERS_UNUSED: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What [`Store::clean`] took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cleaned {
    /// Files and links that are gone.
    pub files: usize,
    /// Bytes on disk that are free now.
    pub bytes: u64,
}

impl Store {
    /// Frees what unfinished downloads take to which nothing was added for `older_than` before `now`: partial files;
    /// whole files of artifacts that never became whole, and archives that were not unpacked; temporary files and
    /// unpackings that a crash left, once they are an hour old; and answers of GitHub's API that were not used for 30 days.
    /// By a clock that was set back all of it is new.
    ///
    /// What is held ([`Store::hold`]), locked or recorded stays. In the caches of other tools only that goes which was
    /// noted when it came ([`Store::note_fetched`]), unless that tool brought it anew since or has a link to it; what
    /// else lies there is none of ours. Locks of files are tried and not waited for.
    ///
    /// # Errors
    /// The first error; the rest is cleaned all the same. [`Error::Io`]; [`Error::InvalidSpec`] where a link would lead
    /// it elsewhere; [`Error::Cancelled`] as [`Store::with_cancel`].
    pub fn clean(&self, older_than: Duration, now: SystemTime) -> Result<Cleaned> {
        let mut cleaning = Cleaning { store: self, older_than, now, cleaned: Cleaned::default(), failed: None };
        if !self.root().exists() {
            return Ok(cleaning.cleaned);
        }
        let _changing = self.change()?;
        let ledger = self.ledger()?;
        let caches = self.caches(&ledger)?;
        let held = self.held()?;
        cleaning.partials(&held);
        cleaning.unpackings();
        cleaning.blobs(&ledger, &held);
        cleaning.notes(&ledger, &held);
        cleaning.answers();
        cleaning.temporaries(&caches);
        cleaning.copies(&caches);
        cleaning.failed.map_or(Ok(cleaning.cleaned), Err)
    }

    /// The caches that anything here knows.
    fn caches(&self, ledger: &Ledger) -> Result<Vec<Record>> {
        let mut all = ledger.records.clone();
        all.extend(ledger.unfinished.iter().cloned());
        // Of downloads that were cut off before anything was noted.
        all.extend(self.marks()?.into_iter().filter_map(|mark| super::ledger::read(&mark)?.ok()));
        all.retain(|record| record.cache.is_some());
        Ok(all)
    }
}

struct Cleaning<'a> {
    store: &'a Store,
    older_than: Duration,
    now: SystemTime,
    cleaned: Cleaned,
    failed: Option<Error>,
}

impl Cleaning<'_> {
    /// Whether something last written at `written` is old enough.
    fn is_old(&self, written: SystemTime, least: Duration) -> bool {
        self.now.duration_since(written).unwrap_or_default() >= self.older_than.max(least)
    }

    /// Keeps the first error.
    fn done<T>(&mut self, result: Result<T>) -> Option<T> {
        match result {
            Ok(done) => Some(done),
            Err(error) => {
                if let Some(earlier) = &self.failed {
                    tracing::warn!(%error, %earlier, "not cleaned either");
                } else {
                    self.failed = Some(error);
                }
                None
            }
        }
    }

    /// Partials into which nothing is written, and that nobody who holds an artifact is about to go on with.
    fn partials(&mut self, held: &[Held]) {
        let folder = self.store.root().join("partials");
        let partials = self.done(tree::entries(&folder)).unwrap_or_default();
        for (folder, _) in partials.into_iter().filter(|(_, is_folder)| *is_folder) {
            let Some(key) = folder.file_name().and_then(|name| name.to_str()) else { continue };
            if !is_partial_of(key, held) {
                let result = self.partial(key, &folder);
                self.done(result);
            }
        }
    }

    fn partial(&mut self, key: &str, folder: &Path) -> Result<()> {
        let lock = self.store.locks().join(format!("{key}.lock"));
        self.folder(folder, &lock, Duration::ZERO)
    }

    /// What unpackings that were cut off have left.
    fn unpackings(&mut self) {
        let folders = self.done(tree::entries(&self.store.all_making())).unwrap_or_default();
        for (folder, _) in folders.into_iter().filter(|(_, is_folder)| *is_folder) {
            let key = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let result = self.folder(&folder, &self.store.making_lock(&key), IN_THE_MAKING);
            self.done(result);
        }
    }

    /// Removes `folder` if nobody has its lock and nothing was written in it for so long, and at `least` for that time.
    fn folder(&mut self, folder: &Path, lock: &Path, least: Duration) -> Result<()> {
        // Most are young, and need no lock to see that.
        if !self.is_left(folder, least)? {
            return Ok(());
        }
        let Some(_lock) = FileLock::try_acquire(lock)? else { return Ok(()) };
        // It may have been worked on until just now.
        if !self.is_left(folder, least)? {
            return Ok(());
        }
        let files = tree::files(folder)?;
        let bytes: u64 = files.iter().map(|path| allocated(path)).sum();
        match fs::remove_dir_all(folder) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("delete", folder, e)),
            _ => {}
        }
        self.cleaned.files += files.len();
        self.cleaned.bytes += bytes;
        Ok(())
    }

    /// Whether nothing below `folder`, nor that itself, was written lately.
    fn is_left(&self, folder: &Path, least: Duration) -> Result<bool> {
        let files = tree::files(folder)?;
        let paths = files.iter().map(PathBuf::as_path).chain([folder]);
        let newest = paths.filter_map(|path| fs::symlink_metadata(path).ok()?.modified().ok()).max();
        Ok(newest.is_some_and(|newest| self.is_old(newest, least)))
    }

    /// Content of this store that nothing names.
    fn blobs(&mut self, ledger: &Ledger, held: &[Held]) {
        // What nobody can read may name any of it.
        if ledger.has_unknown() {
            return;
        }
        let usage = Usage::new(self.store, &ledger.records, &ledger.unreadable, held);
        let blobs = self.done(tree::entries(&self.store.blobs())).unwrap_or_default();
        for (path, _) in blobs.into_iter().filter(|(_, is_folder)| !is_folder) {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let is_blob =
                ["sha256-", "git-sha1-", "plain-"].iter().any(|kind| name.starts_with(kind)) && !name.contains('.');
            let written = fs::symlink_metadata(&path).and_then(|m| m.modified());
            let is_old = written.is_ok_and(|written| self.is_old(written, Duration::ZERO));
            if is_blob && is_old && !usage.has_content(&real(&path), &name) {
                let removed = self.done(tree::remove(&path)).flatten();
                self.count(removed);
            }
        }
    }

    fn count(&mut self, removed: Option<u64>) {
        if let Some(bytes) = removed {
            self.cleaned.files += 1;
            self.cleaned.bytes += bytes;
        }
    }

    /// Files that came into the caches of other tools.
    fn notes(&mut self, ledger: &Ledger, held: &[Held]) {
        for (number, note) in ledger.unfinished.iter().enumerate() {
            let written = fs::metadata(self.store.note_path(note)).and_then(|m| m.modified());
            let is_old = written.is_ok_and(|written| self.is_old(written, Duration::ZERO));
            if is_old && !is_held(note, held) {
                let removed = self.store.remove(ledger, &[], &[number], Taking::Ours, held);
                if let Some(deleted) = self.done(removed) {
                    self.cleaned.files += deleted.files;
                    self.cleaned.bytes += deleted.bytes;
                }
            }
        }
    }

    /// Answers of an API, by which to ask again costs nothing where nothing changed.
    fn answers(&mut self) {
        let folder = self.store.root().join(SOURCE_ANSWERS);
        for (path, is_folder) in self.done(tree::entries(&folder)).unwrap_or_default() {
            let is_answer = path.extension().is_some_and(|end| end == "json")
                && path.file_stem().is_some_and(|name| name.len() == 64 && !is_folder);
            let written = fs::symlink_metadata(&path).and_then(|m| m.modified());
            if is_answer && written.is_ok_and(|written| self.is_old(written, ANSWERS_UNUSED)) {
                let removed = self.done(tree::remove(&path)).flatten();
                self.count(removed);
            }
        }
    }

    /// What a crash left of files that are written under another name first.
    fn temporaries(&mut self, caches: &[Record]) {
        let root = self.store.root();
        let mut folders: BTreeSet<PathBuf> =
            ["artifacts", "trust", "selected", "unfinished", "locks", "blobs", "partials", SOURCE_ANSWERS]
                .iter()
                .map(|name| root.join(name))
                .collect();
        folders.insert(root.to_owned());
        // Not the folder of contents: another tool has names there that look like ours.
        folders.extend(caches.iter().map(|record| record.cache_root().to_owned()));
        for folder in folders {
            let swept = sweep_temporaries(&folder, self.older_than.max(IN_THE_MAKING), self.now);
            if let Some(swept) = self.done(swept) {
                self.cleaned.files += usize::try_from(swept.files).unwrap_or(usize::MAX);
                self.cleaned.bytes += swept.bytes;
            }
        }
    }

    /// Copies of partials beside the contents of a cache on another file system.
    fn copies(&mut self, caches: &[Record]) {
        let contents = |record: &Record| {
            let of = |place: &Place| match place {
                Place::Linked { blob, .. } => Some(real(&blob.at(record.cache_root())).parent()?.to_owned()),
                Place::Blob(_) | Place::Elsewhere(_) => None,
            };
            record.files.iter().filter_map(|file| of(&file.place)).collect::<Vec<_>>()
        };
        let folders: BTreeSet<_> = caches.iter().flat_map(contents).collect();
        for folder in folders {
            for (path, _) in self.done(tree::entries(&folder)).unwrap_or_default() {
                let result = self.copy(&path);
                let removed = self.done(result).flatten();
                self.count(removed);
            }
        }
    }

    fn copy(&self, path: &Path) -> Result<Option<u64>> {
        let Some(key) = copied_key(self.store.root(), path) else { return Ok(None) };
        let Some(_lock) = FileLock::try_acquire(&self.store.locks().join(format!("{key}.lock")))? else {
            return Ok(None);
        };
        let written = fs::symlink_metadata(path).and_then(|m| m.modified());
        if written.is_ok_and(|written| self.is_old(written, IN_THE_MAKING)) { tree::remove(path) } else { Ok(None) }
    }
}

/// Whether `key` names a file of an artifact that is held.
fn is_partial_of(key: &str, held: &[Held]) -> bool {
    held.iter().any(|held| match held {
        Held::Needs(record) => record.files.iter().any(|file| {
            let digest = file.digest.as_ref();
            FileKey::of_file(&record.reference, &record.revision, &file.path, file.size, digest).to_string() == key
        }),
        // It has digests as they are written, and nothing that the name of a file without one could be told from.
        Held::Text(text) => match key.rsplit_once('-') {
            Some((kind, digest)) => kind == "plain" || text.contains(digest),
            None => true,
        },
        Held::Unknown { .. } => true,
    })
}

/// The key of the partial in the store at `root` that the file at `path` is a copy of. `None` if it is of none: other
/// tools, too, put eight hex digits before `.incomplete`, but no others do so by the path of our partial.
fn copied_key(root: &Path, path: &Path) -> Option<String> {
    let (blob, tag) = path.file_name()?.to_str()?.strip_suffix(".incomplete")?.rsplit_once('.')?;
    let keys = ["sha256-", "git-sha1-"].map(|kind| format!("{kind}{blob}"));
    keys.into_iter().find(|key| {
        let hash = Sha256::digest(root.join("partials").join(key).as_os_str().as_encoded_bytes());
        hash[..4].iter().map(|byte| format!("{byte:02x}")).collect::<String>() == tag
    })
}
