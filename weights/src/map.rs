//! Files mapped into memory: the one place with `unsafe`.

use std::{
    fs::{self, File},
    io::ErrorKind,
    ops::Deref,
    path::{Path, PathBuf},
};

use llm_local_core::{Error, Result};
use memmap2::Mmap;

/// A file's bytes, mapped read-only.
#[derive(Debug)]
pub(crate) struct Map {
    path: PathBuf,
    bytes: Mmap,
}

impl Map {
    /// Maps the regular file at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let failed = |error: std::io::Error| match error.kind() {
            ErrorKind::NotFound => {
                Error::not_found(path.display(), "there is no such file, or it is a link to one that is gone")
            }
            _ => Error::io("open", path, error),
        };
        // Asked before opening: opening a FIFO would block.
        if !fs::metadata(path).map_err(failed)?.is_file() {
            return Err(Error::load(path.display(), "expected a file, found a folder or a device"));
        }
        let file = File::open(path).map_err(failed)?;
        // SAFETY: the mapping is private to this process, read-only, and lives as long as the slices borrowed from it.
        // What remains is the known hazard of every mapped file: if another process truncates or rewrites it, reads
        // see the change or the process gets SIGBUS. Weight files are written once and published by rename, so this
        // is accepted in exchange for never holding a second copy of the model.
        let bytes = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("map", path, e))?;
        Ok(Self { path: path.to_owned(), bytes })
    }

    /// The file it is of.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_a_missing_file_and_an_empty_file_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Map::open(folder.path()).unwrap_err().code(), "load_failed");
        assert_eq!(Map::open(&folder.path().join("none")).unwrap_err().code(), "not_found");
        let empty = folder.path().join("empty");
        fs::write(&empty, b"").unwrap();
        assert!(Map::open(&empty).unwrap().is_empty());
    }
}
