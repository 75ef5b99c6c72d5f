//! Loaded models, as an application holds them.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use futures_util::StreamExt;
use llm_local_core::{
    AdapterSet, Counters, Error, GenerateRequest, Generation, GenerationEvent, LoadedInfo, LoadedModel, LogitsRequest,
    MemoryReport, Result, SessionId, SessionState, TrimLevel, UsedAdapter,
};

use llm_local_source_common::store::Hold;

use super::{
    identity::{Identity, ModelDigest},
    leased::Leased,
    sets::{OwnSet, Sets},
};
use crate::{
    memory::{Lease, Pinned, Residence},
    plan::Plan,
};

/// A model in memory: a handle, cheap to clone. The engine holds one too, until [`crate::Engine::unload`].
///
/// A handle alone does not keep the model in memory. While nobody uses it, the engine may unload it: to make room for another
/// one, when memory runs short, or when its time is over. Calls then give
/// [`ModelNotLoaded`](llm_local_core::Error::ModelNotLoaded). [`crate::Engine::generate`] and [`crate::Session`] load the spec
/// again by themselves; [`Model::pin`] keeps the model.
#[derive(Clone)]
pub struct Model {
    inner: Arc<Inner>,
}

struct Inner {
    loaded: Arc<dyn LoadedModel>,
    plan: Plan,
    identity: Arc<Identity>,
    sets: Sets,
    stats: LoadStats,
    /// [`Model::requantized_error`].
    lost: Option<f64>,
    residence: Residence,
    /// Keep its files from deletion until it is unloaded.
    holds: Mutex<Vec<Hold>>,
}

/// A handle that does not keep the model in memory.
#[derive(Clone)]
pub(crate) struct WeakModel(Weak<Inner>);

impl WeakModel {
    /// The model, unless it was unloaded or dropped.
    pub(crate) fn upgrade(&self) -> Option<Model> {
        self.any().filter(Model::is_loaded)
    }

    /// The model, unless it was dropped.
    pub(crate) fn any(&self) -> Option<Model> {
        Some(Model { inner: self.0.upgrade()? })
    }
}

/// Times of one load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadStats {
    /// Fetching files, reading headers, choosing the backend, and reading and checking adapters.
    pub prepare: Duration,
    /// Reading the weights, merging included, and handing them to the backend; with what is loaded before that to measure
    /// what quantizing again loses.
    pub backend: Duration,
}

impl LoadStats {
    /// All of it.
    pub fn total(&self) -> Duration {
        self.prepare + self.backend
    }
}

impl Model {
    pub(super) fn new(
        loaded: Arc<dyn LoadedModel>,
        plan: Plan,
        identity: Identity,
        sets: Sets,
        (stats, lost): (LoadStats, Option<f64>),
        (residence, holds): (Residence, Vec<Hold>),
    ) -> Self {
        let (identity, holds) = (Arc::new(identity), Mutex::new(holds));
        let model = Self { inner: Arc::new(Inner { loaded, plan, identity, sets, stats, lost, residence, holds }) };
        model.residence().belongs_to(model.downgrade());
        model
    }

    pub(crate) fn residence(&self) -> &Residence {
        &self.inner.residence
    }

    /// A use of it, which keeps it from being evicted.
    fn lease(&self) -> Result<Lease> {
        self.residence().lease().ok_or_else(|| self.not_loaded())
    }

    fn not_loaded(&self) -> Error {
        Error::ModelNotLoaded { model: self.inner.plan.id.clone() }
    }

    pub(crate) fn downgrade(&self) -> WeakModel {
        WeakModel(Arc::downgrade(&self.inner))
    }

    pub(crate) fn identity(&self) -> &Arc<Identity> {
        &self.inner.identity
    }

    pub(super) fn sets(&self) -> &Sets {
        &self.inner.sets
    }

    /// The adapters that requests have now which name none.
    pub(crate) fn own_set(&self) -> Arc<OwnSet> {
        self.inner.sets.own()
    }

    /// Starts a generation. It never blocks; what is wrong with the request is the stream's first item, as
    /// [`llm_local_core::Error::AdapterMergeFailed`] for a set of adapters that was not made for this model
    /// ([`crate::Engine::adapter_set`]), and for any where the model was loaded with its adapters merged.
    pub fn generate(&self, request: GenerateRequest) -> Generation {
        self.generate_after(request, None)
    }

    /// As [`Model::generate`], for a request that waited `load` for the model to load.
    pub(crate) fn generate_after(&self, request: GenerateRequest, load: Option<Duration>) -> Generation {
        self.start(request, load).0
    }

