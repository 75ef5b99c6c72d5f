//! Fetching without loading.

use std::sync::Arc;

use llm_local_core::{
    ArtifactRef, Error, FetchContext, LockedArtifact, ModelSpec, ProgressHandler, Result, SpecLock, Want,
};
use llm_local_source_common::{
    progress::{DownloadStream, download_stream},
    transfer::Files,
};

use super::{Asked, Engine, Inner, Pin, could_not_ask, fitting::Purpose};

impl Engine {
    /// Makes every file of `spec` present and verified, once a backend has said by the headers of the base that it can run
    /// it; then checks the adapters against the base. Loads nothing. What an earlier call left unfinished is resumed.
    /// Dropping the future stops the transfer, and keeps what came for the next call.
    ///
    /// # Errors
    /// What [`Engine::load`] would say up to the point where weights are read.
    pub async fn download(&self, spec: &ModelSpec, progress: Option<Arc<dyn ProgressHandler>>) -> Result<()> {
        self.inner.download(spec, self.context(progress)).await
    }

    /// [`Engine::download`] as a stream of its progress: the first value is what is present, none is lower than one
    /// before, the last item is 1.0 or the error. Dropping the stream stops the transfer.
    pub fn download_with_progress(&self, spec: &ModelSpec) -> DownloadStream {
        let (engine, spec) = (self.clone(), spec.clone());
        download_stream(|progress| async move { engine.download(&spec, Some(progress)).await })
    }

    /// Makes every file of one artifact present and verified, whether or not anything can run it.
    ///
    /// # Errors
    /// [`llm_local_core::Error::NotRegistered`]; what its source says of the ref; those of the transfer. Those of an
    /// adapter come as [`llm_local_core::Error::AdapterMergeFailed`].
    pub async fn download_artifact(
        &self,
        reference: &ArtifactRef,
        want: Want,
        progress: Option<Arc<dyn ProgressHandler>>,
    ) -> Result<()> {
        let result = self.inner.download_artifact(reference, want, self.context(progress)).await;
        if want == Want::Adapter { result.map_err(|e| e.into_adapter(reference)) } else { result }
    }

    /// Makes every file of what is in `lock` present, as it was locked, whether or not anything can run it: a lock does not
    /// say how its adapters are to be read.
    ///
    /// # Errors
    /// [`llm_local_core::Error::InvalidSpec`] for a lock of nothing; [`llm_local_core::Error::IntegrityFailed`] that names
    /// the file that is another now; what the sources say, and those of the transfer. Those of an adapter come as
    /// [`llm_local_core::Error::AdapterMergeFailed`].
    pub async fn download_locked(&self, lock: &SpecLock, progress: Option<Arc<dyn ProgressHandler>>) -> Result<()> {
        self.inner.download_locked(lock, self.context(progress)).await
    }

    /// What a call may do, and who hears of it.
    pub(crate) fn context(&self, progress: Option<Arc<dyn ProgressHandler>>) -> FetchContext {
        // What is wrong with a plugin's format shows where it is used.
        let has_formats = self.inner.registry.adapter_formats().is_ok_and(|formats| !formats.is_empty());
        let cx = FetchContext::new().with_offline(self.inner.offline).with_any_adapter(has_formats);
        match progress {
            Some(progress) => cx.with_progress(progress),
            None => cx,
        }
    }
}

impl Inner {
    async fn download(&self, spec: &ModelSpec, cx: FetchContext) -> Result<()> {
        let _cancel_on_drop = cx.cancel.clone().drop_guard();
        self.prepare(spec, &cx, Purpose::Files).await.map(drop)
    }

    async fn download_locked(&self, lock: &SpecLock, cx: FetchContext) -> Result<()> {
        let _cancel_on_drop = cx.cancel.clone().drop_guard();
        let Some(first) = lock.artifacts.first() else {
            return Err(Error::invalid_spec("lock", "it has no artifacts; lock the spec anew"));
        };
        let cx = cx.with_any_adapter(true);
        let mut pins = Vec::new();
        for artifact in &lock.artifacts {
            let (reference, want) = (&artifact.reference, artifact.want);
            let pinned = self.pin_artifact(reference, want, Some(artifact), &cx).await;
            pins.push(if want == Want::Adapter { pinned.map_err(|e| e.into_adapter(reference))? } else { pinned? });
        }
        let jobs: Vec<_> = pins.iter().map(Pin::job).collect();
        let _holds = self.hold(&pins).await?;
        let files: Vec<_> = self.fetch_allowed(&jobs, &cx).await?.into_iter().map(Some).collect();
        let spec = ModelSpec::new(first.reference.clone()).with_lock(lock.clone());
        self.check_locked(&spec, &jobs, &files).await.map(drop)
    }

    /// What `reference` means, or what it meant when it was locked.
    async fn pin_artifact(
        &self,
        reference: &ArtifactRef,
        want: Want,
        lock: Option<&LockedArtifact>,
        cx: &FetchContext,
    ) -> Result<Pin> {
        let mut asked = Asked::default();
        if want == Want::Adapter {
            return self.pin(self.registry.adapter_source(reference)?, reference, want, lock, &mut asked, cx).await;
        }
        self.pin(self.registry.model_source(reference)?, reference, want, lock, &mut asked, cx).await
    }

    async fn download_artifact(&self, reference: &ArtifactRef, want: Want, cx: FetchContext) -> Result<()> {
        let _cancel_on_drop = cx.cancel.clone().drop_guard();
        let (pin, otherwise) = match self.pin_artifact(reference, want, None, &cx).await {
            // It may be an adapter that can only be read by what a spec says of it.
            Err(error) if want == Want::Adapter && !could_not_ask(&error) => {
                let any = cx.clone().with_any_adapter(true);
                match self.pin_artifact(reference, want, None, &any).await {
                    Ok(pin) => (pin, Some(error)),
                    Err(_) => return Err(error),
                }
            }
            pinned => (pinned?, None),
        };
        let files = self.fetch(&pin, &cx).await?;
        // What is no adapter that can be used must not become the one that is.
        if want == Want::Model || self.check_adapter(reference, files).await.is_ok() {
            self.note_selected(&pin).await;
            return Ok(());
        }
        otherwise.map_or(Ok(()), Err)
    }

    /// Makes the files of one artifact present, as far as the policy allows what was in archives.
    pub(crate) async fn fetch(&self, pin: &Pin, cx: &FetchContext) -> Result<Files> {
        let _holds = self.hold([pin]).await?;
        let mut files = self.fetch_allowed(&[pin.job()], cx).await?;
        Ok(files.pop().unwrap_or_default())
    }
}
