//! The engine: the registry at work. What happens to a spec on its way to tokens:
//!
//! 1. `prepare`: resolve → plan → fetch → adapt. The sources pin the refs. `judge` decides whether it can be run: it opens
//!    what is here, and asks for the heads (`peek`) of what is not; a backend is found (`choose`), and the adapters are
//!    checked against the base (`together`). Only then are files fetched (`fetch`), for which there is `room`; and what came
//!    is judged by itself.
//! 2. `load`: the backend reads the tensors, adapters merged in as they are read, or kept from an earlier merge (`merged`),
//!    or beside them, as `route` says. What is lost where tensors are quantized again is measured first (`probe`).
//! 3. [`Model::generate`] gives tokens.
//!
//! What a ref means is decided in `resolve`, by what is kept (`versions`) or by its source, which is asked once of
//! refs that move together (`asked`). [`Engine::plan`] ends after the first judgement, and [`Engine::download`] before a
//! load. `slots` keeps one model per spec, `identity` tells loaded models apart by their content, and `seen` files that are
//! replaced. `sets` has the adapters of a loaded model, which can be replaced.

mod asked;
mod builder;
mod choose;
mod download;
mod export;
mod fetch;
mod fitting;
mod identity;
mod judge;
mod leased;
mod load;
mod locking;
mod merged;
mod model;
mod peek;
mod prepare;
mod probe;
mod resolve;
mod room;
mod route;
mod seen;
mod sets;
mod slots;
mod together;
mod versions;

pub use builder::{CACHE_VARIABLE, EngineBuilder};
pub use identity::ModelDigest;
pub use model::{LoadStats, Model};
pub use sets::AdapterLimits;

pub(crate) use asked::Asked;
pub(crate) use identity::{Identity, hex};
pub(crate) use judge::Looked;
pub(crate) use model::WeakModel;
pub(crate) use resolve::Pin;
pub(crate) use sets::OwnSet;
pub(crate) use versions::{Versions, could_not_ask, is_of_one, names, with_used_last};

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use llm_local_core::{
    ArtifactRef, Error, GenerateRequest, Generation, LogitsRequest, ModelSpec, ProgressEvent, ProgressHandler,
    Registry, Result,
};
use llm_local_source_common::{store::Store, transfer::Transfer};

use crate::{
    adapters::Adapters,
    memory::{Lease, Memory, Monitor},
    plan::Plan,
    policy::Policy,
};
use fitting::Purpose;
use slots::{Key, Slots, Unloading};

/// The registry at work. Clones share everything.
///
/// It needs no async runtime: its futures run on any executor.
#[derive(Clone)]
pub struct Engine {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) registry: Registry,
    pub(crate) transfer: Transfer,
    /// How many heads of files that are elsewhere are read at a time.
    heads_at_once: usize,
    quota: Option<u64>,
    pub(crate) policy: Policy,
    adapter_limits: AdapterLimits,
    offline: bool,
    /// Whether results of merges are kept.
    keep_merged: bool,
    slots: Slots,
    pub(crate) memory: Arc<Memory>,
    monitor: Mutex<Option<Monitor>>,
}

impl Engine {
    /// An engine with the built-in plugins and every discovered one.
    ///
    /// # Errors
    /// As [`EngineBuilder::build`].
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// Settings first.
    pub fn builder() -> EngineBuilder {
        EngineBuilder::default()
    }

    /// What is registered.
    pub fn registry(&self) -> &Registry {
        &self.inner.registry
    }

    /// The files that were fetched: to list, verify, delete and pin them.
    pub fn store(&self) -> &Store {
        self.inner.transfer.store()
    }

    /// The adapters that are kept, and their versions: to list, update, pin, roll back and delete them.
    pub fn adapters(&self) -> Adapters {
        Adapters::new(self.clone())
    }

    /// What `spec` would do, and why. Pins refs and reads headers, also of files that are not on this machine; fetches
    /// nothing.
    ///
    /// # Errors
    /// What [`Engine::load`] would say up to the point where weights are read.
    pub async fn plan(&self, spec: &ModelSpec) -> Result<Plan> {
        self.inner.plan(spec, Purpose::Load(None), &self.context(None)).await
    }

    /// As [`Engine::plan`], however little memory there is: of a model that does not fit the plan says what it would take with
    /// the context that it would have, and how much there is ([`PlannedModel`](crate::plan::PlannedModel)).
    ///
    /// # Errors
    /// As [`Engine::plan`], but for a lack of memory.
    pub async fn estimate(&self, spec: &ModelSpec) -> Result<Plan> {
        self.inner.plan(spec, Purpose::Files, &self.context(None)).await
    }

