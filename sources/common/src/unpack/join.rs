//! Parts, one after the other.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use llm_local_core::{Digest, Error, Result};
use tokio_util::sync::CancellationToken;

use super::{
    limits::Limits,
    written::{BUFFER, Written},
};

/// Writes `parts`, one after the other, into the new file `into`, which is called `name` in messages, and says how large it
/// is and what its SHA-256 is. It is on disk (synced) when this returns; its folder is not. Blocks. Of `limits`, the bytes
/// of all files together are the bound.
///
/// # Errors
/// In each case there is no file at `into`, unless there was one before.
/// - [`Error::LoadFailed`] if there are no parts, or more than `limits` allow in them.
/// - [`Error::NotAllowed`] if there is more in them than a policy allows ([`Limits::with_policy`]).
/// - [`Error::Io`] if a part cannot be read or the file not be written, and if something is at `into`.
/// - [`Error::Cancelled`].
pub fn join(
    parts: &[PathBuf],
    name: &str,
    into: &Path,
    limits: &Limits,
    cancel: &CancellationToken,
) -> Result<(u64, Digest)> {
    if parts.is_empty() {
        return Err(Error::load(name, "there are no parts to join"));
    }
    let mut written = Written::create(into)?;
    let mut append = || {
        let mut buffer = vec![0; BUFFER];
        for part in parts {
            append_part(part, name, limits, cancel, &mut written, &mut buffer)?;
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
    name: &str,
    limits: &Limits,
    cancel: &CancellationToken,
    written: &mut Written,
    buffer: &mut [u8],
) -> Result<()> {
    let mut file = File::open(part).map_err(|e| Error::io("open", part, e))?;
    let (most, setting) = limits.total_bound();
    loop {
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let read = match file.read(buffer) {
            Ok(0) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            read => read.map_err(|e| Error::io("read", part, e))?,
        };
        if read as u64 > most - written.size() {
            let reason = format!("its parts have more than the {most} bytes that are allowed, and were not joined");
            return Err(setting.exceeded(name, reason, "join them yourself and use the file"));
        }
        written.append(&buffer[..read])?;
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;

    fn most(bytes: u64) -> Limits {
        Limits::default().with_total_bytes(bytes)
    }

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
        let (size, digest) = join(&parts, "whole", &into, &most(1 << 20), &CancellationToken::new()).unwrap();
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
        let join = |parts: &[PathBuf], limits: &Limits| join(parts, "gh:o/r#whole", &into, limits, &cancel);
        assert_eq!(join(&parts, &most(6)).unwrap().0, 6);
        fs::remove_file(&into).unwrap();
        for (limits, code, says) in [
            (most(5), "load_failed", "`TransferConfig::with_unpack` (`Limits::with_total_bytes`)"),
            (most(6).with_policy("`Policy::max_model_bytes`", 6, 5), "not_allowed", "`Policy::max_model_bytes`"),
        ] {
            let error = join(&parts, &limits).unwrap_err();
            assert_eq!(error.code(), code, "{error}");
            for says in [says, "5 bytes", "gh:o/r#whole"] {
                assert!(error.to_string().contains(says), "{error}");
            }
            assert!(!into.exists());
        }
        assert_eq!(join(&[], &most(5)).unwrap_err().code(), "load_failed");
        parts.push(folder.path().join("missing"));
        let error = join(&parts, &most(100)).unwrap_err();
        assert!(error.to_string().contains("missing"), "{error}");
        assert!(!into.exists());
        cancel.cancel();
        assert_eq!(join(&parts, &most(100)).unwrap_err().code(), "cancelled");
        assert!(!into.exists());
    }

    #[test]
    fn a_file_that_is_there_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let into = folder.path().join("whole");
        fs::write(&into, "mine").unwrap();
        let parts = parts(folder.path(), &[b"one"]);
        assert_eq!(join(&parts, "whole", &into, &most(100), &CancellationToken::new()).unwrap_err().code(), "io");
        assert_eq!(fs::read(&into).unwrap(), b"mine");
    }
}
