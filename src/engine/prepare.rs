//! From a spec to everything that a load needs, without reading a weight: resolve, plan, fetch, adapt.

use std::sync::Arc;

use llm_local_core::{
    ArtifactSource, ContextLength, Error, FetchContext, InferenceBackend, LoadOptions, LoraAdapter, Manifest,
    ModelFormat, ModelInfo, ModelSpec, ProgressEvent, Resolution, Result, TensorSource, TextFiles, Want,
};
use llm_local_weights::Checkpoint;

use super::{Inner, identity::Identity};
use crate::{
    blocking::blocking,
    fetch::{self, Files, Meter},
    lora,
    plan::{Plan, PlannedArtifact, PlannedModel},
};

/// Whether missing files may be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fetching {
    Yes,
    No,
}

/// The refs of a spec, pinned.
#[derive(Debug)]
pub(super) struct Pinned {
    pub(super) resolution: Resolution,
    pub(super) base: Manifest,
    pub(super) adapters: Vec<Manifest>,
}

/// Everything that a load needs.
pub(super) struct Prepared {
    pub(super) plan: Plan,
    /// The base; `None` if its files are not here and may not be fetched.
    pub(super) weights: Option<(Weights, TextFiles)>,
    /// There if the weights are.
    pub(super) identity: Option<Identity>,
    pub(super) adapters: Vec<(Arc<LoraAdapter>, f32)>,
    pub(super) options: LoadOptions,
    pub(super) backend: Arc<dyn InferenceBackend>,
}

/// The base's description, and its tensors unless an engine elsewhere has them.
pub(super) struct Weights {
    pub(super) info: Arc<ModelInfo>,
    pub(super) tensors: Option<Arc<dyn TensorSource>>,
}

/// The context where neither the spec nor the model asks for less.
const AUTOMATIC_CONTEXT: usize = 4096;

impl Inner {
    /// Pins the refs of `spec`.
    pub(super) async fn pin(&self, spec: &ModelSpec, cx: &FetchContext) -> Result<Pinned> {
        spec.validate()?;
        let resolution = self.registry.resolve(spec)?;
        let resolving = |reference: &llm_local_core::ArtifactRef| {
            if let Some(progress) = &cx.progress {
                progress.on_progress(&ProgressEvent::resolving(reference.clone()));
            }
        };
        resolving(&spec.base);
        let base = resolution.model_source.resolve(&spec.base, Want::Model, cx).await?;
        let mut adapters = Vec::new();
        for (adapter, source) in spec.adapters.iter().zip(&resolution.adapter_sources) {
            resolving(&adapter.reference);
            let manifest = source.resolve(&adapter.reference, Want::Adapter, cx).await;
            adapters.push(manifest.map_err(|e| e.into_adapter(&adapter.reference))?);
        }
        Ok(Pinned { resolution, base, adapters })
    }

