//! The model of these tests.

use std::{
    cell::Cell,
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    time::Duration,
};

use llm_local_core::{
    AdapterSet, DeviceInfo, DeviceKind, Error, FloatType, Generation, GenerationEvent, Input, LoadOptions, LoadedInfo,
    LoadedModel, Result, SessionState, SessionTensor, TextFiles, TrimLevel,
};

use super::kind::spawn_with_clock;
use crate::{
    text::TextPipeline,
    worker::{Built, NewTensors, StepModel},
};

/// Logits of the fixture's model. Its tokenizer has 838 tokens; the rest is padding.
pub(super) const VOCAB: usize = 896;
pub(super) const WEIGHT_BYTES: u64 = 1000;
pub(super) const CACHE_BYTES_PER_TOKEN: u64 = 10;
pub(super) const ADAPTER_BYTES: u64 = 5;

/// One forward step, as the model sees it begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    /// The first token of the prompt: each test gives each request its own.
    pub(super) prompt: u32,
    pub(super) position: usize,
    pub(super) tokens: usize,
}

type Hook = Box<dyn FnMut(Step) -> Result<()> + Send>;
type Truncate = Box<dyn FnMut(usize, usize) -> Result<bool> + Send>;
type Holds = Box<dyn Fn(usize, usize) -> bool + Send>;
type Logits = Box<dyn Fn(&[u32]) -> Vec<f32> + Send>;
type Prepare = Box<dyn FnMut(&AdapterSet) -> Result<()> + Send>;
type Replace = Box<dyn FnMut(&NewTensors) -> Result<()> + Send>;

/// A model to load.
pub(super) struct Setup {
    pub(super) context_length: usize,
    pub(super) prefill_chunk: usize,
    /// Called as each step begins.
    pub(super) hook: Hook,
    /// The logits after these tokens.
    pub(super) logits: Logits,
    /// Called for each cache: a new one, a copy, or one that is imported.
    pub(super) new_cache: Box<dyn FnMut() -> Result<()> + Send>,
    pub(super) keeps_sessions: bool,
    pub(super) runs_adapters: bool,
    /// The model's own.
    pub(super) adapters: AdapterSet,
    /// Called for each set of adapters that is made ready.
    pub(super) prepare: Prepare,
    pub(super) replaces_tensors: bool,
    /// Called when tensors are to be replaced.
    pub(super) replace: Replace,
    /// Whether a cache of so many tokens can be cut to so many.
    pub(super) truncate: Truncate,
    /// Whether a cache made for so many tokens holds so many.
    pub(super) holds: Holds,
    pub(super) trim: Box<dyn FnMut(TrimLevel) -> Result<u64> + Send>,
    /// What is dropped is sent here.
    pub(super) drops: mpsc::Sender<&'static str>,
    /// The named part panics when it is dropped.
    pub(super) panics_on_drop: &'static str,
    pub(super) clock: Arc<AtomicU64>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            context_length: 4096,
            prefill_chunk: 8,
            hook: Box::new(|_| Ok(())),
            logits: Box::new(|tokens| best(next_id(tokens))),
            new_cache: Box::new(|| Ok(())),
            keeps_sessions: false,
            runs_adapters: false,
            adapters: AdapterSet::new(),
            prepare: Box::new(|_| Ok(())),
            replaces_tensors: false,
            replace: Box::new(|_| Ok(())),
            truncate: Box::new(|_, _| Ok(true)),
            holds: Box::new(|_, _| true),
            trim: Box::new(|_| Ok(7)),
            drops: mpsc::channel().0,
            panics_on_drop: "",
            clock: Arc::default(),
        }
    }
}

impl Setup {
    /// A model that keeps sessions, and whose next token depends on every token before.
    pub(super) fn with_sessions() -> Self {
        let logits = |tokens: &[u32]| best(id_after(tokens));
        Self { keeps_sessions: true, logits: Box::new(logits), ..Self::default() }
    }

