//! Content of files, by its digests.

use std::{io::Read, path::Path};

use fs_err::File;
use llm_local_core::{Digest, Error, Result};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use crate::blocking::Wanted;

/// Bytes that are read at once.
const CHUNK: usize = 1 << 18;

/// Size in bytes and SHA-256 of the file at `path`, as long as they are wanted.
pub(crate) fn hash(path: &Path, wanted: &Wanted) -> Result<(u64, Digest)> {
    let mut sum = Sha256::new();
    let size = read(&mut open(path)?, path, wanted, |bytes| sum.update(bytes))?;
    Ok((size, Digest::Sha256(sum.finalize().into())))
}

/// The digest of the file at `path` of the kind that `like` is, as long as it is wanted.
pub(crate) fn hash_like(path: &Path, like: &Digest, wanted: &Wanted) -> Result<Digest> {
    match like {
        Digest::Sha256(_) => hash(path, wanted).map(|(_, digest)| digest),
        Digest::GitSha1(_) => {
            let mut file = open(path)?;
            let size = file.metadata().map_err(|e| Error::io("read", path, e))?.len();
            // As git has it: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects#_object_storage
            let mut sum = Sha1::new_with_prefix(format!("blob {size}\0"));
            read(&mut file, path, wanted, |bytes| sum.update(bytes))?;
            Ok(Digest::GitSha1(sum.finalize().into()))
        }
        other => Err(Error::unsupported(format!("digest {other}"), "only SHA-256 and git's blob ids can be computed")),
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| Error::io("open", path, e))
}

/// Reads `file` to its end; gives how many bytes there were.
fn read(file: &mut File, path: &Path, wanted: &Wanted, mut each: impl FnMut(&[u8])) -> Result<u64> {
    let (mut size, mut chunk) = (0, vec![0; CHUNK]);
    loop {
        wanted.check()?;
        match file.read(&mut chunk).map_err(|e| Error::io("read", path, e))? {
            0 => return Ok(size),
            n => {
                each(&chunk[..n]);
                size += n as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_git_and_coreutils() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "hello\n").unwrap();
        let wanted = Wanted::new();
        // By `git hash-object` and `sha256sum`.
        for text in [
            "git-sha1:ce013625030ba8dba906f756967f9e9ca394464a",
            "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        ] {
            let digest: Digest = text.parse().unwrap();
            assert_eq!(hash_like(&path, &digest, &wanted).unwrap(), digest);
        }
        assert_eq!(hash(&path, &wanted).unwrap().0, 6);
        wanted.give_up();
        assert!(matches!(hash(&path, &wanted), Err(Error::Cancelled)));
    }
}
