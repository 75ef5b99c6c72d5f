//! Adapters of a loaded model: its own set, which can be replaced while it is loaded, and the sets that requests name.
//!
//! | module | what it holds |
//! |---|---|
//! | `limits` | how much a set may take |
//! | `make` | [`Engine::adapter_set`](crate::Engine::adapter_set): from refs to a set that fits a model |
//! | `heads` | what can be told of adapters before they are read |
//! | `way` | how other adapters get into a model: beside its weights, or into them |
//! | `swap` | a set that is merged in place of another one |
//! | `room` | whether there is memory for that |
//! | `known` | the adapters that were made for a model, and what their refs meant |
//! | `own` | the set that a model has where a request names none, from one change to the next |
//!
//! Adapters are never changed: whoever computes with one holds it, and another version of it is another adapter. They are
//! held in memory, so their files are needed only while they are read.

mod heads;
mod known;
mod limits;
mod make;
mod own;
mod room;
mod swap;
#[cfg(test)]
mod tests;
mod way;

pub use limits::AdapterLimits;

pub(crate) use own::OwnSet;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::FutureExt;
use llm_local_core::{
    AdapterPolicy, AdapterSet, AdapterSpec, Allowance, ArtifactRef, Error, LoadedModel, LoraAdapter, ModelFormat,
    ModelInfo, Result,
};

use super::{identity::Identity, route::Route};
use crate::plan::Plan;
use known::Known;
use way::Way;

/// What of the description of a base adapters are checked against: not the metadata of a GGUF file, whose vocabulary alone
/// takes megabytes for as long as the model is loaded.
fn for_fit(info: &ModelInfo) -> ModelInfo {
    let mut info = info.clone();
    if let ModelFormat::Gguf { metadata } = &mut info.format {
        *metadata = Arc::default();
    }
    info
}

/// How many bytes of the machine's memory are free now, if that is known.
pub(super) type Free<'a> = dyn Fn() -> Option<u64> + Sync + 'a;

/// The sets of adapters of a loaded model.
pub(super) struct Sets {
    /// The model's id, for messages.
    model: String,
    way: Way,
    limits: AdapterLimits,
    known: Mutex<Known>,
    own: Mutex<Arc<OwnSet>>,
}

impl Sets {
    /// The sets of the model that was loaded by `plan`, with `adapters` in it by `route`. `info` describes its base.
    pub(super) fn new(
        plan: &Plan,
        adapters: &[(Arc<LoraAdapter>, f32)],
        how: (AdapterPolicy, Route),
        info: Arc<ModelInfo>,
        limits: AdapterLimits,
    ) -> Result<Self> {
        let used = plan.adapters.iter().map(|(adapter, weight)| adapter.used(*weight)).collect();
        let set = adapters.iter().fold(AdapterSet::new(), |set, (adapter, weight)| set.with(adapter.clone(), *weight));
        let way = Way::new(plan, !adapters.is_empty(), how, &info);
        let own = OwnSet::new(used, set.digest());
        let own = if matches!(how.1, Route::Requantized(_)) { own.requantized() } else { own };
        // Of a model that takes no others, nobody asks.
        let own = match &way {
            Way::Merged(_) => own.touching(way::touched(adapters, &info)?),
            Way::Beside(_) | Way::Neither(_) => own,
        };
        let (known, own) = (Mutex::default(), Mutex::new(Arc::new(own)));
        Ok(Self { model: plan.id.clone(), way, limits, known, own })
    }

    /// What `set` is, if requests may name it: of adapters that were made for this model, within the limits.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] that names the adapter and what keeps it from being used.
    pub(super) fn named(&self, set: &AdapterSet) -> Result<Arc<OwnSet>> {
        self.way.check_named(|| names(set.adapters.iter().map(|(adapter, _)| &adapter.reference)))?;
        Ok(Arc::new(self.made(set)?.0))
    }

    /// What `set` is, of adapters that were made for this model, within the limits; and what is let pass of each.
    fn made(&self, set: &AdapterSet) -> Result<(OwnSet, Vec<BTreeSet<Allowance>>)> {
        let (mut used, mut allow) = (Vec::with_capacity(set.adapters.len()), Vec::new());
        let known = lock(&self.known);
        for (adapter, weight) in &set.adapters {
            check_weight(&adapter.reference, *weight)?;
            let (adapter, allowed) = known.used(adapter, *weight).ok_or_else(|| {
                let reason = format!(
                    "it was not made for the model `{}` that is loaded now; make it by `Engine::adapter_set`",
                    self.model
                );
                Error::adapter(&adapter.reference, reason)
            })?;
            used.push(adapter);
            allow.push(allowed.clone());
        }
        self.limits.check(set.adapters.iter().map(|(adapter, _)| &**adapter))?;
        Ok((OwnSet::new(used, set.digest()), allow))
    }

    /// The model's own set now.
    pub(super) fn own(&self) -> Arc<OwnSet> {
        lock(&self.own).clone()
    }

    /// Whether `adapters` may be what the model has already: by their refs, which say it before anything is fetched.
    fn may_be_own<'a>(&self, mut adapters: impl Iterator<Item = &'a ArtifactRef>) -> bool {
        let own = self.own();
        adapters.all(|adapter| own.used().iter().any(|used| used.reference == *adapter))
    }

    /// What `start` gives, which puts a request in line, with the model's own set at that place of the line.
    pub(super) fn with_own<T>(&self, start: impl FnOnce() -> T) -> (T, Arc<OwnSet>) {
        let own = lock(&self.own);
        (start(), own.clone())
    }

    /// Makes `set` the own one of the model `loaded`, whose base is `base`, in what is `free` of memory. Once it is in line it is not taken back, whether
    /// or not this future is dropped.
    ///
    /// # Errors
    /// Those of [`Sets::named`], [`LoadedModel::set_adapters`] and [`Sets::merge`].
    pub(super) async fn replace(
        &self,
        loaded: &Arc<dyn LoadedModel>,
        base: &Arc<Identity>,
        set: AdapterSet,
        free: &Free<'_>,
    ) -> Result<()> {
        let names = names(set.adapters.iter().map(|(adapter, _)| &adapter.reference));
        self.way.info(|| names.clone())?;
        let (new, allow) = self.made(&set)?;
        if let Way::Merged(_) = &self.way {
            return self.merge(loaded, base, (set, allow), &new, free).await;
        }
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
