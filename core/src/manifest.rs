//! Manifests: a ref pinned to an immutable revision, with its files, sizes and digests.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{ArtifactRef, Error, Result};

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
    /// The immutable revision: a commit, a release's tag and id, a digest.
    pub revision: String,
    /// The files, each path once.
    pub files: Vec<ManifestFile>,
    /// The licence, in the source's words, where it tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// Whether its owner grants access to those who ask, where the source tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gated: Option<bool>,
}

/// A manifest as data from anywhere, before its names were looked at.
#[derive(Deserialize)]
struct Unchecked {
    reference: ArtifactRef,
    want: Want,
    revision: String,
    files: Vec<ManifestFile>,
    license: Option<String>,
    gated: Option<bool>,
}

impl TryFrom<Unchecked> for Manifest {
    type Error = Error;

    fn try_from(m: Unchecked) -> Result<Self> {
        let mut manifest = Self::new(m.reference, m.want, m.revision, m.files)?;
        (manifest.license, manifest.gated) = (m.license, m.gated);
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
        let manifest = Self { reference, want, revision: revision.into(), files, license: None, gated: None };
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// A digest of a file's bytes. As text: `sha256:<64 hex>` or `git-sha1:<40 hex>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum Digest {
    /// SHA-256 of the bytes.
    Sha256([u8; 32]),
    /// git's blob id: SHA-1 of `"blob " + length + "\0" + bytes`.
    GitSha1([u8; 20]),
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, bytes): (_, &[u8]) = match self {
            Self::Sha256(b) => ("sha256", b),
            Self::GitSha1(b) => ("git-sha1", b),
        };
        write!(f, "{name}:")?;
        bytes.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
            let mut out = [0; N];
            if text.len() != 2 * N || !text.is_ascii() {
                return None;
            }
            for (i, byte) in out.iter_mut().enumerate() {
                *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
            }
            Some(out)
        }
        match text.split_once(':') {
            Some(("sha256", rest)) => hex(rest).map(Self::Sha256),
            Some(("git-sha1", rest)) => hex(rest).map(Self::GitSha1),
            _ => None,
        }
        .ok_or_else(|| {
            Error::invalid_spec(
                format!("digest `{text}`"),
                "expected `sha256:` and 64 hex digits, or `git-sha1:` and 40",
            )
        })
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
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

    #[test]
    fn digest_text_round_trips() {
        for text in [format!("sha256:{}", "0f".repeat(32)), format!("git-sha1:{}", "a9".repeat(20))] {
            assert_eq!(text.parse::<Digest>().unwrap().to_string(), text);
        }
        for text in ["sha256:00", "md5:00", "", &format!("sha256:{}", "zz".repeat(32))] {
            assert!(text.parse::<Digest>().is_err());
        }
    }
}
