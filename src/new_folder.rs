//! A new folder that is there whole or not at all.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use fs_err::File;
use llm_local_core::{Error, Result};
use llm_local_source_common::disk::same_volume;
use tempfile::TempDir;

use crate::blocking::Wanted;

#[cfg(test)]
mod tests;

/// A folder on its way. Dropped before [`NewFolder::publish`], nothing of it is left.
pub(crate) struct NewFolder {
    /// What it is for, in messages.
    doing: &'static str,
    /// Its owner alone may read it, so the folder is one in it.
    outer: TempDir,
    inner: PathBuf,
    files: Vec<String>,
}

/// Checks that a new folder can become `into`: that this is a name in a folder, and that nothing is there, or an empty folder
/// that can be replaced.
///
/// # Errors
/// [`Error::Io`] with `doing` that says what to name instead.
pub(crate) fn check_free(doing: &'static str, into: &Path) -> Result<()> {
    check_free_with(doing, into, same_volume)
}

/// As [`check_free`], where `are_one` says whether two paths are on one file system.
fn check_free_with(doing: &'static str, into: &Path, are_one: impl Fn(&Path, &Path) -> bool) -> Result<()> {
    let refused = |kind: io::ErrorKind, reason: &str| Err(Error::io(doing, into, io::Error::new(kind, reason)));
    let there = |reason: &str| refused(io::ErrorKind::AlreadyExists, &format!("{reason}; name a new one"));
    if into.file_name().is_none() {
        return refused(io::ErrorKind::InvalidInput, "it does not end with the name of a folder; name a new one in it");
    }
    match fs::symlink_metadata(into) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("look at", into, e)),
        Ok(metadata) if !metadata.is_dir() => there("it is there already, and no folder"),
        Ok(_) => {
            let mut entries = fs::read_dir(into).map_err(|e| Error::io("list", into, e))?;
            if entries.next().is_some() {
                return there("the folder is there already, and not empty");
            }
            if !are_one(parent(into), into) {
                let reason = "another file system is mounted there, which cannot be replaced; name a new folder in it";
                return refused(io::ErrorKind::CrossesDevices, reason);
            }
            Ok(())
        }
    }
}

impl NewFolder {
    /// A folder beside `into`, to be put there. Missing folders above are made. `doing` is what it is for, in messages.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn beside(doing: &'static str, into: &Path) -> Result<Self> {
        let beside = parent(into);
        fs::create_dir_all(beside).map_err(|e| Error::io("create the folder", beside, e))?;
        let outer = tempfile::Builder::new().prefix(".llm-local-").suffix(".tmp").tempdir_in(beside);
        let outer = outer.map_err(|e| Error::io("create a folder in", beside, e))?;
        let inner = outer.path().join("new");
        fs::create_dir(&inner).map_err(|e| Error::io("create the folder", &inner, e))?;
        Ok(Self { doing, outer, inner, files: Vec::new() })
    }

    /// Where the file `name` of it is until it is published.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.inner.join(name)
    }

    /// A new file called `name`, to be [closed](NewFolder::close).
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn create(&mut self, name: &str) -> Result<File> {
        let path = self.path(name);
        self.files.push(name.to_owned());
        File::create(&path).map_err(|e| Error::io("create", path, e))
    }

    /// Waits until the disk has all of `file`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn close(file: &File) -> Result<()> {
        file.sync_all().map_err(|e| Error::io("write", file.path(), e))
    }

    /// Writes a small file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut file = self.create(name)?;
        io::Write::write_all(&mut file, bytes).map_err(|e| Error::io("write", file.path(), e))?;
        Self::close(&file)
    }

    /// Copies what the file at `from` holds.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn copy(&mut self, name: &str, from: &Path) -> Result<()> {
        let mut source = File::open(from).map_err(|e| Error::io("open", from, e))?;
        let mut file = self.create(name)?;
        io::copy(&mut source, &mut file).map_err(|e| Error::io("copy", from, e))?;
        Self::close(&file)
    }

    /// Gives it the name `into`, beside which it was made, in one step, if it is still wanted. Returns the names of its
    /// files.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Cancelled`].
    pub(crate) fn publish(self, into: &Path, wanted: &Wanted) -> Result<Vec<String>> {
        sync_folder(&self.inner)?;
        wanted.commit(|| {
            put(&self.inner, into, |from, to| fs::rename(from, to)).map_err(|e| Error::io(self.doing, into, e))
        })?;
        drop(self.outer);
        sync_folder(parent(into))?;
        Ok(self.files)
    }
}

/// Renames the folder `from` to `into`. An empty folder that stands there is removed where the system does not put a folder
/// in the place of another, and made again if that was for nothing; one that is not empty stays, whatever happens.
///
/// # Errors
/// What the first renaming gave.
fn put(from: &Path, into: &Path, rename: impl Fn(&Path, &Path) -> io::Result<()>) -> io::Result<()> {
    let Err(first) = rename(from, into) else { return Ok(()) };
    // Windows says that access is denied.
    let exists = first.kind() == io::ErrorKind::AlreadyExists
        || cfg!(windows) && first.kind() == io::ErrorKind::PermissionDenied;
    if !exists || fs::remove_dir(into).is_err() {
        return Err(first);
    }
    rename(from, into).map_err(|_| match fs::create_dir(into) {
        Ok(()) => first,
        Err(error) => {
            let reason =
                format!("{first}; and the empty folder that was there is gone, and cannot be made again: {error}");
            io::Error::new(first.kind(), reason)
        }
    })
}

/// The folder that `path` is in.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes what was made or renamed in the folder outlast a power loss, where the system can: some network file systems know
/// no such thing, and a folder may be writable but not readable.
pub(crate) fn sync_folder(path: &Path) -> Result<()> {
    use io::ErrorKind as K;
    if cfg!(not(unix)) {
        return Ok(());
    }
    match fs::File::open(path).and_then(|folder| folder.sync_all()) {
        Err(e) if matches!(e.kind(), K::InvalidInput | K::Unsupported | K::PermissionDenied) => Ok(()),
        other => other.map_err(|e| Error::io("sync the folder", path, e)),
    }
}
