//! What the parts of one call share.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use llm_local_core::{ArtifactSource, Digest, Error, FetchContext, Manifest, ManifestFile, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{Job, TransferConfig, config::Check, flush::Flush};
use crate::{
    disk::Folders,
    network::Network,
    progress::FileMeter,
    store::{Differs, Store, Trusted},
};

/// What all files of a call share.
pub(super) struct Call {
    pub(super) network: Network,
    pub(super) root: PathBuf,
    pub(super) store: Store,
    pub(super) config: TransferConfig,
    pub(super) check: Option<Check>,
    pub(super) jobs: Vec<Job>,
    pub(super) connections: Arc<Semaphore>,
    pub(super) folders: Folders,
}

/// One file of a call.
pub(super) struct FileContext {
    pub(super) call: Arc<Call>,
    pub(super) job: usize,
    pub(super) index: usize,
    /// The file and its ref, for messages.
    pub(super) what: String,
    pub(super) meter: Option<FileMeter>,
    /// For the source; its token is [`FileContext::stop`].
    pub(super) cx: FetchContext,
    /// What is told of bytes that were written, from when there is a file that they are written to.
    pub(super) flush: OnceLock<Flush>,
}

impl FileContext {
    pub(super) fn new(call: &Arc<Call>, job: usize, index: usize, meter: Option<FileMeter>, cx: FetchContext) -> Self {
        let manifest = &call.jobs[job].manifest;
        let what = format!("{} of {}", manifest.files[index].path, manifest.reference);
        Self { call: call.clone(), job, index, what, meter, cx, flush: OnceLock::new() }
    }

    pub(super) fn network(&self) -> &Network {
        &self.call.network
    }

    pub(super) fn source(&self) -> &dyn ArtifactSource {
        &*self.call.jobs[self.job].source
    }

    pub(super) fn manifest(&self) -> &Manifest {
        &self.call.jobs[self.job].manifest
    }

    pub(super) fn entry(&self) -> &ManifestFile {
        &self.manifest().files[self.index]
    }

    /// Cancelled when the call is to end: the caller wants it, or another file failed.
    pub(super) fn stop(&self) -> &CancellationToken {
        &self.cx.cancel
    }

    /// What `future` gives, unless the call is to end first.
    pub(super) async fn unless_stopped<T>(&self, future: impl Future<Output = T>) -> Result<T> {
        self.stop().run_until_cancelled(future).await.ok_or(Error::Cancelled)
    }

    /// The right to one connection.
    pub(super) async fn connection(&self) -> Result<OwnedSemaphorePermit> {
        // Nobody closes the semaphore.
        let permit = self.unless_stopped(self.call.connections.clone().acquire_owned()).await?;
        permit.map_err(|_| Error::Cancelled)
    }

    pub(super) fn wrong_size(&self, found: String) -> Error {
        Error::IntegrityFailed { what: self.what.clone(), expected: format!("{} bytes", self.entry().size), found }
    }

    /// `n` more bytes are here.
    pub(super) fn count(&self, n: u64) {
        if let Some(flush) = self.flush.get() {
            flush.written(n);
        }
        if let Some(meter) = &self.meter {
            meter.add(n);
        }
    }

    /// `n` bytes are here.
    pub(super) fn recount(&self, n: u64) {
        if let Some(meter) = &self.meter {
            meter.reset_to(n);
        }
    }
}

/// Refuses bytes with the digest `found`, of the kind that `trusted` has, if they are not those that were fetched first.
pub(super) fn untrusted(store: &Store, manifest: &Manifest, trusted: Option<&Trusted>, found: Digest) -> Result<()> {
    match trusted {
        Some(trusted) if trusted.digest != found => Err(store.replaced(manifest, trusted, &Differs::Digest(found))),
        _ => Ok(()),
    }
}

/// Runs blocking work on a thread of its own; it goes on to its end even if nobody waits for it.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        Err(_) => Err(Error::Cancelled),
    }
}
