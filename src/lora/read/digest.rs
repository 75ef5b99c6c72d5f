//! What tells adapters apart: their content.

use std::{io::Read, path::Path};

use llm_local_core::{Error, Result};
use sha2::{Digest, Sha256};

/// SHA-256 over what is `said` of the weights, the config's bytes, and the file of `weights`, each after its length; as
/// hex.
pub(super) fn digest(said: &[u8], weights: &Path) -> Result<String> {
    let failed = |e| Error::io("read", weights, e);
    let mut file = fs_err::File::open(weights).map_err(failed)?;
    let mut hash = Sha256::new();
    hash.update((said.len() as u64).to_le_bytes());
    hash.update(said);
    hash.update(file.metadata().map_err(failed)?.len().to_le_bytes());
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
