//! What pins a local artifact.

use std::{
    fs::{self, File},
    io::Read,
    path::Path,
    time::UNIX_EPOCH,
};

use llm_local_core::{Digest, Error, FetchContext, ManifestFile, Result};
use sha2::{Digest as _, Sha256};

/// Bytes that are read at once.
const CHUNK: usize = 1 << 18;

/// A model's files, pinned by `stat-` and the SHA-256 of their names, sizes and modification times: hashing the weights
/// would take as long as loading them.
pub(crate) fn by_stat(root: &Path, names: Vec<String>) -> Result<(String, Vec<ManifestFile>)> {
    let mut all = Sha256::new();
    let mut files = Vec::new();
    for name in names {
        let path = root.join(&name);
        let meta = fs::metadata(&path).map_err(|e| Error::io("read", &path, e))?;
        let modified = meta.modified().map_err(|e| Error::io("read the time of", &path, e))?;
        // Before 1970 the distance is the error's.
        let nanos = modified.duration_since(UNIX_EPOCH).unwrap_or_else(|e| e.duration()).as_nanos();
        all.update(format!("{name}\0{}\0{nanos}\n", meta.len()));
        files.push(ManifestFile::new(name, meta.len()));
    }
    Ok((format!("stat-{}", hex(all)), files))
}

/// An adapter's files, pinned by `sha256-` and the SHA-256 of their names and contents.
pub(crate) fn by_content(root: &Path, names: Vec<String>, cx: &FetchContext) -> Result<(String, Vec<ManifestFile>)> {
    let mut all = Sha256::new();
    let mut files = Vec::new();
    for name in names {
        let (size, digest) = hash(&root.join(&name), cx)?;
        all.update(format!("{name}\0{digest}\n"));
        files.push(ManifestFile::new(name, size).with_digest(digest));
    }
    Ok((format!("sha256-{}", hex(all)), files))
}

fn hash(path: &Path, cx: &FetchContext) -> Result<(u64, Digest)> {
    let mut file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let (mut sum, mut size, mut chunk) = (Sha256::new(), 0, vec![0; CHUNK]);
    loop {
        if cx.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        match file.read(&mut chunk).map_err(|e| Error::io("read", path, e))? {
            0 => return Ok((size, Digest::Sha256(sum.finalize().into()))),
            n => {
                sum.update(&chunk[..n]);
                size += n as u64;
            }
        }
    }
}

fn hex(sum: Sha256) -> String {
    sum.finalize().iter().map(|b| format!("{b:02x}")).collect()
}
