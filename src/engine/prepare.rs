//! From a spec to everything that a load needs, without reading a weight: resolve, plan, fetch, adapt.

use std::sync::Arc;

use llm_local_core::{
    ArtifactRef, Capabilities, ContextLength, Error, FetchContext, InferenceBackend, LoadOptions, LoraAdapter,
    Manifest, ModelFormat, ModelInfo, ModelSpec, ProgressEvent, Resolution, Result, TensorSource, TextFiles, Want,
};
use llm_local_source_common::{
    store::Hold,
    transfer::{Files, Job},
};
use llm_local_weights::Checkpoint;

use super::{Inner, identity::Identity, peek::peek};
use crate::{
    blocking::blocking,
    lora,
    plan::{Plan, PlannedModel},
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
    /// Keeps the files from deletion.
    pub(super) holds: Vec<Hold>,
}

/// The base's description, and its tensors unless an engine elsewhere has them.
pub(super) struct Weights {
    pub(super) info: Arc<ModelInfo>,
    pub(super) tensors: Option<Arc<dyn TensorSource>>,
}

/// The backend for a model, and what it is told.
struct Chosen {
    resolution: Resolution,
    options: LoadOptions,
    context_reason: String,
    capabilities: Capabilities,
}

/// The context where neither the spec nor the model asks for less.
const AUTOMATIC_CONTEXT: usize = 4096;

impl Pinned {
    /// The base, then the adapters.
    pub(super) fn jobs(&self) -> Vec<Job> {
        let base = Job::new(self.resolution.model_source.clone(), self.base.clone());
        let sources = self.resolution.adapter_sources.iter().zip(&self.adapters);
        let adapters = sources.map(|(source, manifest)| Job::new(source.clone(), manifest.clone()));
        std::iter::once(base).chain(adapters).collect()
    }
}

impl Inner {
    /// Pins the refs of `spec`.
    pub(super) async fn pin(&self, spec: &ModelSpec, cx: &FetchContext) -> Result<Pinned> {
        spec.validate()?;
        let resolution = self.registry.resolve(spec)?;
        resolving(&spec.base, cx);
        let base = resolution.model_source.resolve(&spec.base, Want::Model, cx).await?;
        let mut adapters = Vec::new();
        for (adapter, source) in spec.adapters.iter().zip(&resolution.adapter_sources) {
            resolving(&adapter.reference, cx);
            let manifest = source.resolve(&adapter.reference, Want::Adapter, cx).await;
            adapters.push(manifest.map_err(|e| e.into_adapter(&adapter.reference))?);
        }
        Ok(Pinned { resolution, base, adapters })
    }

