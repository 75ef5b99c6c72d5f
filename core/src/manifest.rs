//! Manifests: a ref pinned to an immutable revision, with its files, sizes and digests.

use serde::{Deserialize, Serialize};

use crate::{ArtifactRef, Digest, Error, Result, Unpack};

/// What a ref is wanted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Want {
    /// A model: its config, weights in one format, and tokenizer.
    Model,
    /// An adapter: its config and weights.
    Adapter,
}

/// A ref pinned to an immutable revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
#[non_exhaustive]
pub struct Manifest {
    /// The ref as it was asked for.
    pub reference: ArtifactRef,
    /// What it was wanted as.
    pub want: Want,
    /// The immutable revision: a commit, the ids of a release and its assets, a digest.
    pub revision: String,
    /// The name of the revision for people, where its owner promises that it always means the same: a release's tag.
    /// What was fetched under it first is held against what comes later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The files, each path once.
    pub files: Vec<ManifestFile>,
    /// What is made of them once they are verified, step by step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unpack: Vec<Unpack>,
    /// The licence, in the source's words, where it tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// Whether its owner grants access to those who ask, where the source tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gated: Option<bool>,
    /// The owner or organisation that publishes it now, where the source tells: another one than its ref names, if it was
    /// given away and is found by its old name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// A manifest as data from anywhere, before its names were looked at.
#[derive(Deserialize)]
struct Unchecked {
    reference: ArtifactRef,
    want: Want,
    revision: String,
    version: Option<String>,
    files: Vec<ManifestFile>,
    #[serde(default)]
    unpack: Vec<Unpack>,
    license: Option<String>,
    gated: Option<bool>,
    owner: Option<String>,
}

impl TryFrom<Unchecked> for Manifest {
    type Error = Error;

    fn try_from(m: Unchecked) -> Result<Self> {
        let mut manifest = Self::new(m.reference, m.want, m.revision, m.files)?.with_unpack(m.unpack)?;
        (manifest.version, manifest.license, manifest.gated) = (m.version, m.license, m.gated);
        manifest.owner = m.owner;
        Ok(manifest)
    }
}

impl Manifest {
    /// A manifest of `files`.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] if a file's path could leave a folder it is put into, or stands there twice.
    pub fn new(
        reference: ArtifactRef,
        want: Want,
        revision: impl Into<String>,
        files: Vec<ManifestFile>,
    ) -> Result<Self> {
        let manifest = Self {
            reference,
            want,
            revision: revision.into(),
            version: None,
            files,
            unpack: Vec::new(),
            license: None,
            gated: None,
            owner: None,
        };
        let mut seen = std::collections::HashSet::new();
        for file in &manifest.files {
            check_relative_path(&file.path)
                .map_err(|reason| Error::invalid_spec(format!("manifest of {}", manifest.reference), reason))?;
            if !seen.insert(&file.path) {
                return Err(Error::invalid_spec(
                    format!("manifest of {}", manifest.reference),
                    format!("the file `{}` is listed twice", file.path),
                ));
            }
        }
        Ok(manifest)
    }

    /// Sets the name of the revision for people.
    pub fn with_version(mut self, version: impl Into<String>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// Sets what is made of the files once they are verified.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] if a step takes a file that is not there, or that an earlier one took, or makes one whose
    /// name is taken or could leave the folder it is put into.
    pub fn with_unpack(mut self, steps: Vec<Unpack>) -> Result<Self> {
        let names = self.files.iter().map(|file| file.path.as_str());
        Unpack::check(&steps, names)
            .map_err(|reason| Error::invalid_spec(format!("manifest of {}", self.reference), reason))?;
        self.unpack = steps;
        Ok(self)
    }

    /// Sets the licence.
    pub fn with_license(mut self, license: impl Into<String>) -> Self {
        self.license = Some(license.into());
        self
    }

    /// Sets whether its owner grants access.
    pub fn with_gated(mut self, gated: bool) -> Self {
        self.gated = Some(gated);
        self
    }

    /// Sets the owner that publishes it now.
    pub fn with_owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = Some(owner.into());
        self
    }

