//! A backend whose models are one matrix, with adapters beside it, and with one thing wrong.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
};

use llm_local_core::{
    AdapterSet, Capabilities, DeviceInfo, DeviceKind, Error, FinishReason, FloatType, GenerateRequest, Generation,
    GenerationEvent, InferenceBackend, Input, LoadOptions, LoadedInfo, LoadedModel, LogitsRequest, LoraModule,
    MemoryEstimate, MemoryReport, ModelFormat, ModelInfo, ModelWeights, Result, SessionId, Stream, Support, TensorData,
    TextFiles, Usage, async_trait, lora::Floats,
};

use crate::fakes::MemoryTensorSource;

pub(super) const VOCAB: usize = 16;
pub(super) const WIDTH: usize = 3;

/// What is wrong with a backend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Wrong {
    Nothing,
    RunsNone,
    RunsNoneButSaysNothing,
    RunsNoneByAnotherError,
    RunsNoneButInRequests,
    LoadIgnores,
    RequestIgnored,
    RequestKept,
    SwapIgnored,
    EmptyIsOwn,
    WeightIgnored,
    LastAlone,
    BaseWhereZero,
    GeneratesAsBase,
    SwapsRunning,
    SwapsWaiting,
    CacheOfAll,
    CacheByName,
    CacheByDigests,
    CacheOfOwn,
    EndForgetsOne,
    LeavesOut,
    AnyShape,
    NotFinite,
    OtherError,
    Unnamed,
    HalfSwapped,
    KeepsWeights,
    SwapsUnloaded,
}

/// Weights of the matrix, `change` added to them.
pub(super) fn weights(change: impl Fn(usize) -> f32) -> ModelWeights {
    let w: Vec<f32> = (0..VOCAB * WIDTH).map(|i| (i as f32 * 1.7).sin() + change(i)).collect();
    let tensors = MemoryTensorSource::new().with_floats("w", &[VOCAB, WIDTH], FloatType::F32, &w);
    let info = ModelInfo::new("m", ModelFormat::Gguf { metadata: Arc::default() }, vec![]);
    ModelWeights::new(Arc::new(info), Some(Arc::new(tensors)), TextFiles::default())
}

#[derive(Debug)]
pub(super) struct Backend(pub(super) Wrong);

