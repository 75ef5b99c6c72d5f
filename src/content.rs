//! Content of files, by its SHA-256.

use std::{io::Read, path::Path};

use llm_local_core::{Digest, Error, Result};
use sha2::{Digest as _, Sha256};

use crate::blocking::Wanted;

/// Bytes that are read at once.
const CHUNK: usize = 1 << 18;

/// Size in bytes and SHA-256 of the file at `path`, as long as they are wanted.
pub(crate) fn hash(path: &Path, wanted: &Wanted) -> Result<(u64, Digest)> {
    let mut file = fs_err::File::open(path).map_err(|e| Error::io("open", path, e))?;
    let (mut sum, mut size, mut chunk) = (Sha256::new(), 0, vec![0; CHUNK]);
    loop {
        wanted.check()?;
        match file.read(&mut chunk).map_err(|e| Error::io("read", path, e))? {
            0 => return Ok((size, Digest::Sha256(sum.finalize().into()))),
            n => {
                sum.update(&chunk[..n]);
                size += n as u64;
            }
        }
    }
}
