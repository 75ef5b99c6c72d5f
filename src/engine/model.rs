//! Loaded models, as an application holds them.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
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
    sets::{OwnSet, Sets},
};
use crate::plan::Plan;

/// A model in memory: a handle, cheap to clone. The engine holds one too, until [`crate::Engine::unload`].
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
    unloaded: AtomicBool,
    /// Keep its files from deletion until it is unloaded.
    holds: Mutex<Vec<Hold>>,
}

/// A handle that does not keep the model in memory.
#[derive(Clone)]
pub(crate) struct WeakModel(Weak<Inner>);

impl WeakModel {
    /// The model, unless it was unloaded or dropped.
    pub(crate) fn upgrade(&self) -> Option<Model> {
        let model = Model { inner: self.0.upgrade()? };
        model.is_loaded().then_some(model)
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
        holds: Vec<Hold>,
    ) -> Self {
        let (identity, unloaded, holds) = (Arc::new(identity), AtomicBool::new(false), Mutex::new(holds));
        Self { inner: Arc::new(Inner { loaded, plan, identity, sets, stats, lost, unloaded, holds }) }
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
        let (generation, set) = match request.adapters.as_ref().map(|set| sets.named(set)) {
            None => sets.with_own(|| loaded.generate(request)),
            Some(Ok(set)) => (loaded.generate(request), set),
            Some(Err(error)) => return (Generation::failed(error), sets.own()),
        };
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
        let Inner { loaded, sets, identity, plan, .. } = &*self.inner;
        if !self.is_loaded() {
            return Err(Error::ModelNotLoaded { model: plan.id.clone() });
        }
        sets.replace(loaded, identity, adapters).await
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
        self.inner.loaded.fork_session(from, to).await
    }

    /// What the session has computed. As [`LoadedModel::export_session`].
    ///
    /// # Errors
    /// As [`LoadedModel::export_session`].
    pub async fn export_session(&self, session: &SessionId) -> Result<SessionState> {
        self.inner.loaded.export_session(session).await
    }

    /// Gives the session what [`Model::export_session`] gave. As [`LoadedModel::import_session`].
    ///
    /// # Errors
    /// As [`LoadedModel::import_session`].
    pub async fn import_session(&self, session: &SessionId, state: SessionState) -> Result<()> {
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
        self.inner.unloaded.store(true, Ordering::Release);
        let result = self.inner.loaded.unload().await;
        self.inner.holds.lock().unwrap_or_else(PoisonError::into_inner).clear();
        result
    }

    /// Whether nobody has unloaded it.
    pub fn is_loaded(&self) -> bool {
        !self.inner.unloaded.load(Ordering::Acquire)
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