    /// As [`Model::generate_after`], with the adapters that the generation has: the model's own, unless it names others.
    pub(crate) fn start(&self, request: GenerateRequest, load: Option<Duration>) -> (Generation, Arc<OwnSet>) {
        let Inner { loaded, sets, .. } = &*self.inner;
        let mut request = request;
        // Of its own, so that it can be stopped when memory is short.
        let own = request.cancel.child_token();
        let Some(lease) = self.residence().lease_stoppable(own.clone()) else {
            return (Generation::failed(self.not_loaded()), sets.own());
        };
        let cancel = std::mem::replace(&mut request.cancel, own);
        let (generation, set) = match request.adapters.as_ref().map(|set| sets.named(set)) {
            None => sets.with_own(|| loaded.generate(request)),
            Some(Ok(set)) => (loaded.generate(request), set),
            Some(Err(error)) => return (Generation::failed(error), sets.own()),
        };
        let generation = Generation::new(Leased::new(generation, lease, cancel));
        let has_nothing_to_add = load.is_none() && set.is_surely_empty();
        (if has_nothing_to_add { generation } else { with_stats(generation, load, set.clone()) }, set)
    }

    /// Replaces the adapters that the model has where a request names none, without loading the base anew; no adapters give
    /// the base alone. It takes its place in the line of requests: those made before keep the adapters that they started
    /// with, to their end, and those made after have the new ones. What [sessions](crate::Session) computed with the ones
    /// before is computed anew. Whoever loads the same spec meanwhile gets this model, with these adapters. Dropping the
    /// future does not take it back once it is in line.
    ///
    /// The adapters of a set are summed, whatever the spec's [`combination`](llm_local_core::ModelSpec::combination) is.
    ///
    /// Where the adapters are merged into the weights, the tensors that the ones before touched and the new ones touch are
    /// read anew from the base's files, with the new ones merged in, and then replaced at once: nothing is subtracted, and
    /// the model is to the bit as one that was loaded so; where these tensors are quantized, as one that was loaded so with
    /// [`AdapterPolicy::MergeDequantized`](llm_local_core::AdapterPolicy::MergeDequantized). A model that was loaded with
    /// [`AdapterPolicy::MergeRequantized`](llm_local_core::AdapterPolicy::MergeRequantized) takes no adapters for tensors that
    /// are quantized, other than those that it has, since only a load measures what is lost when such a tensor is quantized
    /// again; no adapters, and adapters for other tensors, it takes. The change gets in line once the headers of the base were
    /// read. While these tensors are read no other request goes on, and they take memory twice, the ones before for as long
    /// as requests made before run.
    ///
    /// # Errors
    /// [`llm_local_core::Error::AdapterMergeFailed`] for a set that was not made for this model
    /// ([`crate::Engine::adapter_set`]) or exceeds the [limits](crate::AdapterLimits), for a model whose backend can neither
    /// run adapters nor replace tensors, and for what the backend refuses; where they are merged, also for a base whose
    /// files have changed or go wrong, sums that are not finite, too little memory, a set for quantized tensors of a model
    /// that was loaded to quantize them again, and a set with which the model would have another vocabulary, or a head tied
    /// or untied: load another spec for that; [`llm_local_core::Error::ModelNotLoaded`]. The adapters are then as before.
    pub async fn set_adapters(&self, adapters: AdapterSet) -> Result<()> {
        let Inner { loaded, sets, identity, .. } = &*self.inner;
        let _lease = self.lease()?;
        let memory = self.residence().memory();
        sets.replace(loaded, identity, adapters, &|| memory.free()).await
    }

    /// The adapters that it has where a request names none: those of its spec, merged or beside the weights, until
    /// [`Model::set_adapters`] replaces them.
    pub async fn adapters(&self) -> Vec<UsedAdapter> {
        self.own_set().settled().await.used().to_vec()
    }

    /// The logits after the last token of the input: shape (vocab,), f32.
    ///
    /// # Errors
    /// As [`LoadedModel::logits`]; for adapters of the request as [`Model::generate`].
    pub async fn logits(&self, request: LogitsRequest) -> Result<Vec<f32>> {
        if let Some(set) = &request.adapters {
            self.inner.sets.named(set)?;
        }
        let _lease = self.lease()?;
        self.inner.loaded.logits(request).await
    }

    /// What was loaded, and how.
    pub fn info(&self) -> LoadedInfo {
        self.inner.loaded.info()
    }

    /// The plan by which it was loaded.
    pub fn plan(&self) -> &Plan {
        &self.inner.plan
    }

