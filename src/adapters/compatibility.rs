//! Whether an adapter fits a base.

use std::{fs, sync::Arc};

use llm_local_core::{AdapterSpec, ArtifactRef, Error, FetchContext, ModelSpec, Result};
use llm_local_source_common::transfer::Files;
use llm_local_weights::{GgufSource, LARGEST_CONFIG, is_gguf, read_json_object};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Adapters, said::Said};
use crate::{
    blocking::blocking,
    engine::{Looked, hex},
    lora::{self, BaseFacts, CompatibilityReport, ReadOptions},
};

/// What every checkpoint of transformers has.
const CONFIG: &str = "config.json";

impl Adapters {
    /// Whether `adapter` fits the base, and everything that keeps it from that. Of the base headers alone are read, also where
    /// it is not on this machine; the adapter is fetched. What the adapter's spec [allows](AdapterSpec::allow) is let pass.
    ///
    /// # Errors
    /// Those of the base; [`Error::AdapterMergeFailed`] for files that are no adapter. One that is whole and does not fit is
    /// reported ([`CompatibilityReport::fits`]).
    pub async fn check(&self, base: &ArtifactRef, adapter: &AdapterSpec) -> Result<CompatibilityReport> {
        self.compare(base, adapter, false).await
    }

    /// As [`Adapters::check`], and how much the adapter changes if it fits ([`CompatibilityReport::effects`]): reads the
    /// tensors that it changes, of a base that is on this machine.
    ///
    /// # Errors
    /// As [`Adapters::check`]; [`Error::NotFound`] for a base that is not on this machine.
    pub async fn measure(&self, base: &ArtifactRef, adapter: &AdapterSpec) -> Result<CompatibilityReport> {
        self.compare(base, adapter, true).await
    }

    async fn compare(&self, base: &ArtifactRef, adapter: &AdapterSpec, measured: bool) -> Result<CompatibilityReport> {
        let cx = self.engine.context(None);
        let _cancel_on_drop = cx.cancel.clone().drop_guard();
        let spec = ModelSpec::new(base.clone()).with_adapter_spec(adapter.clone());
        let inner = &self.engine.inner;
        let looked = inner.look(&spec, &cx).await?;
        if measured && looked.tensors.is_none() {
            let reason = "its weights are needed to measure an effect, and are not on this machine; download it first";
            return Err(Error::not_found(base.to_string(), reason));
        }
        let files = inner.fetch(&looked.adapter, &cx).await.map_err(|e| e.into_adapter(&adapter.reference))?;
        let read = inner.read_adapter(&adapter.reference, files.clone(), ReadOptions::from(adapter).lenient()).await?;
        let facts = self.facts(&looked, &cx).await?;
        let adapter = adapter.clone();
        blocking("adapters", move || {
            let (alpha, adapter_architecture) = said(&files)?;
            let facts = BaseFacts { adapter_architecture, ..facts };
            let (read, info) = (Arc::new(read), &looked.info);
            let report = CompatibilityReport::new(&read, adapter.weight, &adapter.allow, info);
            let report = report.with_facts(&read, info, &facts).with_alpha(alpha);
            match &looked.tensors {
                Some(tensors) if measured && report.fits => report.with_effects(&read, adapter.weight, tensors, info),
                _ => Ok(report),
            }
        })
        .await
    }

    /// What is known of the base beside its tensors.
    async fn facts(&self, looked: &Looked, cx: &FetchContext) -> Result<BaseFacts> {
        let Looked { base, files, .. } = looked;
        let (reference, job) = (&base.reference, base.job());
        let config = match files {
            Some(files) => {
                let read = |path| fs::read(path).map_err(|error| Error::io("read", path, error));
                files.get(CONFIG).map(read).transpose()?
            }
            None if base.manifest.file(CONFIG).is_none() => None,
            None => Some(self.engine.inner.text(&job, CONFIG, LARGEST_CONFIG, cx).await?),
        };
        let is_hub = reference.scheme() == "hf";
        let before_part = |text: &str| text.split(':').next().filter(|text| !text.is_empty()).map(str::to_owned);
        Ok(BaseFacts {
            repository: before_part(reference.locator()).filter(|_| is_hub),
            asked_revision: reference.revision().and_then(before_part),
            // That of a folder is of this machine alone.
            revision: is_hub.then(|| base.manifest.revision.clone()),
            config_digest: config.map(|config| hex(Sha256::digest(config))),
            adapter_architecture: None,
        })
    }
}

/// What the adapter in `files` says of itself: its alpha, and the architecture of its base, as a class of transformers or
/// as llama.cpp calls it.
fn said(files: &Files) -> Result<(Option<f64>, Option<String>)> {
    if let Some((_, path)) = files.iter().find(|(name, _)| is_gguf(name)) {
        let source = GgufSource::open(path)?;
        let metadata = source.metadata();
        return Ok((Said::by_gguf(metadata).alpha, metadata.string("general.architecture").map(str::to_owned)));
    }
    let Some(path) = files.get(lora::CONFIG) else { return Ok((None, None)) };
    let config = read_json_object(path)?.0;
    let class = config.get("auto_mapping").and_then(|mapping| mapping.get("base_model_class"));
    Ok((Said::by_config(&config).alpha, class.and_then(Value::as_str).map(str::to_owned)))
}
