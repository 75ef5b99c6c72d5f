//! What a generation does in its turn.

use std::time::Duration;

use llm_local_core::{
    AdapterSet, Error, FinishReason, GenerateRequest, GenerationEvent, GenerationStats, Input, Result, Usage,
};

use super::{
    StepModel,
    adapters::Lease,
    caught,
    claims::{Claim, Claims},
    events::Outlet,
    prompt,
    sequence::{Advance, Sequence},
    sessions::{Key, Sessions},
    task::{Next, Turn},
};
use crate::{
    sampler::Sampler,
    stop::{StopMatcher, StopStep},
    text::TextDecoder,
};

/// A request on its way to the thread.
#[derive(Debug)]
pub(super) struct Requested {
    pub(super) request: GenerateRequest,
    pub(super) outlet: Outlet,
    /// When it was made, by the worker's clock.
    pub(super) at: Duration,
}

/// A generation that takes turns.
pub(super) struct Generating<M: StepModel> {
    request: GenerateRequest,
    /// What it computes with; of a set that the request names, from the first step on.
    adapters: Option<Lease<M::Adapters>>,
    session: Option<OfSession>,
    requested: Duration,
    usage: Usage,
    stats: GenerationStats,
    /// From the first turn on: reading the prompt is work too, and has its turn like any other.
    running: Option<Running<M::Cache>>,
    /// Last, and so dropped last: the consumer sees the end when this is gone, and what it looks at then, such as the memory in
    /// use, is without all of the above.
    outlet: Outlet,
}

/// The session of a generation.
struct OfSession {
    key: Key,
    /// Dropped with the generation, which lets the next one have the session.
    claim: Claim,
}

struct Running<C> {
    sequence: Sequence<C>,
    sampler: Sampler,
    decoder: TextDecoder,
    stop: StopMatcher,
}

impl<M: StepModel> Generating<M> {
    /// `own` is the model's own set of adapters, and `sessions` those of the model.
    pub(super) fn new(
        requested: Requested,
        claims: &Claims,
        own: &Lease<M::Adapters>,
        sessions: &Sessions<M::Cache>,
    ) -> Self {
        let named = requested.request.adapters.as_ref().map(AdapterSet::digest);
        let session = requested.request.session.clone().map(|session| {
            let key = sessions.key(&session, named.clone());
            OfSession { key, claim: claims.claim(vec![session]) }
        });
        Self {
            session,
            adapters: named.is_none().then(|| own.clone()),
            request: requested.request,
            requested: requested.at,
            usage: Usage::default(),
            stats: GenerationStats::default(),
            running: None,
            outlet: requested.outlet,
        }
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.outlet.is_dropped()
    }

    pub(super) fn is_ready(&self) -> bool {
        self.request.cancel.is_cancelled() || (self.has_session() && self.outlet.has_room())
    }

    pub(super) async fn woken(&self) {
        if self.has_session() {
            self.outlet.woken(&self.request.cancel).await;
        } else {
            // Only this thread can give it the session, and looks before it sleeps.
            self.outlet.dropped(&self.request.cancel).await;
        }
    }

    /// Whether it has its session, or needs none.
    fn has_session(&self) -> bool {
        self.session.as_ref().is_none_or(|session| session.claim.is_granted())
    }

    pub(super) fn step(&mut self, turn: &mut Turn<'_, M>) -> Result<Next> {
        if self.running.is_none() {
            self.begin(turn)?;
        }
        if self.request.cancel.is_cancelled() {
            return self.finish(FinishReason::Cancelled, turn);
        }
        if self.is_full(turn) {
            return self.finish(FinishReason::Length, turn);
        }
        let started = (turn.clock)();
        let adapters = match &mut self.adapters {
            Some(lease) => lease,
            none => none.insert(named(&self.request, turn)?),
        };
        let wanted = || !self.request.cancel.is_cancelled() && !self.outlet.is_dropped();
        let running = running(&mut self.running)?;
        if running.sequence.computed() == 0
            // Making the adapters ready may have taken long.
            && wanted()
            && let Some(kept) = self.session.as_ref().and_then(|session| turn.sessions.take(&session.key))
        {
            running.sequence.resume(kept, turn.model)?;
        }
        let Some(Advance { tokens, logits }) = running.sequence.advance(turn, adapters.adapters(), wanted)? else {
            return self.finish(FinishReason::Cancelled, turn);
        };
        let chosen = match logits {
            Some(mut logits) => Some(running.sampler.sample(&mut logits, running.sequence.tokens())?),
            None => None,
        };
        let time = (turn.clock)().saturating_sub(started);
        if self.usage.generated_tokens == 0 {
            self.usage.cached_tokens = running.sequence.resumed();
            self.stats.prefill += time;
            self.stats.prefill_tokens += tokens;
        } else {
            // Of a sequence that is computed anew behind its first token, the prompt too.
            self.stats.decode += time;
            self.stats.decode_tokens += tokens;
        }
        match chosen {
            Some(id) => self.accept(id, turn),
            None => Ok(Next::Again),
        }
    }