    /// What it is made of, by content, with the adapters that it has now. The first call may read all its files, which takes about as long as loading them.
    ///
    /// # Errors
    /// [`llm_local_core::Error::Io`]; [`llm_local_core::Error::LoadFailed`] if a file has changed since it was loaded.
    pub async fn digest(&self) -> Result<ModelDigest> {
        let base = self.inner.identity.base().await?;
        Ok(ModelDigest { base, adapters: self.own_set().settled().await.digest().to_owned() })
    }

    /// Whether it keeps KV caches between requests, so that a request may name a [`SessionId`].
    pub fn keeps_sessions(&self) -> bool {
        self.inner.plan.model.as_ref().is_some_and(|m| m.capabilities.sessions)
    }

    /// How long it took to load.
    pub fn load_stats(&self) -> LoadStats {
        self.inner.stats
    }

    /// Which part of its adapters' effect was lost when it was loaded, of a model that
    /// [`AdapterPolicy::MergeRequantized`](llm_local_core::AdapterPolicy::MergeRequantized) quantized again: 0 is none, 1 as
    /// much as they do.
    pub fn requantized_error(&self) -> Option<f64> {
        self.inner.lost
    }

    /// Forgets a session and frees its KV cache. As [`LoadedModel::end_session`]. [`crate::Session`] does this, and the
    /// three that follow, by itself.
    ///
    /// # Errors
    /// As [`LoadedModel::end_session`].
    pub async fn end_session(&self, session: SessionId) -> Result<()> {
        self.inner.loaded.end_session(session).await
    }

    /// Gives the session `to` what the session `from` has computed. As [`LoadedModel::fork_session`].
    ///
    /// # Errors
    /// As [`LoadedModel::fork_session`].
    pub async fn fork_session(&self, from: &SessionId, to: SessionId) -> Result<()> {
        let _lease = self.lease()?;
        self.inner.loaded.fork_session(from, to).await
    }

    /// What the session has computed. As [`LoadedModel::export_session`].
    ///
    /// # Errors
    /// As [`LoadedModel::export_session`].
    pub async fn export_session(&self, session: &SessionId) -> Result<SessionState> {
        let _lease = self.lease()?;
        self.inner.loaded.export_session(session).await
    }

    /// Gives the session what [`Model::export_session`] gave. As [`LoadedModel::import_session`].
    ///
    /// # Errors
    /// As [`LoadedModel::import_session`].
    pub async fn import_session(&self, session: &SessionId, state: SessionState) -> Result<()> {
        let _lease = self.lease()?;
        self.inner.loaded.import_session(session, state).await
    }

    /// Bytes that it holds now, by part.
    pub fn memory(&self) -> MemoryReport {
        self.inner.loaded.memory()
    }

    /// What was computed since it was loaded.
    pub fn counters(&self) -> Counters {
        self.inner.loaded.counters()
    }

    /// Frees what can be rebuilt. Returns the bytes freed.
    ///
    /// # Errors
    /// As [`LoadedModel::trim`].
    pub async fn trim(&self, level: TrimLevel) -> Result<u64> {
        self.inner.loaded.trim(level).await
    }

    /// Gives its memory back, and returns when it is back. Generations end with
    /// [`llm_local_core::Error::ModelNotLoaded`]; the engine loads the spec anew when it is asked for again.
    ///
    /// # Errors
    /// As [`LoadedModel::unload`].
    pub async fn unload(&self) -> Result<()> {
        self.residence().leave();
        let result = self.inner.loaded.unload().await;
        self.residence().unloaded(self, &result);
        self.inner.holds.lock().unwrap_or_else(PoisonError::into_inner).clear();
        result
    }

    /// Whether nobody has unloaded it: neither its holders, nor the engine, which unloads models that nobody uses when
    /// their memory is needed, or their time is over ([`crate::memory`]).
    pub fn is_loaded(&self) -> bool {
        self.residence().is_ready()
    }

    /// Keeps it in memory until what is returned is dropped.
    ///
    /// # Errors
    /// [`llm_local_core::Error::ModelNotLoaded`].
    pub fn pin(&self) -> Result<Pinned> {
        let _lease = self.lease()?;
        Ok(Pinned::new(self.clone()))
    }

    /// Whether both are handles of one model in memory.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("info", &self.info()).finish_non_exhaustive()
    }
}

/// The same generation, whose statistics say that it waited `load` for its model, and which adapters it had.
fn with_stats(generation: Generation, load: Option<Duration>, set: Arc<OwnSet>) -> Generation {
    Generation::new(generation.then(move |event| {
        let set = set.clone();
        async move {
            Ok(match event? {
                GenerationEvent::Finished { reason, usage, mut stats, .. } => {
                    stats.load = load.or(stats.load);
                    stats.adapters = set.settled().await.used().to_vec();
                    GenerationEvent::finished(reason, usage, stats)
                }
                other => other,
            })
        }
    }))
}