    /// Everything that a load of `spec` needs.
    pub(super) async fn prepare(
        &self,
        spec: &ModelSpec,
        pinned: Pinned,
        cx: &FetchContext,
        fetching: Fetching,
    ) -> Result<Prepared> {
        let Pinned { resolution, base, adapters: manifests } = pinned;
        let mut meter = Meter::new(std::iter::once(&base).chain(&manifests), cx);
        let base_files = self.files(&*resolution.model_source, &base, &mut meter, cx, fetching).await?;
        let mut adapter_files = Vec::new();
        for (manifest, source) in manifests.iter().zip(&resolution.adapter_sources) {
            let files = self.files(&**source, manifest, &mut meter, cx, fetching).await;
            adapter_files.push(files.map_err(|e| e.into_adapter(&manifest.reference))?);
        }
        if fetching == Fetching::Yes {
            meter.finish();
        }
        let mut plan = Plan {
            id: spec.id(),
            base: PlannedArtifact::new(&base, base_files.is_some()),
            adapters: manifests
                .iter()
                .zip(&adapter_files)
                .zip(&spec.adapters)
                .map(|((manifest, files), adapter)| (PlannedArtifact::new(manifest, files.is_some()), adapter.weight))
                .collect(),
            backend: resolution.backend.backend.name().to_owned(),
            device: resolution.backend.device.clone(),
            dtype: spec.dtype,
            model: None,
            passed_over: resolution.passed_over.clone(),
        };
        let adapters = read_adapters(spec, manifests, adapter_files).await?;
        let options = LoadOptions::new(AUTOMATIC_CONTEXT).with_dtype(spec.dtype);
        let Some(files) = base_files else {
            let backend = resolution.backend.backend;
            return Ok(Prepared { plan, weights: None, identity: None, adapters, options, backend });
        };
        let identity = Some(Identity::new(spec.id(), &base, &files, &adapters)?);
        let (weights, text) = open(spec.id(), files).await?;
        let info = &weights.info;
        let (wanted, reason) = context(spec, info);
        let mut options = options;
        options.context_length = wanted;
        let resolution = self.registry.resolve_for(spec, info, &options)?;
        let choice = resolution.backend;
        let Some(capabilities) = choice.capabilities else {
            return Err(Error::load(spec.id(), format!("backend `{}` was not asked about it", choice.backend.name())));
        };
        options.device = Some(choice.device.id.clone());
        let context_reason = match capabilities.max_context {
            Some(most) if most < wanted => {
                options.context_length = most;
                format!("all that backend `{}` can hold of this model", choice.backend.name())
            }
            _ => reason,
        };
        if weights.tensors.is_none() && capabilities.needs_weights {
            let reason = format!("its source lists no files, and backend `{}` needs weights", choice.backend.name());
            return Err(Error::load(spec.id(), reason));
        }
        if let (None, Some((adapter, _))) = (&weights.tensors, adapters.first()) {
            return Err(Error::adapter(&adapter.reference, "the base has no weights on this machine to merge it into"));
        }
        let merged_tensors = if adapters.is_empty() { 0 } else { lora::fit(&adapters, info)?.touched.len() };
        plan.model = Some(PlannedModel {
            context_length: options.context_length,
            context_reason,
            estimate: choice.backend.estimate(info, &options)?,
            capabilities,
            merged_tensors,
        });
        plan.backend = choice.backend.name().to_owned();
        plan.device = choice.device;
        plan.passed_over = resolution.passed_over;
        let backend = choice.backend;
        Ok(Prepared { plan, weights: Some((weights, text)), identity, adapters, options, backend })
    }

    async fn files(
        &self,
        source: &(impl ArtifactSource + ?Sized),
        manifest: &Manifest,
        meter: &mut Meter,
        cx: &FetchContext,
        fetching: Fetching,
    ) -> Result<Option<Files>> {
        match fetching {
            Fetching::Yes => fetch::fetch(source, manifest, &self.cache, meter, cx).await.map(Some),
            Fetching::No => fetch::present(source, manifest, &self.cache, cx).await,
        }
    }
}

/// Reads the adapters whose files are here.
async fn read_adapters(
    spec: &ModelSpec,
    manifests: Vec<Manifest>,
    files: Vec<Option<Files>>,
) -> Result<Vec<(Arc<LoraAdapter>, f32)>> {
    if manifests.is_empty() {
        return Ok(Vec::new());
    }
    let weights: Vec<f32> = spec.adapters.iter().map(|a| a.weight).collect();
    blocking("adapters", move || {
        manifests
            .iter()
            .zip(files)
            .zip(weights)
            .filter_map(|((manifest, files), weight)| Some((manifest, files?, weight)))
            .map(|(manifest, files, weight)| Ok((Arc::new(lora::read(&manifest.reference, &files)?), weight)))
            .collect()
    })
    .await
}

/// Reads the headers of the base. A base without files is run by an engine elsewhere.
async fn open(id: String, files: Files) -> Result<(Weights, TextFiles)> {
    if files.is_empty() {
        let info = Arc::new(ModelInfo::new(id, ModelFormat::Remote, Vec::new()));
        return Ok((Weights { info, tensors: None }, TextFiles::default()));
    }
    let Checkpoint { info, tensors, text, .. } = blocking("checkpoint", move || Checkpoint::open(&id, &files)).await?;
    Ok((Weights { info, tensors: Some(tensors) }, text))
}

/// How many tokens the context is to hold, and why.
fn context(spec: &ModelSpec, info: &ModelInfo) -> (usize, String) {
    let most = info.decoder.as_ref().map(|d| d.max_positions).ok();
    match (spec.context_length, most) {
        (ContextLength::Tokens(n), Some(most)) if n as usize > most => {
            (most, format!("the spec asks for {n}, but the model was made for {most}"))
        }
        (ContextLength::Tokens(n), _) => (n as usize, "the spec asks for it".into()),
        (_, Some(most)) if most <= AUTOMATIC_CONTEXT => (most, "all that the model was made for".into()),
        _ => (AUTOMATIC_CONTEXT, format!("automatic, {AUTOMATIC_CONTEXT} at most")),
    }
}
