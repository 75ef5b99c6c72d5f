//! A machine with a fake backend, whose models hold of its memory what they were estimated to, and an engine on it.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use llm_local::{
    ArtifactRef, BackendPreference, Engine, EngineBuilder, ModelSpec, Registry, Result,
    core::{
        AdapterSource, ArtifactSource, Capabilities, FetchContext, InferenceBackend, LoadOptions, Manifest,
        ManifestFile, MemoryEstimate, ModelInfo, ModelSource, Opened, Support, Want, async_trait,
    },
    memory::{MemoryEvent, MemoryEvents, MemoryPolicy, MemoryStatus, ResidentStatus, ScriptedProbe, SystemMemory},
};
use llm_local_testkit::fakes::{FakeBackend, Happening};

pub(crate) const MB: u64 = 1_000_000;
pub(crate) const GB: u64 = 1_000_000_000;

/// What a model takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) weights: u64,
    /// Bytes for each token of its context.
    pub(crate) token: u64,
    /// Bytes that its load takes for a moment.
    pub(crate) peak: u64,
}

impl Size {
    pub(crate) fn of(weights: u64) -> Self {
        Self { weights, token: 0, peak: 0 }
    }

    pub(crate) fn with_token(self, token: u64) -> Self {
        Self { token, ..self }
    }

    pub(crate) fn with_peak(self, peak: u64) -> Self {
        Self { peak, ..self }
    }

    pub(crate) fn estimate(&self, context: usize) -> MemoryEstimate {
        MemoryEstimate::new(self.weights, self.token * context as u64).with_load_peak(self.peak)
    }
}

/// What happened, in its order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Entry {
    Event(MemoryEvent),
    Backend(Happening),
}

/// What is written down while an engine works.
#[derive(Default)]
pub(crate) struct Journal {
    entries: Mutex<Vec<Entry>>,
    events: Mutex<Option<MemoryEvents>>,
    /// The model whose task is being polled.
    current: Mutex<Option<String>>,
    /// Loads whose files are being looked for, on threads, with how often each asked for memory meanwhile: a first time to choose
    /// its context, and a second time to be let in. From then on no thread but the test's has to do with it.
    preparing: Mutex<HashMap<String, u32>>,
}

impl Journal {
    fn write(&self, entry: Entry) {
        // What the engine has said before that.
        self.drain();
        lock(&self.entries).push(entry);
    }

    fn drain(&self) {
        let mut events = lock(&self.events);
        while let Some(event) = events.as_mut().and_then(MemoryEvents::try_next) {
            lock(&self.entries).push(Entry::Event(event));
        }
    }

    /// What happened since this was called last.
    pub(crate) fn take(&self) -> Vec<Entry> {
        self.drain();
        std::mem::take(&mut *lock(&self.entries))
    }

    fn measured(&self) {
        self.drain();
        if let Some(current) = &*lock(&self.current) {
            let mut preparing = lock(&self.preparing);
            if let Some(times) = preparing.get_mut(current) {
                *times += 1;
                if *times == 2 {
                    preparing.remove(current);
                }
            }
        }
    }

    pub(crate) fn set_current(&self, model: Option<&str>) {
        *lock(&self.current) = model.map(str::to_owned);
    }

    /// Says that no load of the model is under way any more.
    pub(crate) fn is_over(&self, model: &str) {
        lock(&self.preparing).remove(model);
    }

    pub(crate) fn is_preparing(&self, model: &str) -> bool {
        lock(&self.preparing).contains_key(model)
    }
}

/// A source of models without files, by their ids.
struct Nowhere(Arc<Journal>);

#[async_trait]
impl ArtifactSource for Nowhere {
    fn scheme(&self) -> &str {
        "file"
    }

    async fn resolve(&self, reference: &ArtifactRef, want: Want, _: &FetchContext) -> Result<Manifest> {
        let model = reference.locator().trim_start_matches('/').to_owned();
        lock(&self.0.preparing).insert(model, 0);
        Manifest::new(reference.clone(), want, "1", Vec::new())
    }

    async fn open(
        &self,
        manifest: &Manifest,
        file: &ManifestFile,
        _: std::ops::Range<u64>,
        _: &FetchContext,
    ) -> Result<Opened> {
        panic!("{} of {} was opened, but it has no files", file.path, manifest.reference)
    }
}

impl ModelSource for Nowhere {}
impl AdapterSource for Nowhere {}

/// A machine and an engine.
pub(crate) struct World {
    pub(crate) engine: Engine,
    pub(crate) backend: Arc<FakeBackend>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) probe: ScriptedProbe,
    /// Bytes that others take of the machine.
    pub(crate) others: Arc<AtomicU64>,
    /// Milliseconds.
    clock: Arc<AtomicU64>,
}

/// What a machine is made of.
pub(crate) struct Setup {
    total: u64,
    sizes: BTreeMap<String, Size>,
    policy: MemoryPolicy,
    change: Box<dyn FnOnce(FakeBackend) -> FakeBackend>,
    wrap: Box<Wrap>,
}