#[async_trait]
impl InferenceBackend for Backend {
    fn name(&self) -> &str {
        "linear"
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>> {
        Ok(vec![DeviceInfo::new("cpu", DeviceKind::Cpu, "a processor that is not there")])
    }

    fn supports(&self, _: &ModelInfo, _: &LoadOptions) -> Support {
        let none = matches!(
            self.0,
            Wrong::RunsNone
                | Wrong::RunsNoneButSaysNothing
                | Wrong::RunsNoneByAnotherError
                | Wrong::RunsNoneButInRequests
        );
        Support::Yes(Capabilities::new().with_unmerged(!none).with_sessions(true))
    }

    fn estimate(&self, _: &ModelInfo, _: &LoadOptions) -> Result<MemoryEstimate> {
        Ok(MemoryEstimate::new(0, 0))
    }

    async fn load(&self, w: ModelWeights, o: LoadOptions) -> Result<Arc<dyn LoadedModel>> {
        let tensors = w.tensors.expect("weights");
        let matrix = match tensors.read("w", Some(FloatType::F32))? {
            TensorData::F32(v) => v,
            TensorData::Borrowed(bytes) => bytes.chunks_exact(4).map(float).collect(),
            TensorData::Bytes(bytes) => bytes.chunks_exact(4).map(float).collect(),
            other => panic!("{other:?}"),
        };
        let set = w.adapters.iter().fold(AdapterSet::new(), |set, (a, weight)| set.with(a.clone(), *weight));
        match self.0 {
            _ if set.is_empty() => {}
            Wrong::RunsNone | Wrong::RunsNoneButInRequests => return Err(unsupported()),
            Wrong::RunsNoneByAnotherError => return Err(Error::adapter("an adapter", "there is no place for it")),
            _ => {}
        }
        check(self.0, &set)?;
        let own = if self.0 == Wrong::LoadIgnores { AdapterSet::new() } else { set };
        let state = State { matrix, own, caches: HashMap::new(), loaded: true };
        Ok(Arc::new(Linear { wrong: self.0, context: o.context_length, state: Arc::new(Mutex::new(state)) }))
    }
}

fn float(bytes: &[u8]) -> f32 {
    f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn f32s(values: &Floats) -> &[f32] {
    match values {
        Floats::F32(v) => v,
        other => panic!("{other:?}"),
    }
}

fn unsupported() -> Error {
    Error::unsupported("adapters", "there is no place for them")
}

/// Whether all of the set fits.
fn check(wrong: Wrong, set: &AdapterSet) -> Result<()> {
    for (adapter, _) in &set.adapters {
        for module in &adapter.modules {
            let unknown = module.name != "m";
            let misshaped = (module.in_features, module.out_features) != (WIDTH, VOCAB);
            let infinite = f32s(&module.a).iter().chain(f32s(&module.b)).any(|x| !x.is_finite());
            let passes = match wrong {
                Wrong::LeavesOut => !misshaped && !infinite,
                Wrong::AnyShape => !unknown && !infinite,
                Wrong::NotFinite => !unknown && !misshaped,
                _ => !unknown && !misshaped && !infinite,
            };
            if !passes {
                return Err(match wrong {
                    Wrong::OtherError => Error::load("m", format!("{} does not fit", adapter.reference)),
                    Wrong::Unnamed => Error::adapter("an adapter", "it does not fit"),
                    _ => Error::adapter(&adapter.reference, "it does not fit"),
                });
            }
        }
    }
    Ok(())
}

struct State {
    matrix: Vec<f32>,
    own: AdapterSet,
    caches: HashMap<(SessionId, String), Vec<u32>>,
    loaded: bool,
}

impl State {
    fn logits(&self, wrong: Wrong, set: &AdapterSet, tokens: &[u32]) -> Vec<f32> {
        let sum: f32 = tokens.iter().enumerate().map(|(i, t)| (i as f32 + 1.3) * (*t as f32 + 0.7)).sum();
        let x: Vec<f32> = (0..WIDTH).map(|j| (sum * (j as f32 + 0.9)).sin()).collect();
        let product = |row: &[f32]| row.iter().zip(&x).map(|(a, b)| a * b).sum::<f32>();
        let mut y: Vec<f32> = self.matrix.chunks_exact(WIDTH).map(product).collect();
        let first = if wrong == Wrong::LastAlone { set.adapters.len().saturating_sub(1) } else { 0 };
        for (adapter, weight) in &set.adapters[first..] {
            let weight = match wrong {
                Wrong::WeightIgnored => 1.0,
                Wrong::BaseWhereZero if *weight == 0.0 => 1.0,
                _ => *weight,
            };
            for module in adapter.modules.iter().filter(|m| m.name == "m" && m.in_features == WIDTH) {
                add(&mut y, module, weight, &product);
            }
        }
        y
    }
}

fn add(y: &mut [f32], module: &LoraModule, weight: f32, product: &dyn Fn(&[f32]) -> f32) {
    let narrow: Vec<f32> = f32s(&module.a).chunks_exact(WIDTH).map(product).collect();
    for (y, b) in y.iter_mut().zip(f32s(&module.b).chunks_exact(module.rank)) {
        *y += weight * module.scale as f32 * b.iter().zip(&narrow).map(|(b, n)| b * n).sum::<f32>();
    }
}

struct Linear {
    wrong: Wrong,
    context: usize,
    state: Arc<Mutex<State>>,
}

impl Linear {
    fn is(&self, wrong: Wrong) -> bool {
        self.wrong == wrong
    }

    fn state(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.state.lock().unwrap();
        if state.loaded { Ok(state) } else { Err(Error::ModelNotLoaded { model: "m".into() }) }
    }

    /// The set of a request; `None` stands for whatever is the model's own when it is asked.
    fn named(&self, state: &mut State, set: Option<AdapterSet>) -> Result<Option<AdapterSet>> {
        let Some(set) = set else { return Ok(None) };
        if self.is(Wrong::RunsNone) || self.is(Wrong::RunsNoneByAnotherError) {
            return Err(unsupported());
        }
        check(self.wrong, &set)?;
        if self.is(Wrong::RequestKept) {
            state.own = set.clone();
        }
        let ignored = self.is(Wrong::RequestIgnored) || self.is(Wrong::EmptyIsOwn) && set.is_empty();
        Ok((!ignored).then_some(set))
    }
}

fn tokens(input: Input) -> Vec<u32> {
    match input {
        Input::Tokens(tokens) => tokens,
        Input::Text(text) => text.bytes().map(u32::from).collect(),
        other => panic!("{other:?}"),
    }
}

/// A generation that computes a token when it is asked for one.
struct Running {
    wrong: Wrong,
    state: Arc<Mutex<State>>,
    set: Option<AdapterSet>,
    session: Option<SessionId>,
    tokens: Vec<u32>,
    prompt: usize,
    cached: usize,
    left: usize,
    began: bool,
}

impl Stream for Running {
    type Item = Result<GenerationEvent>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let mut state = this.state.lock().unwrap();
        let mut set = this.set.clone().unwrap_or_else(|| state.own.clone());
        // Where the model's own set is looked up late, it is another one by then.
        if this.set.is_none() && this.wrong != Wrong::SwapsRunning {
            this.set = Some(set.clone());
        }
        if this.wrong == Wrong::GeneratesAsBase {
            set = AdapterSet::new();
        }
        if !this.began {
            this.began = true;
            if let Some(session) = &this.session {
                let key = match this.wrong {
                    Wrong::CacheOfAll => String::new(),
                    Wrong::CacheByName => {
                        set.adapters.iter().map(|(a, w)| format!("{}*{w}", a.reference)).collect::<Vec<_>>().join("+")
                    }
                    Wrong::CacheByDigests => set.adapters.iter().map(|(a, _)| a.digest.as_str()).collect(),
                    Wrong::CacheOfOwn if set == state.own => "own".into(),
                    _ => set.digest(),
                };
                let cache = state.caches.entry((session.clone(), key)).or_default();
                let common = cache.iter().zip(&this.tokens).take_while(|(x, y)| x == y).count();
                this.cached = common.min(this.tokens.len() - 1);
                *cache = this.tokens.clone();
            }
        }
        if this.left == 0 {
            let usage = Usage::new(this.prompt, this.tokens.len() - this.prompt).with_cached_tokens(this.cached);
            let end = GenerationEvent::finished(FinishReason::Length, usage, Default::default());
            return Poll::Ready(Some(Ok(end)));
        }
        this.left -= 1;
        let logits = state.logits(this.wrong, &set, &this.tokens);
        let best = (0..VOCAB).max_by(|x, y| logits[*x].total_cmp(&logits[*y])).unwrap() as u32;
        this.tokens.push(best);
        Poll::Ready(Some(Ok(GenerationEvent::token(best, "t"))))
    }
}

#[async_trait]
impl LoadedModel for Linear {
    fn info(&self) -> LoadedInfo {
        let device = DeviceInfo::new("cpu", DeviceKind::Cpu, "a processor that is not there");
        LoadedInfo::new("m", "linear", device, FloatType::F32, self.context, VOCAB)
    }

