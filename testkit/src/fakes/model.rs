//! A loaded model that repeats its prompt.

use std::{
    any::Any,
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use llm_local_core::Stream;
use llm_local_core::{
    CancellationToken, Counters, Error, FinishReason, GenerateRequest, Generation, GenerationEvent, GenerationStats,
    LoadedInfo, LoadedModel, LogitsRequest, MemoryReport, Result, Usage, async_trait,
};
use tokio::sync::watch;

use super::{
    backend::Calls,
    echo::{self, EOS, VOCAB},
};

/// Tokens of a prompt that are "computed" in one forward step.
const PREFILL_CHUNK: usize = 64;

/// A model that answers with its prompt, byte by byte, and then ends. It computes nothing ahead: each event is made
/// when it is asked for, so a generation that nobody polls takes no step. Sampling is checked and has no effect.
pub struct FakeModel {
    info: LoadedInfo,
    state: Arc<State>,
    calls: Arc<watch::Sender<Calls>>,
    reservation: Mutex<Option<Box<dyn Any + Send + Sync>>>,
    weights: u64,
}

#[derive(Default)]
struct State {
    unloaded: AtomicBool,
    steps: AtomicU64,
    tokens: AtomicU64,
}

impl State {
    fn step(&self, tokens: usize) {
        self.steps.fetch_add(1, Ordering::SeqCst);
        self.tokens.fetch_add(tokens as u64, Ordering::SeqCst);
    }

    fn prefill(&self, prompt: &[u32]) {
        prompt.chunks(PREFILL_CHUNK).for_each(|chunk| self.step(chunk.len()));
    }
}

impl FakeModel {
    /// Number of logits: one per byte, and the end of the text.
    pub const VOCAB_SIZE: usize = VOCAB;

    pub(super) fn new(
        info: LoadedInfo,
        weights: u64,
        reservation: Option<Box<dyn Any + Send + Sync>>,
        calls: Arc<watch::Sender<Calls>>,
    ) -> Self {
        Self { info, state: Arc::default(), calls, reservation: Mutex::new(reservation), weights }
    }

    fn check(&self) -> Result<()> {
        if self.state.unloaded.load(Ordering::SeqCst) {
            return Err(Error::ModelNotLoaded { model: self.info.model.clone() });
        }
        Ok(())
    }

    fn start(&self, request: GenerateRequest) -> Result<Echo> {
        self.check()?;
        request.validate()?;
        if request.session.is_some() || request.adapters.is_some() {
            return Err(Error::unsupported("a session or adapters of a request", "a fake model has neither"));
        }
        let prompt = echo::tokenize(&request.input, self.info.context_length)?;
        let answer = echo::answer_to(&prompt, &request, self.info.context_length);
        Ok(Echo {
            model: self.info.model.clone(),
            state: self.state.clone(),
            cancel: request.cancel,
            usage: Usage::new(prompt.len(), 0),
            prompt: Some(prompt),
            tokens: answer.tokens.into(),
            tail: answer.tail,
            reason: answer.reason,
            started: Instant::now(),
            first: None,
            prefill: Duration::ZERO,
        })
    }

    fn end(&self) -> bool {
        let first = !self.state.unloaded.swap(true, Ordering::SeqCst);
        if first {
            self.reservation.lock().unwrap_or_else(PoisonError::into_inner).take();
            self.calls.send_modify(|c| c.unloads += 1);
        }
        first
    }
}

#[async_trait]
impl LoadedModel for FakeModel {
    fn info(&self) -> LoadedInfo {
        self.info.clone()
    }

    fn generate(&self, r: GenerateRequest) -> Generation {
        self.calls.send_modify(|c| c.generations += 1);
        match self.start(r) {
            Ok(echo) => Generation::new(echo),
            Err(error) => Generation::failed(error),
        }
    }

    /// 1 for the token that comes next, 0 for the others.
    async fn logits(&self, r: LogitsRequest) -> Result<Vec<f32>> {
        self.check()?;
        if r.adapters.is_some() {
            return Err(Error::unsupported("adapters of a request", "a fake model has none"));
        }
        let prompt = echo::tokenize(&r.input, self.info.context_length)?;
        self.state.prefill(&prompt);
        let mut logits = vec![0.0; VOCAB];
        logits[echo::answer(&prompt, 0) as usize] = 1.0;
        Ok(logits)
    }

    fn memory(&self) -> MemoryReport {
        MemoryReport::new(if self.check().is_ok() { self.weights } else { 0 }, 0)
    }

    fn counters(&self) -> Counters {
        Counters::new(self.state.steps.load(Ordering::SeqCst), self.state.tokens.load(Ordering::SeqCst))
    }

    async fn unload(&self) -> Result<()> {
        self.end();
        Ok(())
    }
}

impl Drop for FakeModel {
    fn drop(&mut self) {
        self.end();
    }
}

/// A running answer.
struct Echo {
    model: String,
    state: Arc<State>,
    cancel: CancellationToken,
    prompt: Option<Vec<u32>>,
    tokens: VecDeque<(u32, String)>,
    tail: String,
    reason: FinishReason,
    usage: Usage,
    started: Instant,
    first: Option<Instant>,
    prefill: Duration,
}

impl Echo {
    fn finished(&mut self, reason: FinishReason) -> GenerationEvent {
        let mut stats = GenerationStats::default();
        stats.time_to_first_token = self.first.map(|at| at - self.started);
        if self.prompt.is_none() {
            stats.prefill = self.prefill;
            stats.prefill_tokens = self.usage.prompt_tokens;
        }
        if let Some(first) = self.first {
            stats.decode = first.elapsed();
            stats.decode_tokens = self.usage.generated_tokens - 1;
        }
        GenerationEvent::finished(reason, self.usage, stats)
    }

    fn advance(&mut self) -> Result<GenerationEvent> {
        if self.state.unloaded.load(Ordering::SeqCst) {
            return Err(Error::ModelNotLoaded { model: self.model.clone() });
        }
        if self.cancel.is_cancelled() {
            return Ok(self.finished(FinishReason::Cancelled));
        }
        match self.prompt.take() {
            Some(prompt) => {
                let before = Instant::now();
                self.state.prefill(&prompt);
                self.prefill = before.elapsed();
            }
            None if !self.tokens.is_empty() || self.reason == FinishReason::Eos => self.state.step(1),
            None => {}
        }
        if let Some((id, text)) = self.tokens.pop_front() {
            debug_assert!(id <= EOS);
            self.first.get_or_insert_with(Instant::now);
            self.usage.generated_tokens += 1;
            return Ok(GenerationEvent::token(id, text));
        }
        if !self.tail.is_empty() {
            return Ok(GenerationEvent::Text(std::mem::take(&mut self.tail)));
        }
        Ok(self.finished(self.reason))
    }
}

impl Stream for Echo {
    type Item = Result<GenerationEvent>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(Some(self.advance()))
    }
}
