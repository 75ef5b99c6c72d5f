//! A backend whose models do with their unloading what they may and should not.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use llm_local::{
    Error, GenerateRequest, Generation, Result,
    core::{
        CancellationToken, Counters, DeviceInfo, InferenceBackend, LoadOptions, LoadedInfo, LoadedModel, LogitsRequest,
        MemoryEstimate, MemoryReport, ModelInfo, ModelWeights, Support, TrimLevel, async_trait,
    },
};
use llm_local_testkit::fakes::FakeBackend;

use crate::world::Setup;

/// How often one engine asks for unloads in a test at most: more often it does so for ever.
const MOST_UNLOADS: usize = 1000;

/// What the models do.
#[derive(Default)]
pub(crate) struct Manners {
    /// They keep the reservation for as long as they live, and not until they are unloaded.
    pub(crate) keep_reservation: bool,
    /// Their unload goes on while it is polled alone, and not before this is cancelled.
    pub(crate) unload_after: Option<CancellationToken>,
    /// They cannot be unloaded.
    pub(crate) fail_to_unload: AtomicBool,
    /// The next unload panics.
    pub(crate) panic_in_unload: AtomicBool,
    /// The next trim panics.
    pub(crate) panic_in_trim: AtomicBool,
    pub(crate) unloads: AtomicUsize,
    pub(crate) live: AtomicUsize,
}

impl Manners {
    /// How many models there are, unloaded ones too, whose last handle was not dropped.
    pub(crate) fn live(&self) -> usize {
        self.live.load(SeqCst)
    }

    /// `setup` with a backend whose models have these manners.
    pub(crate) fn of(self: &Arc<Self>, setup: Setup) -> Setup {
        let manners = self.clone();
        setup.wrapped(move |backend| Arc::new(Contrary { backend, manners }))
    }
}

struct Contrary {
    backend: Arc<FakeBackend>,
    manners: Arc<Manners>,
}

#[async_trait]
impl InferenceBackend for Contrary {
    fn name(&self) -> &str {
        self.backend.name()
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>> {
        self.backend.devices()
    }

    fn supports(&self, m: &ModelInfo, o: &LoadOptions) -> Support {
        self.backend.supports(m, o)
    }

    fn estimate(&self, m: &ModelInfo, o: &LoadOptions) -> Result<MemoryEstimate> {
        self.backend.estimate(m, o)
    }

    async fn load(&self, mut w: ModelWeights, o: LoadOptions) -> Result<Arc<dyn LoadedModel>> {
        let reservation = if self.manners.keep_reservation { w.reservation.take() } else { None };
        let model = self.backend.load(w, o).await?;
        self.manners.live.fetch_add(1, SeqCst);
        Ok(Arc::new(Obstinate { model, manners: self.manners.clone(), _reservation: reservation }))
    }
}

struct Obstinate {
    model: Arc<dyn LoadedModel>,
    manners: Arc<Manners>,
    _reservation: Option<Box<dyn Any + Send + Sync>>,
}

impl Drop for Obstinate {
    fn drop(&mut self) {
        self.manners.live.fetch_sub(1, SeqCst);
    }
}

#[async_trait]
impl LoadedModel for Obstinate {
    fn info(&self) -> LoadedInfo {
        self.model.info()
    }

    fn generate(&self, r: GenerateRequest) -> Generation {
        self.model.generate(r)
    }

    async fn logits(&self, r: LogitsRequest) -> Result<Vec<f32>> {
        self.model.logits(r).await
    }

    fn memory(&self) -> MemoryReport {
        self.model.memory()
    }

    fn counters(&self) -> Counters {
        self.model.counters()
    }

    async fn trim(&self, level: TrimLevel) -> Result<u64> {
        assert!(!self.manners.panic_in_trim.swap(false, SeqCst), "this trim panics on purpose");
        self.model.trim(level).await
    }

    async fn unload(&self) -> Result<()> {
        let begun = self.manners.unloads.fetch_add(1, SeqCst);
        assert!(begun < MOST_UNLOADS, "there is no end of unloading");
        assert!(!self.manners.panic_in_unload.swap(false, SeqCst), "this unload panics on purpose");
        if self.manners.fail_to_unload.load(SeqCst) {
            return Err(Error::generation("the device does not answer"));
        }
        if let Some(after) = &self.manners.unload_after {
            after.cancelled().await;
        }
        self.model.unload().await
    }
}
