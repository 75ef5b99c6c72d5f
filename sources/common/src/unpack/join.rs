//! Parts, one after the other.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use llm_local_core::{Digest, Error, Result};
use tokio_util::sync::CancellationToken;

use super::written::{BUFFER, Written};

/// Writes `parts`, one after the other, into the new file `into`, and says how large it is and what its SHA-256 is. It is
/// on disk (synced) when this returns; its folder is not. Blocks.
///
/// # Errors
/// In each case there is no file at `into`, unless there was one before.
/// - [`Error::LoadFailed`] if there are no parts, or more than `limit` bytes in them.
/// - [`Error::Io`] if a part cannot be read or the file not be written, and if something is at `into`.
/// - [`Error::Cancelled`].
pub fn join(parts: &[PathBuf], into: &Path, limit: u64, cancel: &CancellationToken) -> Result<(u64, Digest)> {
    if parts.is_empty() {
        return Err(Error::load(into.display(), "there are no parts to join"));
    }
    let mut written = Written::create(into)?;
    let mut append = || {
        let mut buffer = vec![0; BUFFER];
        for part in parts {
            append_part(part, into, limit, cancel, &mut written, &mut buffer)?;
        }
        Ok(())
    };
    let joined = append().and_then(|()| written.finish());
    if joined.is_err()
        && let Err(error) = fs::remove_file(into)
    {
        tracing::warn!(path = %into.display(), %error, "cannot remove what was joined");
    }
    joined
}

fn append_part(
    part: &Path,
    into: &Path,
    limit: u64,
    cancel: &CancellationToken,
    written: &mut Written,
    buffer: &mut [u8],
) -> Result<()> {
    let mut file = File::open(part).map_err(|e| Error::io("open", part, e))?;
    loop {
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let read = match file.read(buffer) {
            Ok(0) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            read => read.map_err(|e| Error::io("read", part, e))?,
        };
        if read as u64 > limit - written.size() {
            let reason = format!("its parts have more than the {limit} bytes that are allowed");
            return Err(Error::load(into.display(), reason));
        }
        written.append(&buffer[..read])?;
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;

    fn parts(folder: &Path, contents: &[&[u8]]) -> Vec<PathBuf> {
        let write = |(i, bytes): (usize, &&[u8])| {
            let path = folder.join(format!("part{i}"));
            fs::write(&path, bytes).unwrap();
            path
        };
        contents.iter().enumerate().map(write).collect()
    }

    #[test]
    fn parts_become_one_file_in_the_order_given() {
        let folder = tempfile::tempdir().unwrap();
        let large = vec![7; BUFFER + 1];
        let mut parts = parts(folder.path(), &[b"one", &large, b"", b"two"]);
        parts.reverse();
        let into = folder.path().join("whole");
        let (size, digest) = join(&parts, &into, 1 << 20, &CancellationToken::new()).unwrap();
        let expected = [b"two", &large[..], b"one"].concat();
        assert_eq!(fs::read(&into).unwrap(), expected);
        assert_eq!((size, digest), (expected.len() as u64, Digest::Sha256(Sha256::digest(&expected).into())));
    }

    #[test]
    fn what_cannot_be_joined_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let cancel = CancellationToken::new();
        let into = folder.path().join("whole");
        let mut parts = parts(folder.path(), &[b"one", b"two"]);
        assert_eq!(join(&parts, &into, 6, &cancel).unwrap().0, 6);
        fs::remove_file(&into).unwrap();
        let error = join(&parts, &into, 5, &cancel).unwrap_err();
        assert!(error.to_string().contains("5 bytes"), "{error}");
        assert!(!into.exists());
        assert_eq!(join(&[], &into, 5, &cancel).unwrap_err().code(), "load_failed");
        parts.push(folder.path().join("missing"));
        let error = join(&parts, &into, 100, &cancel).unwrap_err();
        assert!(error.to_string().contains("missing"), "{error}");
        assert!(!into.exists());
        cancel.cancel();
        assert_eq!(join(&parts, &into, 100, &cancel).unwrap_err().code(), "cancelled");
        assert!(!into.exists());
    }

    #[test]
    fn a_file_that_is_there_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let into = folder.path().join("whole");
        fs::write(&into, "mine").unwrap();
        let parts = parts(folder.path(), &[b"one"]);
        assert_eq!(join(&parts, &into, 100, &CancellationToken::new()).unwrap_err().code(), "io");
        assert_eq!(fs::read(&into).unwrap(), b"mine");
    }
}
