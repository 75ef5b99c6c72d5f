//! From everything that a load needs to a model in memory: merge → load.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use llm_local_core::{
    AdapterSet, Allowance, ContextLength, Error, FetchContext, InferenceBackend, LoadOptions, LoadedModel, LoraAdapter,
    ModelInfo, ModelSpec, ModelWeights, Result, TensorSource,
};

use super::{
    Inner, Model,
    fitting::Purpose,
    judge::Weights,
    merged::{Keeping, KeyOfMerge},
    model::LoadStats,
    prepare::Prepared,
    probe::{Effect, Loads, Probe},
    route::{Requantizing, Route},
    sets::Sets,
};
use crate::{
    blocking::blocking,
    lora::{self, MergedSource},
    memory::{FEWEST, MemoryEvent, Reservation, Residence},
};

impl Inner {
    /// The model of `spec`, loaded.
    ///
    /// # Errors
    /// As [`super::Engine::load`].
    pub(super) async fn load(&self, spec: &ModelSpec, cx: FetchContext) -> Result<Model> {
        // Dropping this future must reach the backend's own threads.
        let cancel_on_drop = cx.cancel.clone().drop_guard();
        let mut tried = Tried::default();
        let mut outcome = self.load_within(spec, &cx, None, &mut tried).await;
        if let Err(error) = &outcome
            && let Some(context) = self.shorter(spec, &tried, error).await
        {
            outcome = self.load_within(spec, &cx, Some(context), &mut tried).await;
        }
        cancel_on_drop.disarm();
        if let Err(error) = &outcome
            && error.is_out_of_memory()
        {
            self.memory.tell(MemoryEvent::Refused { model: spec.id(), reason: error.to_string() });
        }
        outcome
    }

    /// The context with which a load is tried once more at most that failed for want of memory, if its context was chosen by
    /// itself.
    async fn shorter(&self, spec: &ModelSpec, tried: &Tried, error: &Error) -> Option<usize> {
        let is_automatic = spec.context_length == ContextLength::Auto;
        let context = tried.context.filter(|tried| is_automatic && error.is_out_of_memory() && *tried > FEWEST)?;
        let context_length = (context / 2).max(FEWEST);
        if let Some(device) = &tried.admitted_to {
            // It has less than was measured.
            self.memory.make_room(&spec.id(), device).await;
        }
        let (model, reason) = (spec.id(), error.to_string());
        self.memory.tell(MemoryEvent::Retried { model, context_length, reason });
        Some(context_length)
    }

    /// The model of `spec`, loaded, with a context of `most` tokens at most. How far it came is in `tried`.
    async fn load_within(
        &self,
        spec: &ModelSpec,
        cx: &FetchContext,
        most: Option<usize>,
        tried: &mut Tried,
    ) -> Result<Model> {
        let start = Instant::now();
        let prepared = self.prepare(spec, cx, Purpose::Load(most)).await?;
        let Prepared {
            plan,
            weights,
            identity,
            adapters,
            allow,
            route,
            mut options,
            backend,
            mut holds,
            proven,
            memory,
        } = prepared;
        let prepared = start.elapsed();
        tried.context = Some(options.context_length);
        let reservation = self.memory.admit(&plan.id, (&*backend, &plan.device), memory.required).await?;
        tried.admitted_to = Some(plan.device.id.clone());
        let sets =
            Sets::new(&plan, &adapters, (spec.adapter_policy, route), weights.info.clone(), self.adapter_limits)?;
        options.cancel = cx.cancel.clone();
        options.progress = cx.progress.clone().or(options.progress);
        let parts = Parts { backend, base: weights, adapters, allow, reservation: reservation.clone() };
        let key = self.merge_key(spec, &identity, &parts.adapters, (parts.backend.name(), &options))?;
        let mut keeping = None;
        tracing::debug!(model = %plan.id, backend = %plan.backend, "loading");
        let (loaded, lost) = match route {
            Route::Merged if !parts.adapters.is_empty() => {
                let weights;
                (weights, keeping) = self.kept(&parts, key, parts.merged().await?).await?;
                (parts.load(weights, options).await?, None)
            }
            Route::Merged | Route::Beside => {
                let weights = parts.beside()?;
                (parts.load(weights, options).await?, None)
            }
            Route::Requantized(requantizing) => {
                let probe = Probe::new(&spec.probe_prompts, parts.names(), requantizing);
                let mut loads = Loads::new(options, if requantizing.can_be_beside { 2 } else { 3 });
                let merged = parts.merged().await?.requantized()?;
                let effect = parts.effect(&probe, requantizing, &mut loads).await?;
                // Tensors that are quantized are not kept.
                let weights = parts.weights(merged.info().clone(), Some(Arc::new(merged)));
                let names = parts.names();
                let loaded = parts.load(weights, loads.next()).await?;
                let lost = lost(&probe, &effect, (names, requantizing), &loaded).await?;
                (loaded, Some(lost))
            }
        };
        // By now the backend has read all that it reads by its path.
        proven.check_unchanged()?;
        if let Some(keeping) = keeping {
            holds.extend(keeping.finish(&identity).await);
        }
        let residence = Residence::new(reservation, &memory.estimate);
        let stats = LoadStats { prepare: prepared, backend: start.elapsed() - prepared };
        tracing::debug!(model = %plan.id, ?stats, "loaded");
        Ok(Model::new(loaded, plan, identity, sets, (stats, lost), (residence, holds)))
    }

