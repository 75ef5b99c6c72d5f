//! Parts, one after the other.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use llm_local_core::{Digest, Error, Result};
use tokio_util::sync::CancellationToken;

use super::written::{BUFFER, Written};

/// Writes `parts`, one after the other, into the new file `into`, which is called `name` in messages, and says how large it
/// is and what its SHA-256 is. It is on disk (synced) when this returns; its folder is not. Blocks. The parts have `bytes`
/// together, as they were verified, and nothing else bounds them: unlike what is in an archive, that is known before.
///
/// # Errors
/// In each case there is no file at `into`, unless there was one before.
/// - [`Error::LoadFailed`] if there are no parts.
/// - [`Error::IntegrityFailed`] if they have more bytes or fewer: they were changed since.
/// - [`Error::Io`] if a part cannot be read or the file not be written, and if something is at `into`.
/// - [`Error::Cancelled`].
pub fn join(
    parts: &[PathBuf],
    name: &str,
    into: &Path,
    bytes: u64,
    cancel: &CancellationToken,
) -> Result<(u64, Digest)> {
    if parts.is_empty() {
        return Err(Error::load(name, "there are no parts to join"));
    }
    let mut written = Written::create(into)?;
    let mut append = || {
        let mut buffer = vec![0; BUFFER];
        for part in parts {
            if !append_part(part, bytes, cancel, &mut written, &mut buffer)? {
                return Err(changed(name, bytes, "more".into()));
            }
        }
        match written.size() {
            size if size < bytes => Err(changed(name, bytes, format!("{size} bytes"))),
            _ => Ok(()),
        }
    };
    let joined = append().and_then(|()| written.finish());
    if joined.is_err()
        && let Err(error) = fs::remove_file(into)
    {
        tracing::warn!(path = %into.display(), %error, "cannot remove what was joined");
    }
    joined
}

/// Appends all of `part`. Whether that was no more than `bytes` with what was written before.
fn append_part(
    part: &Path,
    bytes: u64,
    cancel: &CancellationToken,
    written: &mut Written,
    buffer: &mut [u8],
) -> Result<bool> {
    let mut file = File::open(part).map_err(|e| Error::io("open", part, e))?;
    loop {
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let read = match file.read(buffer) {
            Ok(0) => return Ok(true),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            read => read.map_err(|e| Error::io("read", part, e))?,
        };
        if read as u64 > bytes - written.size() {
            return Ok(false);
        }
        written.append(&buffer[..read])?;
    }
}

fn changed(name: &str, bytes: u64, found: String) -> Error {
    Error::IntegrityFailed {
        what: name.to_owned(),
        expected: format!("{bytes} bytes in its parts together"),
        found: format!("{found}: a part was changed before it was joined; try again"),
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
        let expected = [b"two", &large[..], b"one"].concat();
        let bytes = expected.len() as u64;
        let (size, digest) = join(&parts, "whole", &into, bytes, &CancellationToken::new()).unwrap();
        assert_eq!(fs::read(&into).unwrap(), expected);
        assert_eq!((size, digest), (expected.len() as u64, Digest::Sha256(Sha256::digest(&expected).into())));
    }

    #[test]
    fn what_cannot_be_joined_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let cancel = CancellationToken::new();
        let into = folder.path().join("whole");
        let mut parts = parts(folder.path(), &[b"one", b"two"]);
        let join = |parts: &[PathBuf], bytes: u64| join(parts, "gh:o/r#whole", &into, bytes, &cancel);
        assert_eq!(join(&parts, 6).unwrap().0, 6);
        fs::remove_file(&into).unwrap();
        for (bytes, expected, found) in [(5, "5 bytes", "found more"), (7, "7 bytes", "found 6 bytes")] {
            let error = join(&parts, bytes).unwrap_err();
            assert_eq!(error.code(), "integrity_failed", "{error}");
            for says in [expected, found, "gh:o/r#whole"] {
                assert!(error.to_string().contains(says), "{error}");
            }
            assert!(!into.exists());
        }
        assert_eq!(join(&[], 5).unwrap_err().code(), "load_failed");
        parts.push(folder.path().join("missing"));
        let error = join(&parts, 100).unwrap_err();
        assert!(error.to_string().contains("missing"), "{error}");
        assert!(!into.exists());
        cancel.cancel();
        assert_eq!(join(&parts, 100).unwrap_err().code(), "cancelled");
        assert!(!into.exists());
    }

    #[test]
    fn a_file_that_is_there_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let into = folder.path().join("whole");
        fs::write(&into, "mine").unwrap();
        let parts = parts(folder.path(), &[b"one"]);
        assert_eq!(join(&parts, "whole", &into, 3, &CancellationToken::new()).unwrap_err().code(), "io");
        assert_eq!(fs::read(&into).unwrap(), b"mine");
    }
}
