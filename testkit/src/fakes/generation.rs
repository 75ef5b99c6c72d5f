//! A running answer of a fake model.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use llm_local_core::{
    CancellationToken, Error, FinishReason, GenerateRequest, GenerationEvent, GenerationStats, LoadedInfo, Result,
    Stream, Usage,
};

use super::{
    echo::{self, EOS},
    machine::Running,
    model::State,
    sessions::{Held, Waiting},
};

/// A running answer. Each event is made when it is asked for.
pub(super) struct Echo {
    model: String,
    state: Arc<State>,
    /// Until it has ended.
    running: Option<Running>,
    cancel: CancellationToken,
    session: Session,
    /// The prompt, and what was generated.
    sequence: Vec<u32>,
    computed: usize,
    /// What is still to come.
    tokens: VecDeque<(u32, String)>,
    tail: String,
    reason: FinishReason,
    usage: Usage,
    started: Instant,
    first: Option<Instant>,
    prefill: Duration,
}

enum Session {
    None,
    Waiting(Waiting),
    Held(Held),
}

impl Echo {
    pub(super) fn new(request: GenerateRequest, info: &LoadedInfo, state: Arc<State>) -> Result<Self> {
        let prompt = echo::tokenize(&request.input, info.context_length)?;
        let answer = echo::answer_to(&prompt, &request, info.context_length);
        let session = match &request.session {
            Some(s) => {
                Session::Waiting(state.tenancy.sessions.wait_for(s, &info.model, &state.unloaded, &request.cancel))
            }
            None => Session::None,
        };
        Ok(Self {
            model: info.model.clone(),
            running: Some(Running::new(&state.tenancy)),
            state,
            cancel: request.cancel,
            session,
            usage: Usage::new(prompt.len(), 0),
            sequence: prompt,
            computed: 0,
            tokens: answer.tokens.into(),
            tail: answer.tail,
            reason: answer.reason,
            started: Instant::now(),
            first: None,
            prefill: Duration::ZERO,
        })
    }

    fn finished(&mut self, reason: FinishReason) -> GenerationEvent {
        let mut stats = GenerationStats::default();
        stats.time_to_first_token = self.first.map(|at| at - self.started);
        if self.computed > 0 {
            stats.prefill = self.prefill;
            stats.prefill_tokens = self.usage.prompt_tokens - self.usage.cached_tokens;
            stats.decode_tokens = self.computed - self.usage.prompt_tokens;
        }
        if let Some(first) = self.first {
            stats.decode = first.elapsed();
        }
        // Another generation may have it now, even while the consumer holds this one.
        self.session = Session::None;
        self.running = None;
        GenerationEvent::finished(reason, self.usage, stats)
    }

    /// "Computes" what is not computed yet, and tells the session.
    fn compute(&mut self) {
        let before = Instant::now();
        let first = self.computed == 0;
        if let (true, Session::Held(kept)) = (first, &self.session) {
            let same = kept.tokens().iter().zip(&self.sequence).take_while(|(a, b)| a == b).count();
            // The last token is computed always: something must say what comes next.
            self.usage.cached_tokens = same.min(self.sequence.len() - 1);
            self.computed = self.usage.cached_tokens;
        }
        if self.computed == self.sequence.len() {
            return;
        }
        self.state.compute(&self.sequence[self.computed..]);
        self.computed = self.sequence.len();
        if let Session::Held(kept) = &mut self.session {
            kept.set(&self.sequence);
        }
        if first {
            self.prefill = before.elapsed();
        }
    }

    fn advance(&mut self) -> GenerationEvent {
        if !self.tokens.is_empty() || self.reason == FinishReason::Eos {
            self.compute();
        }
        if let Some((id, text)) = self.tokens.pop_front() {
            debug_assert!(id <= EOS);
            self.first.get_or_insert_with(Instant::now);
            self.usage.generated_tokens += 1;
            self.sequence.push(id);
            return GenerationEvent::token(id, text);
        }
        if !self.tail.is_empty() {
            return GenerationEvent::Text(std::mem::take(&mut self.tail));
        }
        self.finished(self.reason)
    }
}

impl Stream for Echo {
    type Item = Result<GenerationEvent>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.state.unloaded.is_cancelled() {
            self.running = None;
            return Poll::Ready(Some(Err(Error::ModelNotLoaded { model: self.model.clone() })));
        }
        if let Session::Waiting(waiting) = &mut self.session {
            self.session = match ready!(waiting.as_mut().poll(cx)) {
                Ok(Some(held)) => Session::Held(held),
                Ok(None) => Session::None,
                Err(error) => return Poll::Ready(Some(Err(error))),
            };
        }
        let event = if self.cancel.is_cancelled() { self.finished(FinishReason::Cancelled) } else { self.advance() };
        Poll::Ready(Some(Ok(event)))
    }
}
