//! From everything that a load needs to a model in memory: merge → load.

use std::time::Instant;

use llm_local_core::{FetchContext, ModelSpec, ModelWeights, Result};

use super::{Inner, Model, judge::Weights, model::LoadStats, prepare::Prepared, route::Route, sets::Sets};
use crate::{
    blocking::blocking,
    lora::{self, MergedSource},
};

impl Inner {
    /// The model of `spec`, loaded.
    ///
    /// # Errors
    /// As [`super::Engine::load`].
    pub(super) async fn load(&self, spec: &ModelSpec, cx: FetchContext) -> Result<Model> {
        let start = Instant::now();
        // Dropping this future must reach the backend's own threads.
        let cancel_on_drop = cx.cancel.clone().drop_guard();
        let Prepared { plan, weights, identity, adapters, allow, route, options, backend, holds, proven } =
            self.prepare(spec, &cx).await?;
        let prepared = start.elapsed();
        let Weights { info, tensors, text } = weights;
        let sets = Sets::new(&plan, &adapters, (spec.adapter_policy, route), info.clone(), self.adapter_limits);
        let weights = match (tensors, route) {
            (Some(base), Route::Merged) if !adapters.is_empty() => {
                let merged = blocking("merge", move || MergedSource::allowing(base, adapters, &allow, &info)).await?;
                let info = merged.info().clone();
                let tensors = self.merged(&identity, merged).await?;
                ModelWeights::new(info, Some(tensors), text)
            }
            (tensors, _) => {
                let adapters = lora::for_backend(&adapters, &allow, &info)?;
                ModelWeights::new(info, tensors, text).with_adapters(adapters)
            }
        };
        let options = options.with_cancel(cx.cancel.clone());
        let options = match &cx.progress {
            Some(progress) => options.with_progress(progress.clone()),
            None => options,
        };
        tracing::debug!(model = %plan.id, backend = %plan.backend, "loading");
        let loaded = backend.load(weights, options).await?;
        // By now the backend has read all that it reads by its path.
        proven.check_unchanged()?;
        cancel_on_drop.disarm();
        let stats = LoadStats { prepare: prepared, backend: start.elapsed() - prepared };
        tracing::debug!(model = %plan.id, ?stats, "loaded");
        Ok(Model::new(loaded, plan, identity, sets, stats, holds))
    }
}
