//! Loaded models, as an application holds them.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use llm_local_core::{
    Counters, GenerateRequest, Generation, GenerationEvent, LoadedInfo, LoadedModel, LogitsRequest, MemoryReport,
    Result, TrimLevel,
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
    stats: LoadStats,
    unloaded: AtomicBool,
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
    pub(super) fn new(loaded: Arc<dyn LoadedModel>, plan: Plan, stats: LoadStats) -> Self {
        Self { inner: Arc::new(Inner { loaded, plan, stats, unloaded: AtomicBool::new(false) }) }
    }

    /// Starts a generation. It never blocks; what is wrong with the request is the stream's first item.
    pub fn generate(&self, request: GenerateRequest) -> Generation {
        self.inner.loaded.generate(request)
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

    /// How long it took to load.
    pub fn load_stats(&self) -> LoadStats {
        self.inner.stats
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
        self.inner.loaded.unload().await
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

/// The same generation, whose statistics say that it waited `load` for its model.
pub(super) fn with_load_time(generation: Generation, load: Duration) -> Generation {
    Generation::new(generation.map(move |event| {
        event.map(|event| match event {
            GenerationEvent::Finished { reason, usage, mut stats, .. } => {
                stats.load = Some(load);
                GenerationEvent::finished(reason, usage, stats)
            }
            other => other,
        })
    }))
}