    /// Everything that a load of `spec` needs. What is missing is fetched if it may be, once a backend has said by the
    /// headers of the base that it can run it.
    pub(super) async fn prepare(
        &self,
        spec: &ModelSpec,
        pinned: Pinned,
        cx: &FetchContext,
        fetching: Fetching,
    ) -> Result<Prepared> {
        let jobs = pinned.jobs();
        let Pinned { resolution, base, adapters: manifests } = pinned;
        let mut holds = Vec::new();
        if fetching == Fetching::Yes {
            holds = self.hold(&jobs).await?;
        }
        let mut files = Vec::new();
        for job in &jobs {
            files.push(self.transfer.present(job, cx).await?);
        }
        let mut by_headers = None;
        // An engine that is offline asks no source for headers.
        if files[0].is_none()
            && !cx.offline
            && let Some(info) = peek(&self.transfer, &jobs[0], &spec.id(), cx).await?
        {
            let chosen = self.choose(spec, &info)?;
            by_headers = Some((chosen.planned(&info, 0)?, chosen.resolution));
        }
        if fetching == Fetching::Yes {
            self.make_room(&jobs, &files).await?;
            files = self.transfer.fetch(jobs, cx).await?.into_iter().map(Some).collect();
        }
        let mut plan = Plan::new(spec, &base, &manifests, &files, &resolution);
        if let Some((model, resolution)) = by_headers {
            plan.set_model(model, resolution);
        }
        let mut files = files.into_iter();
        let base_files = files.next().flatten();
        let adapters = read_adapters(spec, manifests, files.collect()).await?;
        let Some(base_files) = base_files else {
            let (options, backend) = (LoadOptions::new(AUTOMATIC_CONTEXT), resolution.backend.backend);
            return Ok(Prepared { plan, weights: None, identity: None, adapters, options, backend, holds });
        };
        let identity = Some(Identity::new(spec.id(), &base, &base_files, &adapters)?);
        let (weights, text) = open(spec.id(), base_files).await?;
        let info = &weights.info;
        let chosen = self.choose(spec, info)?;
        let backend = chosen.resolution.backend.backend.clone();
        if weights.tensors.is_none() && chosen.capabilities.needs_weights {
            let reason = format!("its source lists no files, and backend `{}` needs weights", backend.name());
            return Err(Error::load(spec.id(), reason));
        }
        if let (None, Some((adapter, _))) = (&weights.tensors, adapters.first()) {
            return Err(Error::adapter(&adapter.reference, "the base has no weights on this machine to merge it into"));
        }
        let merged_tensors = if adapters.is_empty() { 0 } else { lora::fit(&adapters, info)?.touched.len() };
        plan.set_model(chosen.planned(info, merged_tensors)?, chosen.resolution);
        Ok(Prepared {
            plan,
            weights: Some((weights, text)),
            identity,
            adapters,
            options: chosen.options,
            backend,
            holds,
        })
    }

    /// The backend for the model that `info` describes.
    fn choose(&self, spec: &ModelSpec, info: &ModelInfo) -> Result<Chosen> {
        let (wanted, reason) = context(spec, info);
        let mut options = LoadOptions::new(wanted).with_dtype(spec.dtype);
        let resolution = self.registry.resolve_for(spec, info, &options)?;
        let choice = &resolution.backend;
        let Some(capabilities) = choice.capabilities.clone() else {
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
        Ok(Chosen { resolution, options, context_reason, capabilities })
    }

    /// Holds what is in the store or comes into it. A path's files are their owner's.
    pub(super) async fn hold(&self, jobs: &[Job]) -> Result<Vec<Hold>> {
        let (store, jobs) = (self.transfer.store().clone(), jobs.to_vec());
        if jobs.iter().all(|job| job.manifest.reference.is_file()) {
            return Ok(Vec::new());
        }
        blocking("store", move || {
            let stored = jobs.iter().filter(|job| !job.manifest.reference.is_file());
            stored.map(|job| store.hold(&job.manifest, job.source.placement(&job.manifest)?.as_ref())).collect()
        })
        .await
    }

    /// Evicts what was not used for longest, if the quota leaves too little room for what is missing.
    pub(super) async fn make_room(&self, jobs: &[Job], files: &[Option<Files>]) -> Result<()> {
        let missing = jobs.iter().zip(files).filter(|(_, files)| files.is_none());
        let needed = missing.map(|(job, _)| job.manifest.total_bytes()).sum();
        let (Some(quota), 1..) = (self.quota, needed) else { return Ok(()) };
        let store = self.transfer.store().clone();
        blocking("store", move || {
            let deleted = store.evict(quota, needed)?;
            if deleted.files > 0 {
                tracing::info!(artifacts = deleted.artifacts, bytes = deleted.bytes, "evicted to keep the quota");
            }
            Ok(())
        })
        .await
    }
}

impl Chosen {
    fn planned(&self, info: &ModelInfo, merged_tensors: usize) -> Result<PlannedModel> {
        Ok(PlannedModel {
            context_length: self.options.context_length,
            context_reason: self.context_reason.clone(),
            estimate: self.resolution.backend.backend.estimate(info, &self.options)?,
            capabilities: self.capabilities.clone(),
            merged_tensors,
        })
    }
}

/// Tells that `reference` is being resolved.
pub(super) fn resolving(reference: &ArtifactRef, cx: &FetchContext) {
    if let Some(progress) = &cx.progress {
        progress.on_progress(&ProgressEvent::resolving(reference.clone()));
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
