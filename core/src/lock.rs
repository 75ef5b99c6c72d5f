//! What a spec meant when it was locked.

use serde::{Deserialize, Serialize};

use crate::{ArtifactRef, Error, Manifest, ManifestFile, Result, Want};

/// The artifacts of a spec as they were at one time: base, tokenizer and adapters, each at its revision and with the digest
/// of every file. A spec that has one gets these bytes or an error.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct SpecLock {
    /// The base, which holds the tokenizer too, and then the adapters.
    #[serde(rename = "artifact")]
    pub artifacts: Vec<LockedArtifact>,
}

/// One artifact as it was.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct LockedArtifact {
    /// The ref, as the spec has it.
    #[serde(rename = "ref")]
    pub reference: ArtifactRef,
    /// What it was wanted as.
    pub want: Want,
    /// The immutable revision.
    pub revision: String,
    /// The revision's name for people, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The files as their source has them, each with its digest.
    #[serde(rename = "file")]
    pub files: Vec<ManifestFile>,
}

impl LockedArtifact {
    /// What `manifest` is.
    ///
    /// # Errors
    /// [`Error::IntegrityFailed`] for a file without a digest.
    pub fn new(manifest: &Manifest) -> Result<Self> {
        if let Some(file) = manifest.files.iter().find(|file| file.digest.is_none()) {
            return Err(Error::IntegrityFailed {
                what: format!("{} of {}", file.path, manifest.reference),
                expected: "a digest to lock it to".into(),
                found: "none: its source tells none, and it is not on this machine; fetch it first".into(),
            });
        }
        Ok(Self {
            reference: manifest.reference.clone(),
            want: manifest.want,
            revision: manifest.revision.clone(),
            version: manifest.version.clone(),
            files: manifest.files.clone(),
        })
    }

    /// Holds `manifest` to this: its files must be these, and one whose source tells no digest gets the one it had.
    ///
    /// # Errors
    /// [`Error::IntegrityFailed`] that names the first difference.
    pub fn hold(&self, manifest: &mut Manifest) -> Result<()> {
        let differs = |what: String, expected: String, found: String| {
            Err(Error::IntegrityFailed {
                what: format!("{what} of {}", self.reference),
                expected: format!("{expected}, as it was locked at {}", self.named()),
                found: format!(
                    "{found} at {}; lock the spec anew to use what is there now",
                    manifest.version.as_ref().unwrap_or(&manifest.revision)
                ),
            })
        };
        for locked in &self.files {
            let Some(file) = manifest.file(&locked.path) else {
                return differs(format!("`{}`", locked.path), "the file".into(), "none".into());
            };
            if file.size != locked.size {
                return differs(locked.path.clone(), format!("{} bytes", locked.size), format!("{} bytes", file.size));
            }
            let Some(expected) = locked.digest else {
                return differs(locked.path.clone(), "a digest".into(), "none in the lock".into());
            };
            if let Some(found) = file.digest
                && found != expected
            {
                return differs(locked.path.clone(), expected.to_string(), found.to_string());
            }
        }
        if let Some(more) = manifest.files.iter().find(|file| !self.files.iter().any(|l| l.path == file.path)) {
            return differs(format!("`{}`", more.path), "no such file".into(), "one".into());
        }
        for file in &mut manifest.files {
            if file.digest.is_none() {
                file.digest = self.files.iter().find(|locked| locked.path == file.path).and_then(|l| l.digest);
            }
        }
        Ok(())
    }

    /// The revision as people name it.
    pub fn named(&self) -> &str {
        self.version.as_ref().unwrap_or(&self.revision)
    }
}

impl SpecLock {
    /// A lock of `artifacts`.
    pub fn new(artifacts: Vec<LockedArtifact>) -> Self {
        Self { artifacts }
    }

    /// What `reference` was.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it was not among what was locked.
    pub fn artifact(&self, reference: &ArtifactRef, want: Want) -> Result<&LockedArtifact> {
        let mut artifacts = self.artifacts.iter();
        artifacts.find(|a| a.reference == *reference && a.want == want).ok_or_else(|| {
            let has: Vec<_> = self.artifacts.iter().map(|a| a.reference.to_string()).collect();
            Error::not_found(
                reference,
                format!("it is not in the lock, which has {}; lock the spec anew", has.join(", ")),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;

    fn manifest(files: &[(&str, u64, Option<u8>)]) -> Manifest {
        let file = |(path, size, digest): &(&str, u64, Option<u8>)| {
            let file = ManifestFile::new(*path, *size);
            digest.map_or(file.clone(), |byte| file.with_digest(Digest::Sha256([byte; 32])))
        };
        let files = files.iter().map(file).collect();
        Manifest::new("github:o/r@latest".parse().unwrap(), Want::Adapter, "7:1", files).unwrap().with_version("v1")
    }

    #[test]
    fn a_lock_gives_the_same_bytes_or_an_error() {
        let locked = LockedArtifact::new(&manifest(&[("a", 1, Some(1)), ("b", 2, Some(2))])).unwrap();
        let mut same = manifest(&[("b", 2, None), ("a", 1, Some(1))]);
        locked.hold(&mut same).unwrap();
        assert_eq!(same.file("b").unwrap().digest, Some(Digest::Sha256([2; 32])));
        for (files, part) in [
            (&[("a", 1, Some(3)), ("b", 2, Some(2))][..], "a of github:o/r@latest"),
            (&[("a", 1, Some(1)), ("b", 3, None)], "expected 2 bytes, as it was locked at v1"),
            (&[("a", 1, Some(1))], "`b`"),
            (&[("a", 1, Some(1)), ("b", 2, Some(2)), ("c", 1, None)], "`c`"),
        ] {
            let error = locked.hold(&mut manifest(files)).unwrap_err();
            assert_eq!(error.code(), "integrity_failed");
            assert!(error.to_string().contains(part), "{error}");
        }
        assert!(LockedArtifact::new(&manifest(&[("a", 1, None)])).is_err());
        let lock = SpecLock::new(vec![locked]);
        assert!(lock.artifact(&"github:o/r@latest".parse().unwrap(), Want::Adapter).is_ok());
        let missing = lock.artifact(&"github:o/r@v1".parse().unwrap(), Want::Adapter).unwrap_err().to_string();
        assert!(missing.contains("which has github:o/r@latest"), "{missing}");
    }
}