    pub(super) fn hook(mut self, hook: impl FnMut(Step) -> Result<()> + Send + 'static) -> Self {
        self.hook = Box::new(hook);
        self
    }

    /// Generates these tokens after any prompt of `prompt` tokens.
    pub(super) fn script(mut self, prompt: usize, ids: Vec<u32>) -> Self {
        self.logits = Box::new(move |tokens| best(ids[tokens.len() - prompt]));
        self
    }

    pub(super) fn load(self) -> Arc<dyn LoadedModel> {
        pollster::block_on(self.spawn(&options())).unwrap()
    }

    pub(super) async fn spawn(self, options: &LoadOptions) -> Result<Arc<dyn LoadedModel>> {
        let now = self.clock.clone();
        let clock = Arc::new(move || Duration::from_millis(now.load(Relaxed)));
        spawn_with_clock(options, clock, move || Ok(self.build())).await
    }

    pub(super) fn build(self) -> Built<Fake> {
        let device = DeviceInfo::new("cpu", DeviceKind::Cpu, "a fake");
        Built {
            info: LoadedInfo::new("fake", "fakes", device, FloatType::F32, self.context_length, VOCAB),
            text: text(),
            prefill_chunk: self.prefill_chunk,
            adapters: self.adapters.clone(),
            reservation: Some(Box::new(Dropped("reservation", Mutex::new(self.drops.clone()), ""))),
            model: Fake { asked: Cell::new(0), weights: String::new(), dropped: dropped("model", &self), setup: self },
        }
    }
}

pub(super) struct Fake {
    setup: Setup,
    /// What [`StepModel::holds`] was asked about for the next step.
    asked: Cell<usize>,
    /// What its weights are: the names of the tensors that were replaced last, and what it answers by, as by a digest.
    weights: String,
    #[expect(dead_code, reason = "its drop is what matters")]
    dropped: Dropped,
}

pub(super) struct Cache {
    tokens: Vec<u32>,
    /// Tokens that it was made for.
    made_for: usize,
    /// What its tokens were computed with.
    adapters: Option<String>,
    #[expect(dead_code, reason = "its drop is what matters")]
    dropped: Dropped,
}

/// A set of adapters that is ready.
pub(super) struct Ready {
    digest: String,
    #[expect(dead_code, reason = "its drop is what matters")]
    dropped: Dropped,
}