type Wrap = dyn FnOnce(Arc<FakeBackend>) -> Arc<dyn InferenceBackend>;

impl Setup {
    /// A machine with `total` bytes, on which models of these `sizes` can be loaded, with a policy that leaves nothing free and
    /// grants everything.
    pub(crate) fn new(total: u64, sizes: &[(&str, Size)]) -> Self {
        let sizes = sizes.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect();
        let policy = MemoryPolicy::new().with_headroom(0.0).with_budget(llm_local::memory::Budget::Share(1.0));
        Self { total, sizes, policy, change: Box::new(|backend| backend), wrap: Box::new(|backend| backend) }
    }

    pub(crate) fn policy(mut self, change: impl FnOnce(MemoryPolicy) -> MemoryPolicy) -> Self {
        self.policy = change(self.policy);
        self
    }

    pub(crate) fn backend(mut self, change: impl FnOnce(FakeBackend) -> FakeBackend + 'static) -> Self {
        let before = self.change;
        self.change = Box::new(move |backend| change(before(backend)));
        self
    }

    /// Has the engine ask what `wrap` makes of the fake backend, which must have its name.
    pub(crate) fn wrapped(
        mut self,
        wrap: impl FnOnce(Arc<FakeBackend>) -> Arc<dyn InferenceBackend> + 'static,
    ) -> Self {
        self.wrap = Box::new(wrap);
        self
    }

    pub(crate) fn build(self) -> World {
        self.build_with(|builder| builder)
    }

    pub(crate) fn build_with(self, change: impl FnOnce(EngineBuilder) -> EngineBuilder) -> World {
        let Self { total, sizes, policy, change: of_backend, wrap } = self;
        let journal = Arc::new(Journal::default());
        let heard = journal.clone();
        let capabilities = Capabilities::new().with_needs_weights(false).with_sessions(true);
        let estimate = move |info: &ModelInfo, options: &LoadOptions| {
            let size = sizes.get(&info.id).unwrap_or_else(|| panic!("there is no model `{}`", info.id));
            size.estimate(options.context_length)
        };
        let backend = FakeBackend::new("fake")
            .with_support(Support::Yes(capabilities))
            .with_estimate_fn(estimate)
            .with_listener(move |happening| heard.write(Entry::Backend(happening.clone())));
        let backend = Arc::new(of_backend(backend));
        let (others, clock) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let probe = {
            let (backend, others, journal) = (Arc::downgrade(&backend), others.clone(), journal.clone());
            ScriptedProbe::from_fn(move || {
                journal.measured();
                let held = backend.upgrade().map_or(0, |backend| backend.held());
                Ok(SystemMemory::new(total, total.saturating_sub(others.load(SeqCst) + held)))
            })
        };
        let time = clock.clone();
        let registry =
            Registry::empty().with_backend(wrap(backend.clone())).with_source(Arc::new(Nowhere(journal.clone())));
        let builder = Engine::builder()
            .registry(registry)
            .cache_dir(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("memory"))
            .memory(policy)
            .memory_probe(probe.clone())
            .memory_clock(move || Duration::from_millis(time.load(SeqCst)));
        let engine = change(builder).build().unwrap();
        *lock(&journal.events) = Some(engine.memory_events());
        World { engine, backend, journal, probe, others, clock }
    }
}

impl World {
    pub(crate) fn pass(&self, time: Duration) {
        self.clock.fetch_add(u64::try_from(time.as_millis()).unwrap(), SeqCst);
    }

    pub(crate) fn now(&self) -> Duration {
        Duration::from_millis(self.clock.load(SeqCst))
    }

    pub(crate) fn set_others(&self, bytes: u64) {
        self.others.store(bytes, SeqCst);
    }

    /// Events since the journal was read last.
    pub(crate) fn events(&self) -> Vec<MemoryEvent> {
        let event = |entry| match entry {
            Entry::Event(event) => Some(event),
            Entry::Backend(_) => None,
        };
        self.journal.take().into_iter().filter_map(event).collect()
    }

    /// Models that are loaded, being loaded or leaving.
    pub(crate) fn models(&self) -> Vec<String> {
        self.status().models.into_iter().map(|resident| resident.model).collect()
    }

    pub(crate) fn status(&self) -> MemoryStatus {
        self.engine.memory_status()
    }

    pub(crate) fn resident(&self, model: &str) -> ResidentStatus {
        let found = self.status().models.into_iter().find(|resident| resident.model == model);
        found.unwrap_or_else(|| panic!("there is no `{model}`"))
    }
}

/// The spec of a model.
pub(crate) fn spec(model: &str) -> ModelSpec {
    let reference: ArtifactRef = format!("file:/{model}").parse().unwrap();
    ModelSpec::new(reference).with_id(model).with_backend(BackendPreference::Named("fake".into()))
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The names of the models that were evicted, in their order.
pub(crate) fn evicted(events: &[MemoryEvent]) -> Vec<&str> {
    let evicted = events.iter().filter_map(|event| match event {
        MemoryEvent::Evicted { model, .. } => Some(model.as_str()),
        _ => None,
    });
    evicted.collect()
}