    /// The file at `path`, if there is one.
    pub fn file(&self, path: &str) -> Option<&ManifestFile> {
        self.files.iter().find(|f| f.path == path)
    }

    /// Bytes of all files together.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|f| f.size).sum()
    }
}

/// Says why `path` is not a plain relative path that every file system takes: `/`-separated, without `..`, root, drive,
/// backslash or control character, no part that Windows reserves (`NUL`, `com1.txt`) or would shorten (`a.`, `a `), and
/// at most 255 bytes in a part.
///
/// # Errors
/// The reason, as text that names the path.
pub fn check_relative_path(path: &str) -> std::result::Result<(), String> {
    let bad = |why: &str| Err(format!("the file name `{}` {why}", path.escape_debug()));
    if path.is_empty() {
        return bad("is empty");
    }
    if path.contains(['\\', ':']) || path.chars().any(char::is_control) {
        return bad("contains a backslash, a colon or a control character");
    }
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return bad("is absolute, or has an empty, `.` or `..` part");
    }
    if path.split('/').any(|part| part.ends_with(['.', ' ']) || is_reserved(part)) {
        return bad("has a part that ends in a dot or a space, or that Windows reserves for a device");
    }
    if path.split('/').any(|part| part.len() > 255) {
        return bad("has a part of more than 255 bytes, which no file system takes");
    }
    Ok(())
}

/// Whether Windows takes `part` for a device, whatever its extension.
fn is_reserved(part: &str) -> bool {
    let stem = part.split('.').next().unwrap_or(part).trim_end().to_ascii_uppercase();
    let numbered = |s: &str| {
        let mut digits = s.chars();
        matches!((digits.next(), digits.next()), (Some('1'..='9' | '¹' | '²' | '³'), None))
    };
    matches!(stem.as_str(), "CON" | "PRN" | "AUX" | "NUL" | "CONIN$" | "CONOUT$")
        || stem.strip_prefix("COM").or_else(|| stem.strip_prefix("LPT")).is_some_and(numbered)
}

/// One file of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ManifestFile {
    /// Its path below the artifact's folder, `/`-separated.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its digest, where the source knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
}

impl ManifestFile {
    /// A file of `size` bytes without a known digest.
    pub fn new(path: impl Into<String>, size: u64) -> Self {
        Self { path: path.into(), size, digest: None }
    }

    /// Sets the digest.
    pub fn with_digest(mut self, digest: Digest) -> Self {
        self.digest = Some(digest);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_refuses_names_that_leave_its_folder() {
        let reference: ArtifactRef = "hf:a/b".parse().unwrap();
        for path in
            ["", "/a", "../a", "a/../b", "a//b", "a\\b", "C:a", "a\0b", "./a", "a/", "nul", "x/Com1.txt", "a./b", "a "]
        {
            let files = vec![ManifestFile::new(path, 1)];
            let error = Manifest::new(reference.clone(), Want::Model, "1", files).unwrap_err();
            assert!(error.to_string().contains("file name"), "{path:?}: {error}");
        }
        let twice = vec![ManifestFile::new("a", 1), ManifestFile::new("a", 2)];
        assert!(Manifest::new(reference.clone(), Want::Model, "1", twice).is_err());
        let good = vec![ManifestFile::new("a/b.json", 1), ManifestFile::new("..a", 2), ManifestFile::new("com.txt", 0)];
        let manifest = Manifest::new(reference, Want::Model, "1", good).unwrap();
        assert_eq!(manifest.total_bytes(), 3);
        let json = serde_json::to_string(&manifest).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), manifest);
        let error = serde_json::from_str::<Manifest>(&json.replace("a/b.json", "../b.json")).unwrap_err();
        assert!(error.to_string().contains("../b.json"), "{error}");
    }
}
