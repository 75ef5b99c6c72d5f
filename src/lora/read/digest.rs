//! What tells adapters apart: their content.

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
};

use llm_local_core::{Error, Result};
use sha2::{Digest, Sha256};

/// SHA-256 over what is `said` of the weights, the config's bytes, and the file of `weights`, each after its length; as
/// hex.
pub(super) fn digest(said: &[u8], weights: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update((said.len() as u64).to_le_bytes());
    hash.update(said);
    update(&mut hash, weights)?;
    Ok(hex(hash))
}

/// SHA-256 over the names and contents of `files` and the `format` that reads them, each after its length; as hex.
pub(super) fn of_files(format: &str, files: &BTreeMap<String, PathBuf>) -> Result<String> {
    let mut hash = Sha256::new();
    let mut text = |text: &str, path: Option<&Path>| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
        path.map_or(Ok(()), |path| update(&mut hash, path))
    };
    text(format, None)?;
    for (name, path) in files {
        text(name, Some(path))?;
    }
    Ok(hex(hash))
}

/// Adds the length of a file and its bytes.
fn update(hash: &mut Sha256, path: &Path) -> Result<()> {
    let failed = |e| Error::io("read", path, e);
    let mut file = fs_err::File::open(path).map_err(failed)?;
    hash.update(file.metadata().map_err(failed)?.len().to_le_bytes());
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => return Ok(()),
            n => hash.update(&buffer[..n]),
        }
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