/// Tells that it is dropped; panics where its name says so.
struct Dropped(&'static str, Mutex<mpsc::Sender<&'static str>>, &'static str);

fn dropped(part: &'static str, setup: &Setup) -> Dropped {
    Dropped(part, Mutex::new(setup.drops.clone()), setup.panics_on_drop)
}

impl Drop for Dropped {
    fn drop(&mut self) {
        // Most tests do not listen.
        let _ = self.1.lock().unwrap().send(self.0);
        assert_ne!(self.0, self.2, "dropped");
    }
}

impl Fake {
    fn cache(&mut self, tokens: &[u32], made_for: usize) -> Result<Cache> {
        (self.setup.new_cache)()?;
        Ok(Cache { tokens: tokens.to_vec(), made_for, adapters: None, dropped: dropped("cache", &self.setup) })
    }
}

impl StepModel for Fake {
    type Cache = Cache;
    type Adapters = Ready;

    fn new_cache(&mut self, prompt: usize) -> Result<Cache> {
        self.cache(&[], prompt)
    }

    fn holds(&self, cache: &Cache, tokens: usize) -> bool {
        self.asked.set(tokens);
        (self.setup.holds)(cache.made_for, tokens)
    }

    fn forward(
        &mut self,
        cache: &mut Cache,
        tokens: &[u32],
        position: usize,
        adapters: Option<&Ready>,
    ) -> Result<Vec<f32>> {
        assert_eq!(cache.tokens.len(), position, "a step begins where the last one ended");
        assert!(!tokens.is_empty());
        let digest = adapters.map_or_else(|| self.weights.clone(), |ready| ready.digest.clone());
        assert_eq!(*cache.adapters.get_or_insert(digest.clone()), digest, "a cache under another set of adapters");
        let asked = self.asked.take();
        assert!((self.setup.holds)(cache.made_for, asked), "a step with a cache that does not hold {asked} tokens");
        assert!(asked >= position + tokens.len(), "asked about {asked} tokens, but there are more");
        cache.tokens.extend_from_slice(tokens);
        assert!(cache.tokens.len() <= self.setup.context_length, "a step beyond the context");
        (self.setup.hook)(Step { prompt: cache.tokens[0], position, tokens: tokens.len() })?;
        Ok((self.setup.logits)(&with_adapters(&digest, &cache.tokens)))
    }

    fn runs_adapters(&self) -> bool {
        self.setup.runs_adapters
    }

    fn prepare_adapters(&mut self, set: &AdapterSet) -> Result<Ready> {
        assert!(!set.is_empty(), "the base alone needs nothing");
        (self.setup.prepare)(set)?;
        Ok(Ready { digest: set.digest(), dropped: dropped("adapters", &self.setup) })
    }

    fn replaces_tensors(&self) -> bool {
        self.setup.replaces_tensors
    }

    fn replace_tensors(&mut self, new: &NewTensors) -> Result<Ready> {
        (self.setup.replace)(new)?;
        let before = std::mem::replace(&mut self.weights, new.names.join(","));
        Ok(Ready { digest: before, dropped: dropped("weights", &self.setup) })
    }

    fn adapter_bytes(&self, _: &Ready) -> u64 {
        ADAPTER_BYTES
    }

    fn weight_bytes(&self) -> u64 {
        WEIGHT_BYTES
    }

    fn cache_bytes(&self, cache: &Cache, positions: usize) -> u64 {
        assert_eq!(cache.tokens.len(), positions);
        positions as u64 * CACHE_BYTES_PER_TOKEN
    }

    fn keeps_sessions(&self) -> bool {
        self.setup.keeps_sessions
    }

    fn truncate(&mut self, cache: &mut Cache, tokens: usize) -> Result<bool> {
        assert!(tokens < cache.tokens.len(), "a cut that cuts nothing");
        let can = (self.setup.truncate)(cache.tokens.len(), tokens)?;
        if can {
            cache.tokens.truncate(tokens);
        }
        Ok(can)
    }

    fn copy_cache(&mut self, cache: &Cache) -> Result<Cache> {
        let copy = self.cache(&cache.tokens, cache.made_for)?;
        Ok(Cache { adapters: cache.adapters.clone(), ..copy })
    }

    fn export_cache(&mut self, cache: &Cache) -> Result<(BTreeMap<String, String>, Vec<SessionTensor>)> {
        Ok((metadata(), vec![tensor(&cache.tokens)]))
    }

    fn import_cache(&mut self, state: &SessionState) -> Result<Cache> {
        if state.metadata != metadata() || state.tensors != [tensor(&state.tokens)] {
            return Err(Error::invalid_spec("state", format!("it is {state:?} with the tensors {:?}", state.tensors)));
        }
        self.cache(&state.tokens, state.tokens.len())
    }

    fn trim(&mut self, level: TrimLevel) -> Result<u64> {
        (self.setup.trim)(level)
    }
}

/// What says that a state is one of this model's.
pub(super) fn metadata() -> BTreeMap<String, String> {
    BTreeMap::from([("format".to_owned(), "fake-1".to_owned())])
}

/// The content of a cache: its tokens.
pub(super) fn tensor(tokens: &[u32]) -> SessionTensor {
    let data = tokens.iter().flat_map(|&id| (id as f32).to_le_bytes()).collect();
    SessionTensor::new("tokens", FloatType::F32, vec![tokens.len()], data)
}

/// Logits with `id` the best.
pub(super) fn best(id: u32) -> Vec<f32> {
    let mut logits = vec![0.0; VOCAB];
    logits[id as usize] = 10.0;
    logits
}

/// What the model generates where a test does not say otherwise: never an end-of-sequence token.
pub(super) fn next_id(tokens: &[u32]) -> u32 {
    100 + (tokens[tokens.len() - 1] + 1) % 700
}

/// What a model with sessions generates after `tokens`: never an end-of-sequence token.
pub(super) fn id_after(tokens: &[u32]) -> u32 {
    let hash = tokens.iter().fold(17_u64, |hash, &id| (hash ^ u64::from(id)).wrapping_mul(0x0100_0000_01b3));
    100 + (hash >> 20) as u32 % 700
}

/// What a model with sessions answers to `prompt`.
pub(super) fn answer(prompt: &[u32], length: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..length {
        tokens.push(id_after(&tokens));
    }
    tokens.split_off(prompt.len())
}

/// What the model sees of `tokens` under the adapters with this digest: something else under each.
fn with_adapters(digest: &str, tokens: &[u32]) -> Vec<u32> {
    digest.bytes().map(u32::from).chain(tokens.iter().copied()).collect()
}

/// What a model with sessions answers to `prompt` with the weights that are called so.
pub(super) fn answer_of(weights: &str, prompt: &[u32], length: usize) -> Vec<u32> {
    answer(&with_adapters(weights, prompt), length)
}

/// What a model with sessions answers to `prompt` with `adapters`.
pub(super) fn answer_with(adapters: &AdapterSet, prompt: &[u32], length: usize) -> Vec<u32> {
    answer(&with_adapters(&adapters.digest(), prompt), length)
}

/// `length` tokens that begin with `first`.
pub(super) fn prompt(first: u32, length: usize) -> Input {
    let mut tokens = vec![5; length];
    tokens[0] = first;
    Input::Tokens(tokens)
}

pub(super) fn options() -> LoadOptions {
    LoadOptions::new(4096)
}

/// The text side of the tiny-llama fixture.
pub(super) fn text() -> TextPipeline {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/models/tiny-llama"));
    let files: BTreeMap<String, PathBuf> =
        ["tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"]
            .into_iter()
            .map(|name| (name.to_owned(), folder.join(name)))
            .collect();
    TextPipeline::open("tiny-llama", &TextFiles::from_files(files)).unwrap()
}

/// A hook that waits, at each step, until the test lets it go on; and the test's side of it.
pub(super) fn gate() -> (impl FnMut(Step) -> Result<()> + Send, Gate) {
    let (entered, steps) = mpsc::channel();
    let (go, may_go) = mpsc::channel();
    let hook = move |step| {
        entered.send(step).map_err(|_| Error::generation("the test has ended"))?;
        // Without a keeper, the gate is open.
        let _ = may_go.recv();
        Ok(())
    };
    (hook, Gate { steps, go })
}

pub(super) struct Gate {
    steps: mpsc::Receiver<Step>,
    go: mpsc::Sender<()>,
}

impl Gate {
    /// Waits until a step has begun. It goes on with [`Gate::pass`].
    pub(super) fn begun(&self) -> Step {
        self.steps.recv().unwrap()
    }

    pub(super) fn pass(&self) {
        self.go.send(()).unwrap();
    }

    /// Lets this and every later step pass. The steps are received from what it returns.
    pub(super) fn open(self) -> mpsc::Receiver<Step> {
        self.steps
    }
}

/// The next event, which is there or will come.
pub(super) fn next(generation: &mut Generation) -> Option<Result<GenerationEvent>> {
    pollster::block_on(generation.next())
}

/// The id of the next event, which must be a token.
pub(super) fn next_token(generation: &mut Generation) -> u32 {
    match next(generation) {
        Some(Ok(GenerationEvent::Token { id, .. })) => id,
        other => panic!("expected a token, found {other:?}"),
    }
}