    /// What the backend gets of `merged`, which may be kept from an earlier merge, or be kept now.
    async fn kept(
        &self,
        parts: &Parts,
        key: Option<KeyOfMerge>,
        merged: MergedSource,
    ) -> Result<(ModelWeights, Option<Keeping>)> {
        let info = merged.info().clone();
        let (tensors, keeping) = self.merged(key, merged).await?;
        Ok((parts.weights(info, Some(tensors)), keeping))
    }
}

/// How far a load came.
#[derive(Default)]
struct Tried {
    /// The context, in tokens, that was chosen.
    context: Option<usize>,
    /// The device, by its id, of which memory was promised.
    admitted_to: Option<String>,
}

/// What a model is made of, and who runs it.
struct Parts {
    backend: Arc<dyn InferenceBackend>,
    base: Weights,
    adapters: Vec<(Arc<LoraAdapter>, f32)>,
    /// What is let pass of each.
    allow: Vec<BTreeSet<Allowance>>,
    reservation: Arc<Reservation>,
}

impl Parts {
    /// The adapters, in messages.
    fn names(&self) -> String {
        let all: Vec<_> = self.adapters.iter().map(|(adapter, _)| adapter.reference.as_str()).collect();
        all.join(" + ")
    }

    fn weights(&self, info: Arc<ModelInfo>, tensors: Option<Arc<dyn TensorSource>>) -> ModelWeights {
        let reservation = Box::new(self.reservation.clone());
        ModelWeights::new(info, tensors, self.base.text.clone()).with_reservation(reservation)
    }

    /// The base alone.
    fn base(&self) -> ModelWeights {
        self.weights(self.base.info.clone(), self.base.tensors.clone())
    }

    /// The base with the adapters beside it.
    fn beside(&self) -> Result<ModelWeights> {
        let adapters = lora::for_backend(&self.adapters, &self.allow, &self.base.info)?;
        Ok(self.base().with_adapters(adapters))
    }

    /// The base with the adapters merged in.
    async fn merged(&self) -> Result<MergedSource> {
        let Some(base) = self.base.tensors.clone() else {
            return Err(Error::adapter(self.names(), "the base has no weights on this machine to merge it into"));
        };
        let (adapters, allow, info) = (self.adapters.clone(), self.allow.clone(), self.base.info.clone());
        blocking("merge", move || MergedSource::allowing(base, adapters, &allow, &info)).await
    }

    /// Loads `weights`, the last that are made of these parts. What these hold beside them goes first: a backend gives the
    /// heap back when it has loaded, and the vocabulary of a GGUF file alone takes megabytes.
    async fn load(self, weights: ModelWeights, options: LoadOptions) -> Result<Arc<dyn LoadedModel>> {
        let Self { backend, base, adapters, allow, .. } = self;
        drop((base, adapters, allow));
        backend.load(weights, options).await
    }

    /// What the adapters do to the answers to `probe`. Each model that tells is unloaded before the next is loaded, and the
    /// last one before this returns.
    ///
    /// # Errors
    /// Those of the loads and of [`Probe`].
    async fn effect(&self, probe: &Probe, requantizing: Requantizing, loads: &mut Loads) -> Result<Effect> {
        let backend = &self.backend;
        if requantizing.can_be_beside {
            let model = backend.load(self.beside()?, loads.next()).await?;
            let asked =
                async { Ok((probe.ask(&*model, None).await?, probe.ask(&*model, Some(&AdapterSet::new())).await?)) };
            let asked = asked.await;
            let (unmerged, base) = unloaded(model, asked).await?;
            return probe.effect(unmerged, &base);
        }
        let merged = self.merged().await?;
        let weights = self.weights(merged.info().clone(), Some(Arc::new(merged)));
        let model = backend.load(weights, loads.next()).await?;
        let asked = probe.ask(&*model, None).await;
        let unmerged = unloaded(model, asked).await?;
        let model = backend.load(self.base(), loads.next()).await?;
        let asked = probe.ask(&*model, None).await;
        probe.effect(unmerged, &unloaded(model, asked).await?)
    }
}

/// How much of `effect` is lost in `loaded`, which is unloaded if that is too much.
///
/// # Errors
/// Those of [`Probe`].
async fn lost(
    probe: &Probe,
    effect: &Effect,
    (adapters, requantizing): (String, Requantizing),
    loaded: &Arc<dyn LoadedModel>,
) -> Result<f64> {
    let measured = async {
        let lost = effect.lost_in(&probe.ask(&**loaded, None).await?);
        tracing::info!(adapters, lost, max_error = requantizing.max_error, prompts = probe.len(), "quantized again");
        probe.check(lost).map(|()| lost)
    };
    let measured = measured.await;
    if measured.is_err() {
        // What is wrong is said already.
        drop(loaded.unload().await);
    }
    measured
}

/// `outcome` of a model, once its memory is back.
async fn unloaded<T>(model: Arc<dyn LoadedModel>, outcome: Result<T>) -> Result<T> {
    let unloaded = model.unload().await;
    let outcome = outcome?;
    unloaded.map(|()| outcome)
}