    fn generate(&self, r: GenerateRequest) -> Generation {
        let begun = self.state().and_then(|mut state| {
            let own = state.own.clone();
            Ok(self.named(&mut state, r.adapters)?.or_else(|| {
                let late = self.is(Wrong::SwapsRunning) || self.is(Wrong::SwapsWaiting);
                (!late).then_some(own)
            }))
        });
        let set = match begun {
            Ok(set) => set,
            Err(error) => return Generation::failed(error),
        };
        let tokens = tokens(r.input);
        Generation::new(Running {
            wrong: self.wrong,
            state: self.state.clone(),
            set,
            session: r.session,
            prompt: tokens.len(),
            tokens,
            cached: 0,
            left: r.max_tokens.expect("max_tokens"),
            began: false,
        })
    }

    async fn logits(&self, r: LogitsRequest) -> Result<Vec<f32>> {
        let mut state = self.state()?;
        let own = state.own.clone();
        let set = self.named(&mut state, r.adapters)?.unwrap_or(own);
        Ok(state.logits(self.wrong, &set, &tokens(r.input)))
    }

    async fn set_adapters(&self, a: AdapterSet) -> Result<()> {
        if self.is(Wrong::RunsNone) || self.is(Wrong::RunsNoneByAnotherError) {
            return Err(unsupported());
        }
        let mut state = match self.state() {
            Err(_) if self.is(Wrong::SwapsUnloaded) => return Ok(()),
            state => state?,
        };
        if self.is(Wrong::HalfSwapped) {
            state.own = AdapterSet::new();
        }
        check(self.wrong, &a)?;
        if !self.is(Wrong::SwapIgnored) {
            state.own = a;
        }
        if !self.is(Wrong::CacheOfOwn) {
            state.caches.clear();
        }
        Ok(())
    }

    async fn end_session(&self, s: SessionId) -> Result<()> {
        let mut state = self.state()?;
        if self.is(Wrong::EndForgetsOne) {
            let own = state.own.digest();
            state.caches.remove(&(s, own));
        } else {
            state.caches.retain(|(session, _), _| *session != s);
        }
        Ok(())
    }

    fn memory(&self) -> MemoryReport {
        let state = self.state.lock().unwrap();
        let weights = if state.loaded || self.is(Wrong::KeepsWeights) { 4 * state.matrix.len() } else { 0 };
        MemoryReport::new(weights as u64, state.caches.values().map(|tokens| tokens.len() as u64).sum())
    }

    async fn unload(&self) -> Result<()> {
        self.state.lock().unwrap().loaded = false;
        Ok(())
    }
}
