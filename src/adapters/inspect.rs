//! What an adapter is.

use llm_local_core::{AdapterSpec, ArtifactRef, Error, FetchContext, Result, TensorEntry, TensorSource, Want};
use llm_local_source_common::transfer::{Files, Job};
use llm_local_weights::{
    ADAPTER_WEIGHTS, GgufSource, LARGEST_CONFIG, SafetensorsSource, is_gguf, is_safetensors, parse_json_object,
    read_json_object,
};

use super::{
    AdapterFormat, AdapterReport, Adapters, Scaling,
    said::{Said, pairs},
};
use crate::{
    blocking::blocking,
    engine::{Asked, Pin},
    lora::{self, AdapterOutline, ReadOptions},
};

impl Adapters {
    /// What `adapter` is: format, base, rank, scaling, features, targets. One that is here is read;
    /// of one that is not, config and header alone are; an archive is fetched, and so is what may be of a plugin's format.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] around what the source says, those of the transfer, and for files that are no weights.
    /// One that is whole and cannot be used is reported ([`AdapterReport::unusable`]).
    pub async fn inspect(&self, adapter: &AdapterSpec) -> Result<AdapterReport> {
        let cx = self.engine.context(None);
        let _cancel_on_drop = cx.cancel.clone().drop_guard();
        self.report(adapter, &cx).await.map_err(|e| e.into_adapter(&adapter.reference))
    }

    async fn report(&self, adapter: &AdapterSpec, cx: &FetchContext) -> Result<AdapterReport> {
        let (inner, reference, options) = (&self.engine.inner, &adapter.reference, &ReadOptions::from(adapter));
        let asking = &options.context(cx);
        let pin =
            inner.pin(self.source(reference)?, reference, Want::Adapter, None, &mut Asked::default(), asking).await?;
        let job = pin.job();
        let is_archive = !pin.manifest.unpack.is_empty();
        let look = match inner.transfer.present(&job, cx).await? {
            Some(files) if !is_archive => Some(self.look_here(&pin, files, options).await?),
            None if !is_archive => self.look_elsewhere(&pin, &job, options, cx).await?,
            _ => None,
        };
        let look = match look {
            Some(look) => look,
            None => self.look_here(&pin, inner.fetch(&pin, cx).await?, options).await?,
        };
        Ok(look.report(reference, &pin))
    }

    /// Reads files that are here.
    async fn look_here(&self, pin: &Pin, files: Files, options: &ReadOptions) -> Result<Look> {
        let reference = &pin.reference;
        let read = self.engine.inner.read_adapter(reference, files.clone(), options.clone()).await;
        let outline = read.map(|adapter| AdapterOutline::from(&adapter));
        if let Ok(outline) = &outline
            && let AdapterFormat::Plugin(_) = AdapterFormat::named(&outline.format)
        {
            let (said, tensors) = (Said::by_outline(outline), outline.tensors());
            return Ok(Look { said, entries: Vec::new(), tensors, outline: Ok(outline.clone()) });
        }
        let Ok(weights) = weights(reference, files.keys().map(String::as_str)).map(str::to_owned) else {
            // What it is not, its reader has said.
            return Err(outline.err().unwrap_or_else(|| Error::adapter(reference, "it changed while it was read")));
        };
        blocking("adapters", move || {
            let path = &files[&weights];
            if is_gguf(&weights) {
                let source = GgufSource::open(path)?;
                return Ok(Look::new(Said::by_gguf(source.metadata()), source.entries().to_vec(), outline));
            }
            let config = files.get(lora::CONFIG).map(|path| read_json_object(path)).transpose()?;
            let said = config.as_ref().map_or_else(Said::nothing, |(config, _)| Said::by_config(config));
            Ok(Look::new(said, SafetensorsSource::open(path)?.entries().to_vec(), outline))
        })
        .await
    }

