//! Specs locked to bytes.

use std::path::PathBuf;

use llm_local_core::{Error, FetchContext, LockedArtifact, ModelSpec, Result, SpecLock, Want};
use llm_local_source_common::transfer::{Files, Job};

use super::{Engine, Inner, Pin};
use crate::{
    blocking::{blocking, blocking_while_wanted},
    content,
};

impl Engine {
    /// What `spec` means now, to the byte: its base, the tokenizer of it, and its adapters, each with the immutable revision
    /// and the digest of every file. [`ModelSpec::with_lock`] holds a spec to it, and [`crate::lock`] makes a file of it.
    ///
    /// Files whose source tells no digest are fetched, if they are not here, and read.
    ///
    /// # Errors
    /// Those of resolving, as [`Engine::plan`] has them, and of the transfer; [`Error::Io`].
    pub async fn lock(&self, spec: &ModelSpec) -> Result<SpecLock> {
        let cx = self.context(None);
        let _cancel_on_drop = cx.cancel.clone().drop_guard();
        let mut artifacts = Vec::new();
        for pin in self.inner.resolve(spec, &cx).await?.pins() {
            let (locked, reference) = (self.inner.locked(pin, &cx).await, &pin.reference);
            let is_base = artifacts.is_empty();
            artifacts.push(if is_base { locked? } else { locked.map_err(|e| e.into_adapter(reference))? });
        }
        Ok(SpecLock::new(artifacts))
    }
}

impl Inner {
    async fn locked(&self, pin: &Pin, cx: &FetchContext) -> Result<LockedArtifact> {
        let mut manifest = pin.manifest.clone();
        if manifest.files.iter().any(|file| file.digest.is_none()) {
            let files = self.fetch(pin, cx).await?;
            // An archive is gone once it is unpacked; the store remembers what it was.
            let (store, of) = (self.transfer.store().clone(), pin.manifest.clone());
            let known = blocking("store", move || store.digests(&of)).await?;
            for file in manifest.files.iter_mut().filter(|file| file.digest.is_none()) {
                file.digest = match (known.get(&file.path), files.get(&file.path)) {
                    (Some(digest), _) => Some(*digest),
                    (None, Some(path)) => Some(hash(path.clone()).await?.1),
                    (None, None) => None,
                };
            }
        }
        manifest.reference = pin.reference.clone();
        LockedArtifact::new(&manifest)
    }

    /// Holds files of this machine, which no transfer verifies, to what `spec` was locked to.
    pub(super) async fn check_locked(&self, spec: &ModelSpec, jobs: &[Job], fetched: &[Files]) -> Result<()> {
        if spec.lock.is_none() {
            return Ok(());
        }
        for (job, files) in jobs.iter().zip(fetched).filter(|(job, _)| job.manifest.reference.is_file()) {
            for file in &job.manifest.files {
                let (Some(expected), Some(path)) = (file.digest, files.get(&file.path)) else { continue };
                let (_, found) = hash(path.clone()).await?;
                if found != expected {
                    let error = Error::IntegrityFailed {
                        what: path.display().to_string(),
                        expected: format!("{expected}, as it was locked"),
                        found: found.to_string(),
                    };
                    let is_adapter = job.manifest.want == Want::Adapter;
                    return Err(if is_adapter { error.into_adapter(&job.manifest.reference) } else { error });
                }
            }
        }
        Ok(())
    }
}

async fn hash(path: PathBuf) -> Result<(u64, llm_local_core::Digest)> {
    blocking_while_wanted("digest", move |wanted| content::hash(&path, wanted)).await
}
