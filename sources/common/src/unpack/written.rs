//! A file and its SHA-256, written at once.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use llm_local_core::{Digest, Error, Result};
use sha2::{Digest as _, Sha256};

/// Bytes moved at once: few enough to stay in a core's cache between the reader, the hash and the disk.
pub(super) const BUFFER: usize = 256 << 10;

/// A new file, hashed while it is written.
pub(super) struct Written {
    file: File,
    path: PathBuf,
    hash: Sha256,
    size: u64,
}

impl Written {
    /// Makes the file; its permissions follow the umask.
    ///
    /// # Errors
    /// [`Error::Io`] that names it; also if something is there.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).open(path);
        let file = file.map_err(|e| Error::io("create", path, e))?;
        Ok(Self { file, path: path.to_owned(), hash: Sha256::new(), size: 0 })
    }

    /// Bytes so far.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// [`Error::Io`] that names the file.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io("write", &self.path, e))?;
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Size and digest, once the disk has it all.
    ///
    /// # Errors
    /// [`Error::Io`] that names the file.
    pub(super) fn finish(self) -> Result<(u64, Digest)> {
        self.file.sync_all().map_err(|e| Error::io("sync", &self.path, e))?;
        Ok((self.size, Digest::Sha256(self.hash.finalize().into())))
    }
}