    /// Looks at what config and headers of files say that are elsewhere. `None` for what may be of a plugin's format.
    async fn look_elsewhere(
        &self,
        pin: &Pin,
        job: &Job,
        options: &ReadOptions,
        cx: &FetchContext,
    ) -> Result<Option<Look>> {
        let (inner, reference) = (&self.engine.inner, &pin.reference);
        let names = || job.manifest.files.iter().map(|file| file.path.as_str());
        let config = match job.manifest.file(lora::CONFIG) {
            Some(_) => Some(inner.text(job, lora::CONFIG, LARGEST_CONFIG, cx).await?),
            None => None,
        };
        let others = !inner.registry.adapter_formats()?.is_empty();
        if others && matches!(lora::declare_if_builtin(reference, names(), config.as_deref(), options), Ok(None)) {
            return Ok(None);
        }
        let declared = lora::declare(reference, names(), config.as_deref(), options);
        let weights = match &declared {
            Ok(declared) => declared.weights(),
            Err(_) => weights(reference, names())?,
        };
        let head = inner.head(job, weights, cx).await;
        if others && declared.as_ref().is_ok_and(|declared| !declared.is_recognized_by(&head)) {
            return Ok(None);
        }
        let head = head?;
        let shown = format!("{} of {reference}", lora::CONFIG);
        let said = match (head.gguf_metadata()?, &config) {
            (Some(metadata), _) => Said::by_gguf(&metadata),
            (None, Some(config)) => Said::by_config(&parse_json_object(config, &shown)?),
            (None, None) => Said::nothing(),
        };
        let outline = declared.and_then(|declared| declared.outline_by_head(&head));
        Ok(Some(Look::new(said, head.entries()?, outline)))
    }
}

/// What was seen.
struct Look {
    said: Said,
    entries: Vec<TensorEntry>,
    tensors: usize,
    /// The adapter as its reader has it, or why it has none.
    outline: Result<AdapterOutline>,
}

impl Look {
    fn new(said: Said, entries: Vec<TensorEntry>, outline: Result<AdapterOutline>) -> Self {
        Self { said, tensors: entries.len(), entries, outline }
    }

    fn report(self, reference: &ArtifactRef, pin: &Pin) -> AdapterReport {
        let Self { said, entries, tensors, outline } = self;
        let mut report = AdapterReport {
            reference: reference.clone(),
            revision: pin.manifest.revision.clone(),
            version: pin.manifest.version.clone(),
            format: said.format,
            base: said.base,
            ranks: Vec::new(),
            alpha: said.alpha,
            scaling: said.scaling,
            scales: Vec::new(),
            features: Vec::new(),
            targets: said.targets,
            modules: 0,
            tensors,
            bytes: pin.manifest.total_bytes(),
            notes: Vec::new(),
            unusable: None,
        };
        match outline {
            Ok(outline) => {
                (report.ranks, report.modules, report.scales) = (outline.ranks(), outline.modules(), outline.scales());
                (report.base, report.features, report.notes) = (outline.base, outline.features, outline.notes);
                report.notes.extend(outline.unknown_fields);
                report.format = AdapterFormat::named(&outline.format);
                // What the files do not say, the caller has said.
                if let (Scaling::Unknown, [scale]) = (report.scaling, &report.scales[..]) {
                    report.scaling = Scaling::Stored(*scale);
                }
            }
            Err(error) => {
                let (ranks, modules) = pairs(&report.format, &entries);
                (report.ranks, report.modules) = (ranks.into_iter().collect(), modules);
                report.unusable = Some(reason(error));
            }
        }
        report
    }
}

/// The one file that has its tensors.
fn weights<'a>(reference: &ArtifactRef, names: impl Iterator<Item = &'a str>) -> Result<&'a str> {
    let names: Vec<_> = names.collect();
    if let Some(known) = names.iter().find(|name| ADAPTER_WEIGHTS.contains(name)) {
        return Ok(known);
    }
    let mut weights = names.iter().filter(|name| is_gguf(name) || is_safetensors(name));
    match (weights.next(), weights.next()) {
        (Some(one), None) => Ok(one),
        (first, _) => {
            let found = if first.is_some() { "several" } else { "none" };
            let reason =
                format!("expected one file of weights, .safetensors or .gguf; found {found}: {}", names.join(", "));
            Err(Error::adapter(reference, reason))
        }
    }
}

/// Why it cannot be used, without the ref, which the report has.
fn reason(error: Error) -> String {
    match error {
        Error::AdapterMergeFailed { reason, .. } => reason,
        other => other.to_string(),
    }
}