    /// Ends the generation with an error.
    pub(super) fn fail(&mut self, error: Error) {
        caught::discard("the KV cache of a failed generation", self.running.take());
        self.outlet.end(String::new(), Err(error));
    }

    /// Gives the session what is computed.
    pub(super) fn keep(&mut self, sessions: &mut Sessions<M::Cache>) -> Result<()> {
        let kept = self.running.as_mut().and_then(|running| running.sequence.take_computed());
        match (kept, &self.session) {
            (Some(kept), Some(session)) if self.request.adapters.is_none() => {
                sessions.keep_own(session.key.clone(), kept)
            }
            (Some(kept), Some(session)) => sessions.keep(session.key.clone(), kept),
            (Some(kept), None) => kept.cached.free(),
            (None, _) => Ok(()),
        }
    }

    fn begin(&mut self, turn: &Turn<'_, M>) -> Result<()> {
        let input = std::mem::replace(&mut self.request.input, Input::Tokens(Vec::new()));
        let tokens = prompt::tokens(input, turn.text, turn.info)?;
        self.usage.prompt_tokens = tokens.len();
        tracing::debug!(model = turn.info.model, prompt_tokens = tokens.len(), "generation begins");
        self.running = Some(Running {
            sequence: Sequence::new(tokens),
            sampler: Sampler::new(&self.request.sampling, turn.text.token_count())?,
            decoder: turn.text.decoder(),
            stop: StopMatcher::new(std::mem::take(&mut self.request.stop)),
        });
        Ok(())
    }

    /// Whether no token may follow.
    fn is_full(&self, turn: &Turn<'_, M>) -> bool {
        let generated = self.usage.generated_tokens;
        self.request.max_tokens.is_some_and(|max| generated >= max)
            || self.usage.prompt_tokens + generated >= turn.info.context_length
    }

    /// Takes the next token.
    fn accept(&mut self, id: u32, turn: &mut Turn<'_, M>) -> Result<Next> {
        if !self.request.ignore_eos && turn.text.eos_ids().binary_search(&id).is_ok() {
            return self.finish(FinishReason::Eos, turn);
        }
        let running = running(&mut self.running)?;
        running.sequence.push(id);
        self.usage.generated_tokens += 1;
        let (text, stopped) = match running.stop.push(&running.decoder.push(id)?) {
            StopStep::Text(text) => (text, false),
            StopStep::Stopped(text) => (text, true),
        };
        let since_request = (turn.clock)().saturating_sub(self.requested);
        self.stats.time_to_first_token.get_or_insert(since_request);
        self.outlet.send(GenerationEvent::token(id, text))?;
        if stopped {
            self.finish(FinishReason::Stop, turn)
        } else if self.is_full(turn) {
            self.finish(FinishReason::Length, turn)
        } else {
            Ok(Next::Again)
        }
    }

    fn finish(&mut self, mut reason: FinishReason, turn: &mut Turn<'_, M>) -> Result<Next> {
        let running = running(&mut self.running)?;
        let mut text = String::new();
        if reason != FinishReason::Stop {
            // What was held back is certain now; with it a stop text may be complete after all.
            match running.stop.push(&running.decoder.finish()?) {
                StopStep::Text(certain) => text = certain + &running.stop.finish(),
                StopStep::Stopped(before) => {
                    text = before;
                    if reason != FinishReason::Cancelled {
                        reason = FinishReason::Stop;
                    }
                }
            }
        }
        // Before the last event: whoever has it may look at the memory in use.
        self.keep(turn.sessions)?;
        let (usage, stats) = (self.usage, std::mem::take(&mut self.stats));
        tracing::debug!(model = turn.info.model, ?reason, ?usage, ?stats, "generation ends");
        self.outlet.end(text, Ok(GenerationEvent::finished(reason, usage, stats)));
        Ok(Next::Done)
    }
}

/// The set of adapters that `request` names.
fn named<M: StepModel>(request: &GenerateRequest, turn: &mut Turn<'_, M>) -> Result<Lease<M::Adapters>> {
    let named = request.adapters.as_ref().ok_or_else(|| Error::generation("the generation has no adapters"))?;
    turn.sets.lease(named, turn.model)
}

/// What `begin` has put there.
fn running<C>(running: &mut Option<Running<C>>) -> Result<&mut Running<C>> {
    running.as_mut().ok_or_else(|| Error::generation("the generation had ended before"))
}
