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
    Counters, GenerateRequest, Generation, GenerationEvent, LoadedInfo, LoadedModel, LogitsRequest, MemoryReport,
    Result, SessionId, SessionState, TrimLevel, UsedAdapter,
};

use llm_local_source_common::store::Hold;

use super::identity::{Identity, ModelDigest};
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
    stats: LoadStats,
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
    /// Reading the weights, merging included, and handing them to the backend.
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
        stats: LoadStats,
        holds: Vec<Hold>,
    ) -> Self {
        let (identity, unloaded, holds) = (Arc::new(identity), AtomicBool::new(false), Mutex::new(holds));
        Self { inner: Arc::new(Inner { loaded, plan, identity, stats, unloaded, holds }) }
    }

    pub(crate) fn downgrade(&self) -> WeakModel {
        WeakModel(Arc::downgrade(&self.inner))
    }

    pub(crate) fn identity(&self) -> &Arc<Identity> {
        &self.inner.identity
    }

    /// Starts a generation. It never blocks; what is wrong with the request is the stream's first item.
    pub fn generate(&self, request: GenerateRequest) -> Generation {
        self.generate_after(request, None)
    }

    /// As [`Model::generate`], for a request that waited `load` for the model to load.
    pub(crate) fn generate_after(&self, request: GenerateRequest, load: Option<Duration>) -> Generation {
        let generation = self.inner.loaded.generate(request);
        let adapters: Vec<_> = self.plan().adapters.iter().map(|(adapter, weight)| adapter.used(*weight)).collect();
        if load.is_none() && adapters.is_empty() { generation } else { with_stats(generation, load, adapters) }
    }

    /// The logits after the last token of the input: shape (vocab,), f32.
    ///
    /// # Errors
    /// As [`LoadedModel::logits`].
    pub async fn logits(&self, request: LogitsRequest) -> Result<Vec<f32>> {
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

    /// What it is made of, by content. The first call may read all its files, which takes about as long as loading them.
    ///
    /// # Errors
    /// [`llm_local_core::Error::Io`]; [`llm_local_core::Error::LoadFailed`] if a file has changed since it was loaded.
    pub async fn digest(&self) -> Result<ModelDigest> {
        self.inner.identity.digest().await
    }

    /// Whether it keeps KV caches between requests, so that a request may name a [`SessionId`].
    pub fn keeps_sessions(&self) -> bool {
        self.inner.plan.model.as_ref().is_some_and(|m| m.capabilities.sessions)
    }

    /// How long it took to load.
    pub fn load_stats(&self) -> LoadStats {
        self.inner.stats
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

/// The same generation, whose statistics say that it waited `load` for its model, and which `adapters` that has.
fn with_stats(generation: Generation, load: Option<Duration>, mut adapters: Vec<UsedAdapter>) -> Generation {
    Generation::new(generation.map(move |event| {
        event.map(|event| match event {
            GenerationEvent::Finished { reason, usage, mut stats, .. } => {
                stats.load = load.or(stats.load);
                stats.adapters = std::mem::take(&mut adapters);
                GenerationEvent::finished(reason, usage, stats)
            }
            other => other,
        })
    }))
}
