//! What tells a loaded model from others: its content, wherever it lies.

use std::{
    io::Read,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use llm_local_core::{AdapterSet, Digest, Error, LoraAdapter, Manifest, Result};
use sha2::{Digest as _, Sha256};

use crate::{blocking::blocking, fetch::Files};

/// Bytes that are read at once.
const CHUNK: usize = 1 << 18;

/// What a model is made of, by content: the same on every machine, in every folder, and from every source.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelDigest {
    /// Of the base: `sha256:` and the SHA-256 over a line per file, sorted by name, of name, size and the SHA-256 of its
    /// bytes. A base without files, run by an engine elsewhere, has `revision:` and that of its ref and revision.
    pub base: String,
    /// Of the adapters, as [`AdapterSet::digest`]: digest and weight of each in order; empty for the base alone.
    pub adapters: String,
}

/// What a [`ModelDigest`] is made from. Reading all weights takes about as long as loading them, so it is done when it
/// is first asked for.
pub(crate) struct Identity {
    model: String,
    /// What stands for a base without files.
    revision: String,
    files: Vec<IdentityFile>,
    adapters: String,
    base: Mutex<Option<String>>,
}

#[derive(Clone)]
struct IdentityFile {
    name: String,
    path: PathBuf,
    size: u64,
    /// When it was loaded: content read later must be what was loaded.
    modified: Option<SystemTime>,
    /// What its source says.
    digest: Option<Digest>,
}

impl Identity {
    /// The identity of the base `manifest`, whose files are at `files`, with `adapters`.
    pub(super) fn new(
        model: String,
        manifest: &Manifest,
        files: &Files,
        adapters: &[(Arc<LoraAdapter>, f32)],
    ) -> Result<Self> {
        let mut listed = Vec::new();
        for file in &manifest.files {
            let Some(path) = files.get(&file.path) else { continue };
            listed.push(IdentityFile {
                name: file.path.clone(),
                path: path.clone(),
                size: file.size,
                modified: modified(path)?,
                digest: file.digest,
            });
        }
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        let set = adapters.iter().fold(AdapterSet::new(), |set, (adapter, weight)| set.with(adapter.clone(), *weight));
        Ok(Self {
            model,
            revision: format!("{}\0{}", manifest.reference, manifest.revision),
            files: listed,
            adapters: set.digest(),
            base: Mutex::new(None),
        })
    }

    /// The digest; the first call reads every file whose SHA-256 its source did not say.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::LoadFailed`] if a file has changed since the model was loaded.
    pub(crate) async fn digest(&self) -> Result<ModelDigest> {
        let known = self.base.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let base = match known {
            Some(base) => base,
            None => {
                let base = self.read().await?;
                self.base.lock().unwrap_or_else(PoisonError::into_inner).insert(base).clone()
            }
        };
        Ok(ModelDigest { base, adapters: self.adapters.clone() })
    }

    async fn read(&self) -> Result<String> {
        if self.files.is_empty() {
            return Ok(format!("revision:{}", hex(Sha256::digest(&self.revision))));
        }
        let (files, model) = (self.files.clone(), self.model.clone());
        blocking("digest", move || {
            let mut all = Sha256::new();
            for file in &files {
                let digest = match file.digest {
                    Some(digest @ Digest::Sha256(_)) => digest,
                    _ => Digest::Sha256(file.hash(&model)?),
                };
                all.update(format!("{}\0{}\0{digest}\n", file.name, file.size));
            }
            Ok(format!("sha256:{}", hex(all.finalize())))
        })
        .await
    }
}

impl IdentityFile {
    fn hash(&self, model: &str) -> Result<[u8; 32]> {
        let failed = |e| Error::io("read", &self.path, e);
        let mut file = fs_err::File::open(&self.path).map_err(|e| Error::io("open", &self.path, e))?;
        let (mut sum, mut size, mut chunk) = (Sha256::new(), 0, vec![0; CHUNK]);
        loop {
            match file.read(&mut chunk).map_err(failed)? {
                0 => break,
                n => {
                    sum.update(&chunk[..n]);
                    size += n as u64;
                }
            }
        }
        if size != self.size || modified(&self.path)? != self.modified {
            let reason = format!(
                "{} has changed since the model was loaded, so what was loaded can no longer be told; unload it and load it again",
                self.path.display()
            );
            return Err(Error::load(model, reason));
        }
        Ok(sum.finalize().into())
    }
}

/// When the file at `path` was written; `None` on a system that does not keep that.
fn modified(path: &PathBuf) -> Result<Option<SystemTime>> {
    let meta = fs_err::metadata(path).map_err(|e| Error::io("read", path, e))?;
    Ok(meta.modified().ok())
}

/// Bytes as text.
pub(crate) fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use llm_local_core::{ManifestFile, Want};
    use pollster::block_on;

    /// A folder with two files, and its identity. `digests` are what the source says of them.
    fn folder(weights: &[u8], known: bool) -> (tempfile::TempDir, Identity) {
        let folder = tempfile::tempdir().unwrap();
        let (mut files, mut listed) = (Files::new(), Vec::new());
        for (name, bytes) in [("weights", weights), ("config", b"{}")] {
            std::fs::write(folder.path().join(name), bytes).unwrap();
            files.insert(name.into(), folder.path().join(name));
            let file = ManifestFile::new(name, bytes.len() as u64);
            let digest = Digest::Sha256(Sha256::digest(bytes).into());
            listed.push(if known { file.with_digest(digest) } else { file });
        }
        let reference = llm_local_core::ArtifactRef::file(folder.path()).unwrap();
        let manifest = Manifest::new(reference, Want::Model, folder.path().display().to_string(), listed).unwrap();
        let identity = Identity::new("m".into(), &manifest, &files, &[]).unwrap();
        (folder, identity)
    }

    #[test]
    fn the_digest_is_of_the_content_and_not_of_the_place_or_source() {
        let (_keep, one) = folder(b"abc", false);
        let (_moved, other) = folder(b"abc", true);
        let (_changed, changed) = folder(b"abd", false);
        let one = block_on(one.digest()).unwrap();
        assert_eq!(one, block_on(other.digest()).unwrap());
        assert_ne!(one, block_on(changed.digest()).unwrap());
        assert_eq!(one.base, EXPECTED);
        assert_eq!(one.adapters, "");
    }

    /// By coreutils: `printf 'config\x002\x00sha256:%s\nweights\x003\x00sha256:%s\n' $A $B | sha256sum`, with the sums of
    /// `{}` and `abc`.
    const EXPECTED: &str = "sha256:0d7226e56f7413482388c058eb59cb3e95fb2dade4b06bee6f471dbde5b83e83";

    #[test]
    fn a_file_that_changed_after_the_load_has_no_digest() {
        let (keep, identity) = folder(b"abc", false);
        std::fs::write(keep.path().join("weights"), b"abcd").unwrap();
        let error = block_on(identity.digest()).unwrap_err().to_string();
        assert!(error.contains("weights has changed since"), "{error}");
    }

    #[test]
    fn a_base_without_files_is_told_by_its_revision() {
        let reference: llm_local_core::ArtifactRef = "remote:x".parse().unwrap();
        let identity = |revision: &str| {
            let manifest = Manifest::new(reference.clone(), Want::Model, revision, vec![]).unwrap();
            let identity = Identity::new("m".into(), &manifest, &Files::new(), &[]).unwrap();
            block_on(identity.digest()).unwrap().base
        };
        assert!(identity("1").starts_with("revision:"));
        assert_ne!(identity("1"), identity("2"));
    }
}