    /// The model of `spec`, loaded now if it is not. The same spec gives the same model until it is unloaded, also if
    /// what its refs name has changed meanwhile, unless [`Engine::adapters`] was told of the change
    /// ([`crate::Adapters::update`] and the like): it is then loaded anew, and whoever holds the old one keeps that. Calls
    /// that come while it loads wait for that load. Dropping the future gives up; when the last caller has, the load is
    /// cancelled.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`], [`Error::NotRegistered`], [`Error::NotFound`], [`Error::NoBackend`],
    /// [`Error::UnsupportedModelFormat`], [`Error::LoadFailed`], [`Error::InsufficientMemory`] once all idle models are
    /// gone, [`Error::OutOfMemory`]; for anything wrong with an adapter [`Error::AdapterMergeFailed`].
    pub async fn load(&self, spec: &ModelSpec) -> Result<Model> {
        self.load_with_progress(spec, None).await
    }

    /// As [`Engine::load`]; `progress` hears of the load if this call starts it, else of its end alone.
    ///
    /// # Errors
    /// As [`Engine::load`].
    pub async fn load_with_progress(
        &self,
        spec: &ModelSpec,
        progress: Option<Arc<dyn ProgressHandler>>,
    ) -> Result<Model> {
        let model = self.fresh(spec, progress.clone()).await?;
        model.residence().settle();
        if let Some(progress) = &progress {
            progress.on_progress(&ProgressEvent::Loaded);
        }
        Ok(model)
    }

    /// The model of `spec`, which nobody evicts, if this loaded it, before it is [settled](crate::memory::Residence::settle).
    async fn fresh(&self, spec: &ModelSpec, progress: Option<Arc<dyn ProgressHandler>>) -> Result<Model> {
        let cx = self.context(progress);
        let (inner, key, spec) = (self.inner.clone(), Key::new(spec), spec.clone());
        let keep_alive = spec.keep_alive;
        let model = self.inner.slots.get_or_load(key, async move { inner.load(&spec, cx).await }).await?;
        model.residence().keep(keep_alive);
        Ok(model)
    }

    /// Starts a generation with the model of `spec`, which is loaded first if it is not.
    ///
    /// # Errors
    /// As [`Engine::load`]. What is wrong with the request is the generation's first item.
    pub async fn generate(&self, spec: &ModelSpec, request: GenerateRequest) -> Result<Generation> {
        let Ready { model, load, lease: _lease } = self.ready(spec).await?;
        Ok(model.generate_after(request, load))
    }

    /// The model of `spec`, loaded if it was not, in use.
    pub(crate) async fn ready(&self, spec: &ModelSpec) -> Result<Ready> {
        let start = Instant::now();
        loop {
            let (model, load) = match self.inner.slots.loaded(&Key::new(spec)) {
                Some(model) => {
                    model.residence().keep(spec.keep_alive);
                    (model, None)
                }
                None => (self.fresh(spec, None).await?, Some(start.elapsed())),
            };
            let lease = model.residence().lease();
            model.residence().settle();
            // One that was evicted since it was found is loaded anew.
            if let Some(lease) = lease {
                return Ok(Ready { model, load, lease });
            }
        }
    }

    /// The logits after the last token of the input, shape (vocab,), f32, from the model of `spec`, which is loaded
    /// first if it is not.
    ///
    /// # Errors
    /// As [`Engine::load`] and [`llm_local_core::LoadedModel::logits`].
    pub async fn logits(&self, spec: &ModelSpec, request: LogitsRequest) -> Result<Vec<f32>> {
        let Ready { model, lease: _lease, .. } = self.ready(spec).await?;
        model.logits(request).await
    }

    /// Gives the memory of the model of `spec` back, and returns when it is back. Unloading what is not loaded is done
    /// already.
    ///
    /// # Errors
    /// [`Error::LoadInProgress`] while it loads.
    pub async fn unload(&self, spec: &ModelSpec) -> Result<()> {
        match self.inner.slots.unload(&Key::new(spec)) {
            Unloading::Loading => Err(Error::LoadInProgress { model: spec.id() }),
            Unloading::Running(unload) => unload.await,
            Unloading::Done => Ok(()),
        }
    }
}

/// A model that is loaded, and stays so as long as it is in use.
pub(crate) struct Ready {
    pub(crate) model: Model,
    /// How long the load took, if there was one.
    pub(crate) load: Option<Duration>,
    /// Ends when a use of the caller's own has begun.
    pub(crate) lease: Lease,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("plugins", &self.inner.registry)
            .field("cache", &self.inner.transfer.store().root())
            .finish_non_exhaustive()
    }
}

impl Inner {
    /// What runs while the engine is monitoring.
    pub(crate) fn monitor(&self) -> MutexGuard<'_, Option<Monitor>> {
        self.monitor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the next load of specs with the moving adapter ref `reference` be a new one, unless it means `revision`.
    pub(crate) fn detach(&self, reference: &ArtifactRef, revision: Option<&str>) {
        self.slots.detach(reference, |adapter| adapter.is_moving() && Some(adapter.revision.as_str()) != revision);
    }
}
