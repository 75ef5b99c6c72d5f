//! What a model or an adapter is, before its weights are here: its config and the heads of its weights, which are kilobytes.

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use llm_local_core::{
    ArtifactRef, Error, FetchContext, LoraAdapter, ManifestFile, ModelInfo, ModelSpec, Resolution, Result,
};
use llm_local_source_common::transfer::{Files, Job};
use llm_local_weights::{Head, LARGEST_CONFIG, Outline, ShardIndex};

use super::Inner;
use crate::{
    blocking::blocking,
    lora::{self, AdapterOutline, ReadOptions},
};

impl Inner {
    /// The description of the base in `job`, by the least of it: its config, then the list of its shards, then the heads of
    /// all of them. `None` if nothing can be told before the files are here: offline, of an archive, and of a model without
    /// files, which an engine elsewhere runs.
    ///
    /// # Errors
    /// As [`Inner::refuse_by_config`], before anything else is asked for; those of the transfer; those of a checkpoint that
    /// is broken or incomplete, with file and ref. Of several, the first by the file's name.
    pub(super) async fn peek_model(
        &self,
        spec: &ModelSpec,
        resolution: &Resolution,
        job: &Job,
        cx: &FetchContext,
    ) -> Result<Option<Arc<ModelInfo>>> {
        self.peek_info(&spec.id(), job, cx, |info| self.refuse_by_config(spec, resolution, info)).await
    }

    /// As [`Inner::peek_model`], of a base called `id` that `refuse` may refuse by its config.
    pub(crate) async fn peek_info(
        &self,
        id: &str,
        job: &Job,
        cx: &FetchContext,
        refuse: impl Fn(&ModelInfo) -> Result<()>,
    ) -> Result<Option<Arc<ModelInfo>>> {
        if !can_peek(job, cx) {
            return Ok(None);
        }
        let manifest = &job.manifest;
        let names = manifest.files.iter().map(|file| file.path.as_str());
        let outline = Arc::new(Outline::new(id, &manifest.reference, names));
        let mut by_config = None;
        if let Some(name) = outline.config_file()? {
            let info = outline.by_config(&self.text(job, name, LARGEST_CONFIG, cx).await?)?;
            refuse(&info)?;
            by_config = Some(info);
        }
        let index = match outline.index_file() {
            Some(name) => Some(self.text(job, name, ShardIndex::LARGEST, cx).await?),
            None => None,
        };
        let known = outline.clone();
        let weights = blocking("checkpoint", move || known.weights(index.as_deref())).await?;
        let heads: Vec<_> = weights.names().map(|name| self.head(job, name, cx)).collect();
        let heads: Vec<_> = stream::iter(heads).buffered(self.heads_at_once).try_collect().await?;
        let describe = move || outline.describe(by_config, &weights, &heads);
        blocking("checkpoint", describe).await.map(|info| Some(Arc::new(info)))
    }

    /// The adapter in `job` without its values, by its config, what is said of it and the head of its weights. `None` if
    /// nothing can be told before the files are here: offline, of an archive, and of what may be of a plugin's format, which
    /// tells by content.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] as [`lora::read`], as far as they tell, and around those of the transfer.
    pub(super) async fn peek_adapter(
        &self,
        job: &Job,
        options: &ReadOptions,
        cx: &FetchContext,
    ) -> Result<Option<AdapterOutline>> {
        if !can_peek(job, cx) {
            return Ok(None);
        }
        let reference = &job.manifest.reference;
        let outlined = async {
            let config = match job.manifest.file(lora::CONFIG) {
                Some(_) => Some(self.text(job, lora::CONFIG, LARGEST_CONFIG, cx).await?),
                None => None,
            };
            let names = job.manifest.files.iter().map(|file| file.path.as_str());
            let others = !self.registry.adapter_formats()?.is_empty();
            let declared = match others {
                true => lora::declare_if_builtin(reference, names, config.as_deref(), options)?,
                false => Some(lora::declare(reference, names, config.as_deref(), options)?),
            };
            let Some(declared) = declared else { return Ok(None) };
            let head = self.head(job, declared.weights(), cx).await;
            if others && !declared.is_recognized_by(&head) {
                return Ok(None);
            }
            declared.outline_by_head(&head?).map(Some)
        };
        outlined.await.map_err(|e| e.into_adapter(reference))
    }

    /// The adapter in `files`, which are here, with what is said of it: of a built-in format, or of a plugin's.
    ///
    /// # Errors
    /// As [`lora::read_with`], and around what the maker of a format said.
    pub(crate) async fn read_adapter(
        &self,
        reference: &ArtifactRef,
        files: Files,
        options: ReadOptions,
    ) -> Result<LoraAdapter> {
        let formats = self.registry.adapter_formats().map_err(|e| e.into_adapter(reference))?;
        let reference = reference.clone();
        blocking("adapters", move || lora::read_with(&reference, &files, options, &formats)).await
    }

    /// Checks that `files` are an adapter that can be read, with whatever a spec may say of it.
    ///
    /// # Errors
    /// As [`Inner::read_adapter`].
    pub(crate) async fn check_adapter(&self, reference: &ArtifactRef, files: Files) -> Result<()> {
        let formats = self.registry.adapter_formats().map_err(|e| e.into_adapter(reference))?;
        let reference = reference.clone();
        blocking("adapters", move || lora::check_readable(&reference, &files, &formats)).await
    }

    /// The file `name`, which is a text of at most `most` bytes.
    pub(crate) async fn text(&self, job: &Job, name: &str, most: u64, cx: &FetchContext) -> Result<Vec<u8>> {
        let size = listed(job, name)?.size;
        if size > most {
            let what = format!("{name} of {}", job.manifest.reference);
            return Err(Error::load(
                what,
                format!("it has {size} bytes, too many for its kind; at most {most} are read"),
            ));
        }
        Ok(self.transfer.read(job, name, 0..size, cx).await?.into())
    }

    /// The start of the weights file `name`, with its whole header.
    pub(crate) async fn head(&self, job: &Job, name: &str, cx: &FetchContext) -> Result<Head> {
        let mut head = Head::new(name, &job.manifest.reference, listed(job, name)?.size);
        while let Some(range) = head.wanted()? {
            head.extend(&self.transfer.read(job, name, range, cx).await?);
        }
        Ok(head)
    }
}

/// Whether files can be looked into before they are fetched: an engine that is offline asks no source for bytes, and what
/// comes of an archive is known once it is unpacked.
fn can_peek(job: &Job, cx: &FetchContext) -> bool {
    !cx.offline && !job.manifest.files.is_empty() && job.manifest.unpack.is_empty()
}

fn listed<'a>(job: &'a Job, name: &str) -> Result<&'a ManifestFile> {
    let missing =
        || Error::not_found(format!("{name} of {}", job.manifest.reference), "its manifest lists no such file");
    job.manifest.file(name).ok_or_else(missing)
}
