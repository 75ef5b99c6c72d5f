//! What an adapter is.

use llm_local_core::{ArtifactRef, Error, FetchContext, Result, TensorEntry, TensorSource, Want};
use llm_local_source_common::transfer::{Files, Job};
use llm_local_weights::{
    ADAPTER_WEIGHTS, GgufSource, LARGEST_CONFIG, SafetensorsSource, is_gguf, is_safetensors, parse_json_object,
    read_json_object,
};

use super::{
    AdapterReport, Adapters,
    report::{Said, pairs},
};
use crate::{
    blocking::blocking,
    engine::{Asked, Pin},
    lora::{self, AdapterOutline},
};

impl Adapters {
    /// What the adapter is that `reference` means: format, base, rank, scaling, targets. Of one that is not here config and
    /// headers alone are read; an archive, or a GGUF file, is fetched.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] around what the source says, those of the transfer, and for files that are no weights.
    /// One that is whole and cannot be used is reported ([`AdapterReport::unusable`]).
    pub async fn inspect(&self, reference: &ArtifactRef) -> Result<AdapterReport> {
        let cx = self.engine.context(None);
        let _cancel_on_drop = cx.cancel.clone().drop_guard();
        self.report(reference, &cx).await.map_err(|e| e.into_adapter(reference))
    }

    async fn report(&self, reference: &ArtifactRef, cx: &FetchContext) -> Result<AdapterReport> {
        let inner = &self.engine.inner;
        let pin = inner.pin(self.source(reference)?, reference, Want::Adapter, None, &mut Asked::default(), cx).await?;
        let job = pin.job();
        let here = inner.transfer.present(&job, cx).await?;
        let gguf = job.manifest.files.iter().any(|file| is_gguf(&file.path));
        let is_archive = !pin.manifest.unpack.is_empty();
        let look = match here {
            Some(files) if !is_archive => self.look_here(&pin, files).await?,
            None if !gguf && !is_archive => self.look_elsewhere(&pin, &job, cx).await?,
            _ => self.look_here(&pin, inner.fetch(&pin, cx).await?).await?,
        };
        let Look { said, entries, unusable } = look;
        let (ranks, modules) = pairs(said.format, &entries);
        Ok(AdapterReport {
            reference: reference.clone(),
            revision: pin.manifest.revision.clone(),
            version: pin.manifest.version.clone(),
            format: said.format,
            base: said.base,
            ranks: ranks.into_iter().collect(),
            alpha: said.alpha,
            scaling: said.scaling,
            targets: said.targets,
            modules,
            tensors: entries.len(),
            bytes: pin.manifest.total_bytes(),
            unusable,
        })
    }

    /// Looks into files that are here.
    async fn look_here(&self, pin: &Pin, files: Files) -> Result<Look> {
        let reference = pin.reference.clone();
        blocking("adapters", move || {
            let weights = weights(&reference, files.keys().map(String::as_str))?;
            let path = &files[weights];
            if is_gguf(weights) {
                let source = GgufSource::open(path)?;
                let unusable = lora::read(&reference, &files).err().map(reason);
                return Ok(Look {
                    said: Said::by_gguf(source.metadata()),
                    entries: source.entries().to_vec(),
                    unusable,
                });
            }
            let config = files.get(lora::CONFIG).map(|path| read_json_object(path)).transpose()?;
            let said = config.as_ref().map_or_else(Said::nothing, |(config, _)| Said::by_config(config));
            let entries = SafetensorsSource::open(path)?.entries().to_vec();
            let config = config.as_ref().map(|(_, bytes)| bytes.as_slice());
            let outline = outline(&reference, files.keys().map(String::as_str), config, &entries);
            Ok(Look { said, unusable: outline.err().map(reason), entries })
        })
        .await
    }

    /// Looks at what config and headers of files say that are elsewhere.
    async fn look_elsewhere(&self, pin: &Pin, job: &Job, cx: &FetchContext) -> Result<Look> {
        let (inner, reference) = (&self.engine.inner, &pin.reference);
        let names = || job.manifest.files.iter().map(|file| file.path.as_str());
        let weights = weights(reference, names())?;
        let config = match job.manifest.file(lora::CONFIG) {
            Some(_) => Some(inner.text(job, lora::CONFIG, LARGEST_CONFIG, cx).await?),
            None => None,
        };
        let shown = format!("{} of {reference}", lora::CONFIG);
        let said = match &config {
            Some(config) => Said::by_config(&parse_json_object(config, &shown)?),
            None => Said::nothing(),
        };
        let entries = inner.head(job, weights, cx).await?.entries()?;
        let unusable = outline(reference, names(), config.as_deref(), &entries).err().map(reason);
        Ok(Look { said, entries, unusable })
    }
}

/// What was seen.
struct Look {
    said: Said,
    entries: Vec<TensorEntry>,
    unusable: Option<String>,
}

/// The adapter without its values, if it is one that can be used.
fn outline<'a>(
    reference: &'a ArtifactRef,
    names: impl Iterator<Item = &'a str>,
    config: Option<&[u8]>,
    entries: &[TensorEntry],
) -> Result<AdapterOutline> {
    lora::declare(reference, names, config)?.outline(entries)
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
