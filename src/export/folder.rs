//! A new folder that is there whole or not at all.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use fs_err::File;
use llm_local_core::{Error, Result};
use tempfile::TempDir;

use crate::blocking::Wanted;

/// A folder on its way. Dropped before [`NewFolder::publish`], nothing of it is left.
pub(super) struct NewFolder {
    /// Its owner alone may read it, so the folder is one in it.
    outer: TempDir,
    inner: PathBuf,
    files: Vec<String>,
}

/// Checks that nothing is at `into`, or an empty folder.
///
/// # Errors
/// [`Error::Io`] of kind `AlreadyExists`.
pub(crate) fn check_free(into: &Path) -> Result<()> {
    let there = |reason: &str| {
        let error = io::Error::new(io::ErrorKind::AlreadyExists, format!("{reason}; name a new one"));
        Err(Error::io("export to", into, error))
    };
    match fs::symlink_metadata(into) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("look at", into, e)),
        Ok(metadata) if !metadata.is_dir() => there("it is there already, and no folder"),
        Ok(_) => {
            let mut entries = fs::read_dir(into).map_err(|e| Error::io("list", into, e))?;
            if entries.next().is_some() { there("the folder is there already, and not empty") } else { Ok(()) }
        }
    }
}

impl NewFolder {
    /// A folder beside `into`, where nothing may be. Missing folders above are made.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn beside(into: &Path) -> Result<Self> {
        check_free(into)?;
        let beside = parent(into);
        fs::create_dir_all(beside).map_err(|e| Error::io("create the folder", beside, e))?;
        let outer = tempfile::Builder::new().prefix(".llm-local-").suffix(".tmp").tempdir_in(beside);
        let outer = outer.map_err(|e| Error::io("create a folder in", beside, e))?;
        let inner = outer.path().join("model");
        fs::create_dir(&inner).map_err(|e| Error::io("create the folder", &inner, e))?;
        Ok(Self { outer, inner, files: Vec::new() })
    }

    /// A new file called `name`, to be [closed](NewFolder::close).
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn create(&mut self, name: &str) -> Result<File> {
        let path = self.inner.join(name);
        self.files.push(name.to_owned());
        File::create(&path).map_err(|e| Error::io("create", path, e))
    }

    /// Waits until the disk has all of `file`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn close(file: &File) -> Result<()> {
        file.sync_all().map_err(|e| Error::io("write", file.path(), e))
    }

    /// Writes a small file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut file = self.create(name)?;
        io::Write::write_all(&mut file, bytes).map_err(|e| Error::io("write", file.path(), e))?;
        Self::close(&file)
    }

    /// Copies what the file at `from` holds.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn copy(&mut self, name: &str, from: &Path) -> Result<()> {
        let mut source = File::open(from).map_err(|e| Error::io("open", from, e))?;
        let mut file = self.create(name)?;
        io::copy(&mut source, &mut file).map_err(|e| Error::io("copy", from, e))?;
        Self::close(&file)
    }

    /// Gives it the name `into`, in one step, if it is still wanted. Returns the names of its files.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Cancelled`].
    pub(super) fn publish(self, into: &Path, wanted: &Wanted) -> Result<Vec<String>> {
        sync_folder(&self.inner)?;
        wanted.commit(|| {
            let renamed = fs::rename(&self.inner, into).or_else(|error| {
                // Not every system puts a folder in the place of an empty one.
                if into.is_dir() {
                    fs::remove_dir(into).and_then(|()| fs::rename(&self.inner, into))
                } else {
                    Err(error)
                }
            });
            renamed.map_err(|e| Error::io("export to", into, e))
        })?;
        drop(self.outer);
        sync_folder(parent(into))?;
        Ok(self.files)
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes what was made or renamed in the folder outlast a power loss, where the system can: some network file systems know
/// no such thing, and a folder may be writable but not readable.
fn sync_folder(path: &Path) -> Result<()> {
    use io::ErrorKind as K;
    if cfg!(not(unix)) {
        return Ok(());
    }
    match fs::File::open(path).and_then(|folder| folder.sync_all()) {
        Err(e) if matches!(e.kind(), K::InvalidInput | K::Unsupported | K::PermissionDenied) => Ok(()),
        other => other.map_err(|e| Error::io("sync the folder", path, e)),
    }
}
