//! Adapters of a loaded model that are not in its weights: its own set, which can be replaced while it is loaded, and the
//! sets that requests name.
//!
//! | module | what it holds |
//! |---|---|
//! | `limits` | how much a set may take |
//! | `make` | [`Engine::adapter_set`](crate::Engine::adapter_set): from refs to a set that fits a model |
//! | `known` | the adapters that were made for a model, and what their refs meant |
//! | `own` | the set that a model has where a request names none, from one change to the next |
//!
//! Adapters are never changed: whoever computes with one holds it, and another version of it is another adapter. They are
//! held in memory, so their files are needed only while they are read.

mod known;
mod limits;
mod make;
mod own;
#[cfg(test)]
mod tests;

pub use limits::AdapterLimits;

pub(crate) use own::OwnSet;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use llm_local_core::{
    AdapterPolicy, AdapterSet, AdapterSpec, Error, LoadedModel, LoraAdapter, ModelFormat, ModelInfo, Result,
};

use super::route::Route;
use crate::plan::Plan;
use known::Known;

/// What of the description of a base adapters are checked against: not the metadata of a GGUF file, whose vocabulary alone
/// takes megabytes for as long as the model is loaded.
fn for_fit(info: &ModelInfo) -> ModelInfo {
    let mut info = info.clone();
    if let ModelFormat::Gguf { metadata } = &mut info.format {
        *metadata = Arc::default();
    }
    info
}

/// The sets of adapters of a loaded model.
pub(super) struct Sets {
    /// The model's id, for messages.
    model: String,
    /// What adapters must fit, or why the model takes no others than it was loaded with.
    base: Result<Arc<ModelInfo>, String>,
    limits: AdapterLimits,
    known: Mutex<Known>,
    own: Mutex<Arc<OwnSet>>,
}

impl Sets {
    /// The sets of the model that was loaded by `plan`, with `adapters` in it by `route`. `info` describes its base.
    pub(super) fn new(
        plan: &Plan,
        adapters: &[(Arc<LoraAdapter>, f32)],
        (policy, route): (AdapterPolicy, Route),
        info: Arc<ModelInfo>,
        limits: AdapterLimits,
    ) -> Self {
        let used = plan.adapters.iter().map(|(adapter, weight)| adapter.used(*weight)).collect();
        let set = adapters.iter().fold(AdapterSet::new(), |set, (adapter, weight)| set.with(adapter.clone(), *weight));
        let can_run = plan.model.as_ref().is_some_and(|model| model.capabilities.unmerged);
        let base = if !can_run {
            Err(format!("backend `{}` cannot run adapters beside the weights of `{}`", plan.backend, plan.id))
        } else if route != Route::Beside && !adapters.is_empty() {
            Err(format!("the adapters of `{}` were merged into its weights when it was loaded; {UNMERGED}", plan.id))
        } else if matches!(policy, AdapterPolicy::MergeDequantized | AdapterPolicy::MergeRequantized { .. }) {
            Err(format!("`{}` was loaded with `adapter_policy = \"{policy}\"`; {UNMERGED}", plan.id))
        } else {
            Ok(Arc::new(for_fit(&info)))
        };
        Self {
            model: plan.id.clone(),
            base,
            limits,
            known: Mutex::default(),
            own: Mutex::new(Arc::new(OwnSet::new(used, set.digest()))),
        }
    }

    /// What adapters must fit.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] of the adapters `names` if the model takes no others than it was loaded with.
    fn base(&self, names: impl FnOnce() -> String) -> Result<&Arc<ModelInfo>> {
        self.base.as_ref().map_err(|reason| Error::adapter(names(), reason.clone()))
    }

    /// What `set` is, if requests may name it: of adapters that were made for this model, within the limits.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] that names the adapter and what keeps it from being used.
    pub(super) fn named(&self, set: &AdapterSet) -> Result<Arc<OwnSet>> {
        self.base(|| names(set.adapters.iter().map(|(adapter, _)| &adapter.reference)))?;
        let mut used = Vec::with_capacity(set.adapters.len());
        let known = lock(&self.known);
        for (adapter, weight) in &set.adapters {
            check_weight(&adapter.reference, *weight)?;
            used.push(known.used(adapter, *weight).ok_or_else(|| {
                let reason = format!(
                    "it was not made for the model `{}` that is loaded now; make it by `Engine::adapter_set`",
                    self.model
                );
                Error::adapter(&adapter.reference, reason)
            })?);
        }
        self.limits.check(set.adapters.iter().map(|(adapter, _)| &**adapter))?;
        Ok(Arc::new(OwnSet::new(used, set.digest())))
    }

    /// The model's own set now.
    pub(super) fn own(&self) -> Arc<OwnSet> {
        lock(&self.own).clone()
    }

    /// What `start` gives, which puts a request in line, with the model's own set at that place of the line.
    pub(super) fn with_own<T>(&self, start: impl FnOnce() -> T) -> (T, Arc<OwnSet>) {
        let own = lock(&self.own);
        (start(), own.clone())
    }

    /// Makes `set` the model's own. Once it is in line it is not taken back, whether or not this future is dropped.
    ///
    /// # Errors
    /// Those of [`Sets::named`] and [`LoadedModel::set_adapters`].
    pub(super) async fn replace(&self, loaded: &Arc<dyn LoadedModel>, set: AdapterSet) -> Result<()> {
        let new = self.named(&set)?;
        let names = names(set.adapters.iter().map(|(adapter, _)| &adapter.reference));
        let loaded = loaded.clone();
        let change = async move {
            loaded.set_adapters(set).await.map_err(|error| match error {
                Error::Unsupported { .. } => error.into_adapter(names),
                other => other,
            })
        };
        let change = change.boxed().shared();
        {
            let mut own = lock(&self.own);
            // The first poll puts it in line, at the place where requests see the new set from now on.
            let _ = change.clone().now_or_never();
            *own = Arc::new(new.after(change.clone(), &own));
        }
        change.await
    }
}

/// What to do where adapters are in the weights.
const UNMERGED: &str = "load it with `adapter_policy = \"keep-unmerged\"` to change its adapters while it is loaded";

/// The name of a set in messages.
fn names<T: std::fmt::Display>(references: impl IntoIterator<Item = T>) -> String {
    let all: Vec<_> = references.into_iter().map(|reference| reference.to_string()).collect();
    if all.is_empty() { "set without adapters".into() } else { all.join(" + ") }
}

/// The names of `adapters` in messages.
fn names_of(adapters: &[AdapterSpec]) -> String {
    names(adapters.iter().map(|adapter| &adapter.reference))
}

/// Checks what an adapter's delta is to be multiplied by.
fn check_weight(reference: impl std::fmt::Display, weight: f32) -> Result<()> {
    if weight.is_finite() && weight != 0.0 {
        return Ok(());
    }
    let reason =
        format!("its weight is {weight}; expected a finite number other than 0 (leave the adapter out instead)");
    Err(Error::adapter(reference, reason))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
