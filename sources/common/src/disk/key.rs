//! The name of a file's content.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use llm_local_core::{ArtifactRef, Digest, Manifest, ManifestFile};
use sha2::{Digest as _, Sha256};

use crate::location::Location;

/// Names the content of a file: its blob, its partial and its lock. Two files with one digest have one key, whatever
/// refs they belong to. Plain ASCII that every file system takes for a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FileKey(String);

/// How the key of a file without a digest begins.
const PLAIN: &str = "plain-";

impl FileKey {
    /// The key of `file` of `manifest`: as [`FileKey::of_file`].
    pub(crate) fn new(manifest: &Manifest, file: &ManifestFile) -> Self {
        Self::of_file(&manifest.reference, &manifest.revision, &file.path, file.size, file.digest.as_ref())
    }

    /// The key of the file at `path` of the artifact `reference` at `revision`: `sha256-<hex>` or `git-sha1-<hex>` by its
    /// digest. A file without one is what its source, revision, path and size say: `plain-<hex>`, the SHA-256 of scheme,
    /// locator, revision, path, size, and the part that the ref asks for if it does, each ended by a NUL.
    pub(crate) fn of_file(
        reference: &ArtifactRef,
        revision: &str,
        path: &str,
        size: u64,
        digest: Option<&Digest>,
    ) -> Self {
        if let Some(digest) = digest {
            return Self::of_digest(digest);
        }
        let size = size.to_string();
        let mut hash = Sha256::new();
        let Location { scheme, locator, part } = Location::of_resolved(reference, revision);
        for piece in [scheme, locator, revision, path, &size].into_iter().chain(part) {
            hash.update(piece);
            hash.update([0]);
        }
        let text = Digest::Sha256(hash.finalize().into()).to_string();
        Self(text.replace("sha256:", PLAIN))
    }

    /// The key of content with this digest.
    pub(crate) fn of_digest(digest: &Digest) -> Self {
        Self(digest.to_string().replace(':', "-"))
    }

    /// Whether the content proves itself by its digest.
    pub(crate) fn has_digest(&self) -> bool {
        !self.0.starts_with(PLAIN)
    }

    /// Where the content is published in the store at `root`.
    pub(crate) fn blob(&self, root: &Path) -> PathBuf {
        root.join("blobs").join(&self.0)
    }

    /// The folder of its partial.
    pub(crate) fn partial(&self, root: &Path) -> PathBuf {
        root.join("partials").join(&self.0)
    }

    /// The file to lock before its blob or partial is written. It stays for good: whoever waits has it open.
    pub(crate) fn lock(&self, root: &Path) -> PathBuf {
        root.join("locks").join(format!("{}.lock", self.0))
    }
}

impl fmt::Display for FileKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use llm_local_core::Want;

    use super::*;

    fn key(reference: &str, revision: &str, file: ManifestFile) -> FileKey {
        let manifest = Manifest::new(reference.parse().unwrap(), Want::Model, revision, vec![file]).unwrap();
        FileKey::new(&manifest, &manifest.files[0])
    }

    #[test]
    fn a_digest_is_the_name_wherever_the_file_comes_from() {
        let digest: Digest = format!("git-sha1:{}", "a9".repeat(20)).parse().unwrap();
        let one = key("hf:a/b", "1", ManifestFile::new("x", 1).with_digest(digest));
        let other = key("hf:c/d", "2", ManifestFile::new("y", 1).with_digest(digest));
        assert_eq!(one, other);
        assert_eq!(one.to_string(), format!("git-sha1-{}", "a9".repeat(20)));
        assert!(one.has_digest());
        let root = Path::new("root");
        assert_eq!(one.lock(root), Path::new("root/locks").join(format!("{one}.lock")));
        assert_eq!(one.partial(root), Path::new("root/partials").join(one.to_string()));
        assert_eq!(one.blob(root), Path::new("root/blobs").join(one.to_string()));
    }

    #[test]
    fn without_a_digest_all_that_is_known_is_the_name() {
        let base = key("hf:a/b", "1", ManifestFile::new("x", 1));
        // printf 'hf\0a/b\0001\0x\0001\0' | sha256sum
        assert_eq!(base.to_string(), "plain-94970ed62735b7e41d3ed8f3340206d14f995031a4c8394569762d05748802ee");
        assert!(!base.has_digest());
        for other in [
            key("gh:a/b", "1", ManifestFile::new("x", 1)),
            key("hf:a/c", "1", ManifestFile::new("x", 1)),
            key("hf:a/b", "2", ManifestFile::new("x", 1)),
            key("hf:a/b", "1", ManifestFile::new("y", 1)),
            key("hf:a/b", "1", ManifestFile::new("x", 2)),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn a_part_is_of_the_name_wherever_the_ref_has_it_and_a_revision_with_a_colon_is_none() {
        let of = |reference: &str| key(reference, "7:1", ManifestFile::new("x", 1));
        assert_eq!(of("gh:o/n@v1:a"), of("gh:o/n:a@v2"));
        let others = ["gh:o/n", "gh:o/n@v1:a", "gh:o/n@v1:b", "gh:o/n@v1:a:b", "gh:o/n:a@v1:b"];
        for (i, one) in others.iter().enumerate() {
            others[i + 1..].iter().for_each(|other| assert_ne!(of(one), of(other), "{one} {other}"));
        }
        assert_eq!((of("gh:o/n@7:1"), of("gh:o/n@latest")), (of("gh:o/n"), of("gh:o/n")));
    }
}
