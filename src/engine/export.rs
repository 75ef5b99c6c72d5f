//! A model of a spec, written down.

use std::{path::Path, sync::Arc};

use llm_local_core::{AdapterPolicy, Error, FetchContext, ModelSpec, ProgressEvent, ProgressHandler, Result};
use llm_local_weights::is_gguf;

use super::{Engine, Inner, fitting::Purpose, judge::Weights, prepare::Prepared};
use crate::{
    blocking::blocking_until_ended,
    export::{self, Export, Exported, Watch},
    lora::MergedSource,
};

impl Engine {
    /// Writes the model of `spec`, its adapters merged in, into the new folder `into`: a Hugging Face folder that transformers
    /// loads, with config.json, safetensors in files of at most 5 GB, and those of tokenizer files, generation_config.json, chat
    /// template and Python files that the base's source lists; the built-in sources list only what is used here, so neither code
    /// nor a tokenizer that is not in one file. What is missing of these is in [`Exported::notes`]. Of the tensors one is in
    /// memory at a time.
    ///
    /// Adapters are always merged, whatever the spec's policy says: a folder holds no adapters. Floats are written in the
    /// type that the base has them in, unless the spec's [`dtype`](ModelSpec::with_dtype) asks for another; what adapters
    /// change is rounded to it once. The config says what the merge changes: the vocabulary's size, and that embedding and
    /// head are tied no more. Tokens that were added with an adapter are not added to the tokenizer, which is the base's.
    ///
    /// The folder gets its name at the end, in one step: nothing half written is left, also when the future is dropped, which
    /// ends the export and waits until its temporary files are gone.
    ///
    /// # Errors
    /// What [`Engine::load`] would say up to the point where weights are read; [`Error::Unsupported`] for a base in GGUF,
    /// one that is quantized otherwise, one without files, and a value of a tensor that adapters leave as it is that is infinite
    /// in the type that the spec asks for, but not in the base; [`Error::AdapterMergeFailed`] for a tensor that they change
    /// and that is not finite then in the type it is written in, be it because of them, of that type, or of the base;
    /// [`Error::LoadFailed`] for a base that changed while it was read; [`Error::Io`] for an `into` that is there and not an
    /// empty folder, or is no name of a folder, or where a file system is mounted, before anything is fetched, and for what
    /// cannot be written; [`Error::InsufficientStorage`] if the disk has no room for all tensors.
    pub async fn export(&self, spec: &ModelSpec, into: &Path) -> Result<Exported> {
        self.export_with_progress(spec, into, None).await
    }

    /// As [`Engine::export`]; `progress` hears of what is fetched, and with [`ProgressEvent::Loading`] of the tensors that are
    /// written.
    ///
    /// # Errors
    /// As [`Engine::export`].
    pub async fn export_with_progress(
        &self,
        spec: &ModelSpec,
        into: &Path,
        progress: Option<Arc<dyn ProgressHandler>>,
    ) -> Result<Exported> {
        export::check_free(into)?;
        self.inner.export(spec, into, &self.context(progress)).await
    }
}

impl Inner {
    async fn export(&self, spec: &ModelSpec, into: &Path, cx: &FetchContext) -> Result<Exported> {
        let _cancel_on_drop = cx.cancel.clone().drop_guard();
        let spec = spec.clone().with_adapter_policy(AdapterPolicy::MergeDequantized);
        if !spec.base.is_file() {
            // So that gigabytes are not fetched for nothing.
            let files = self.resolve(&spec, cx).await?.base.manifest.files;
            if files.iter().any(|file| is_gguf(&file.path)) {
                return Err(export::of_gguf(&spec.id()));
            }
        }
        let Prepared { weights, identity, adapters, allow, holds, proven, .. } =
            self.prepare(&spec, cx, Purpose::Files).await?;
        let Weights { info, tensors, text } = weights;
        let (into, dtype, progress) = (into.to_owned(), spec.dtype, cx.progress.clone());
        let written = blocking_until_ended("export", move |wanted| {
            export::check(&info)?;
            let Some(base) = tensors else {
                return Err(Error::unsupported(
                    format!("the export of {}", info.id),
                    "it has no weights on this machine",
                ));
            };
            let told = |done, total| {
                if let Some(progress) = &progress {
                    progress.on_progress(&ProgressEvent::loading(done, total));
                }
            };
            // Without a lock there is nothing in `proven`.
            let unchanged = || proven.check_unchanged().and_then(|()| identity.check_unchanged());
            let watch = Watch { wanted, told: &told, last: &unchanged };
            if adapters.is_empty() {
                let model = Export { info: &info, tensors: &*base, text: &text, dtype, merged_tensors: 0 };
                return export::write(&model, &into, &watch);
            }
            let merged = MergedSource::allowing(base, adapters, &allow, &info)?;
            let (info, merged_tensors) = (merged.info().clone(), merged.report().touched.len());
            let model = Export { info: &info, tensors: &merged, text: &text, dtype, merged_tensors };
            export::write(&model, &into, &watch)
        });
        let exported = written.await;
        drop(holds);
        exported
    }
}
