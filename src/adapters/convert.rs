//! An adapter in another format.

use std::{path::Path, sync::Arc};

use llm_local_core::{AdapterSpec, ArtifactRef, Error, FetchContext, ModelInfo, ProgressHandler, Result, Want};
use llm_local_weights::Checkpoint;

use super::Adapters;
use crate::{
    blocking::{blocking, blocking_until_ended},
    engine::Asked,
    lora::{self, ReadOptions, WriteFormat, WrittenAdapter},
};

impl Adapters {
    /// Writes `adapter` in `format` into the new folder `into`, or as [`WriteFormat::Gguf`] into
    /// a file that ends in `.gguf`; whichever format it is in. What is written adds the same to its base, as
    /// [`lora::write`] has it. The adapter is fetched if it is not here; of `base`, the model that it is for, headers alone
    /// are read. Dropping the future before all is written leaves nothing at or beside `into` but the folders above it: it ends
    /// the writing behind the step at hand (a tensor, or bringing a file to the disk), and waits until temporary files are gone.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] around what the sources say and those of the transfer, and that names what `format`
    /// cannot express, or that it needs `base`; [`Error::Io`] for what cannot be written, and for an `into` that is there
    /// and not an empty folder.
    pub async fn convert(
        &self,
        adapter: &AdapterSpec,
        format: WriteFormat,
        base: Option<&ArtifactRef>,
        into: &Path,
        progress: Option<Arc<dyn ProgressHandler>>,
    ) -> Result<WrittenAdapter> {
        let cx = self.engine.context(progress);
        let _cancel_on_drop = cx.cancel.clone().drop_guard();
        let (inner, reference) = (&self.engine.inner, &adapter.reference);
        let reading = async {
            let (asked, options) = (&mut Asked::default(), ReadOptions::from(adapter));
            let (source, asking) = (self.source(reference)?, options.context(&cx));
            let pin = inner.pin(source, reference, Want::Adapter, None, asked, &asking).await?;
            inner.read_adapter(reference, inner.fetch(&pin, &cx).await?, options).await
        };
        let adapter = reading.await.map_err(|e| e.into_adapter(reference))?;
        let base = match base {
            Some(base) => {
                let described = self.describe(base, &cx).await;
                Some(described.map_err(|e| Error::into_adapter(e, reference))?)
            }
            None => None,
        };
        let into = into.to_owned();
        blocking_until_ended("convert", move |wanted| {
            lora::write_while_wanted(&adapter, format, base.as_deref(), &into, wanted)
        })
        .await
    }

    /// The model that `reference` means, by its headers. It is fetched only where these cannot be asked for.
    async fn describe(&self, reference: &ArtifactRef, cx: &FetchContext) -> Result<Arc<ModelInfo>> {
        let inner = &self.engine.inner;
        let source = inner.registry.model_source(reference)?;
        let pin = inner.pin(source, reference, Want::Model, None, &mut Asked::default(), cx).await?;
        let (job, id) = (pin.job(), reference.to_string());
        let files = match inner.transfer.present(&job, cx).await? {
            Some(files) => files,
            None => match inner.peek_info(&id, &job, cx, |_| Ok(())).await? {
                Some(info) => return Ok(info),
                None => inner.fetch(&pin, cx).await?,
            },
        };
        blocking("checkpoint", move || Checkpoint::open(&id, &files).map(|checkpoint| checkpoint.info)).await
    }
}
