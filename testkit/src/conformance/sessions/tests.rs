use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use llm_local_core::{
    Counters, FloatType, Generation, InferenceBackend, LoadOptions, LoadedInfo, LogitsRequest, MemoryReport,
    ModelFormat, ModelInfo, ModelWeights, Stream, Support, TextFiles, async_trait,
};

use super::*;
use crate::{
    conformance::failure,
    fakes::{FakeBackend, MemoryTensorSource},
};

const PROMPT: &str = "a prompt, repeated: ä";

fn fake(keeps: bool) -> (Arc<dyn LoadedModel>, Capabilities) {
    let info = ModelInfo::new("m", ModelFormat::Gguf { metadata: Arc::default() }, vec![]);
    let tensors = MemoryTensorSource::new().with_floats("w", &[1], FloatType::F32, &[0.0]);
    let weights = ModelWeights::new(Arc::new(info), Some(Arc::new(tensors)), TextFiles::default());
    let capabilities = Capabilities::new().with_sessions(keeps);
    let backend = FakeBackend::new("fake").with_support(Support::Yes(capabilities.clone()));
    (pollster::block_on(backend.load(weights, LoadOptions::new(128))).unwrap(), capabilities)
}

#[derive(Clone, Copy, PartialEq)]
enum Wrong {
    IgnoresSessions,
    OtherTokens,
    CachedOneMore,
    ComputesMore,
    UsesWithout,
    EndKeeps,
    HoldsMore,
    TrimKeeps,
    TrimSaysNothing,
    TrimsTooMuch,
    ForkForgets,
    ForkKeepsOld,
    ForkMoves,
    ExportsNothing,
    ExportsOneLess,
    NoFormat,
    ImportsAnything,
    DropForgets,
}

/// A fake model that keeps sessions with one thing wrong.
struct Bad {
    inner: Arc<dyn LoadedModel>,
    wrong: Wrong,
    computed: Arc<AtomicUsize>,
}

impl Bad {
    fn is(&self, wrong: Wrong) -> bool {
        self.wrong == wrong
    }
}

/// The inner generation with its events changed, and what happens when it is dropped early.
struct Changed<F> {
    inner: Generation,
    change: F,
    if_dropped: Option<Arc<dyn LoadedModel>>,
}

impl<F: FnMut(&mut GenerationEvent) + Unpin> Stream for Changed<F> {
    type Item = Result<GenerationEvent>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        let mut event = std::task::ready!(std::pin::Pin::new(&mut self.inner).poll_next(cx));
        if let Some(Ok(event)) = &mut event {
            if matches!(event, GenerationEvent::Finished { .. }) {
                self.if_dropped = None;
            }
            (self.change)(event);
        }
        std::task::Poll::Ready(event)
    }
}

impl<F> Drop for Changed<F> {
    fn drop(&mut self) {
        if let Some(model) = self.if_dropped.take() {
            self.inner = Generation::failed(llm_local_core::Error::Cancelled);
            pollster::block_on(model.trim(TrimLevel::Sessions)).unwrap();
        }
    }
}

#[async_trait]
impl LoadedModel for Bad {
    fn info(&self) -> LoadedInfo {
        self.inner.info()
    }

    fn generate(&self, mut r: GenerateRequest) -> Generation {
        let in_session = r.session.is_some();
        match self.wrong {
            Wrong::IgnoresSessions => r.session = None,
            Wrong::UsesWithout => r.session = r.session.or(Some(SessionId::new("conformance"))),
            Wrong::ComputesMore if in_session => _ = self.computed.fetch_add(2, SeqCst),
            _ => {}
        }
        let wrong = self.wrong;
        let change = move |event: &mut GenerationEvent| match event {
            GenerationEvent::Token { id, .. } if wrong == Wrong::OtherTokens && in_session => *id = 7,
            GenerationEvent::Finished { usage, stats, .. }
                if wrong == Wrong::CachedOneMore && usage.cached_tokens > 0 =>
            {
                usage.cached_tokens += 1;
                stats.prefill_tokens -= 1;
            }
            _ => {}
        };
        let if_dropped = (self.is(Wrong::DropForgets) && in_session).then(|| self.inner.clone());
        Generation::new(Changed { inner: self.inner.generate(r), change, if_dropped })
    }

    async fn logits(&self, r: LogitsRequest) -> Result<Vec<f32>> {
        self.inner.logits(r).await
    }

    async fn end_session(&self, s: SessionId) -> Result<()> {
        if self.is(Wrong::EndKeeps) { Ok(()) } else { self.inner.end_session(s).await }
    }

    async fn fork_session(&self, from: &SessionId, to: SessionId) -> Result<()> {
        match self.wrong {
            Wrong::ForkForgets => return self.inner.end_session(to).await,
            Wrong::ForkKeepsOld if from.as_str().ends_with("none") => return Ok(()),
            _ => {}
        }
        self.inner.fork_session(from, to).await?;
        if self.is(Wrong::ForkMoves) { self.inner.end_session(from.clone()).await } else { Ok(()) }
    }

    async fn export_session(&self, s: &SessionId) -> Result<SessionState> {
        let mut state = self.inner.export_session(s).await?;
        match self.wrong {
            Wrong::ExportsNothing => state = SessionState::new(vec![], Default::default(), vec![]),
            Wrong::ExportsOneLess => _ = state.tokens.pop(),
            Wrong::NoFormat => state.metadata.clear(),
            _ => {}
        }
        Ok(state)
    }

    async fn import_session(&self, s: &SessionId, state: SessionState) -> Result<()> {
        let outcome = self.inner.import_session(s, state).await;
        if self.is(Wrong::ImportsAnything) { Ok(()) } else { outcome }
    }

    fn memory(&self) -> MemoryReport {
        if self.is(Wrong::HoldsMore) { MemoryReport::new(4, 1) } else { self.inner.memory() }
    }

    fn counters(&self) -> Counters {
        let counters = self.inner.counters();
        Counters::new(counters.forward_steps, counters.forward_tokens + self.computed.load(SeqCst) as u64)
    }

    async fn trim(&self, level: TrimLevel) -> Result<u64> {
        match self.wrong {
            Wrong::TrimKeeps => Ok(0),
            Wrong::TrimSaysNothing => self.inner.trim(level).await.map(|_| 0),
            Wrong::TrimsTooMuch => self.inner.trim(TrimLevel::Sessions).await,
            _ => self.inner.trim(level).await,
        }
    }

    async fn unload(&self) -> Result<()> {
        self.inner.unload().await
    }
}

#[test]
fn a_good_model_passes_with_sessions_and_without() {
    for keeps in [true, false] {
        let (model, capabilities) = fake(keeps);
        pollster::block_on(sessions(model.as_ref(), &capabilities, PROMPT));
        pollster::block_on(super::super::loaded_model(model.as_ref(), PROMPT));
    }
}

#[test]
fn capabilities_that_are_not_true_are_found() {
    for (keeps, message) in [(false, "a request with a session must fail"), (true, "failed: ")] {
        let (model, _) = fake(!keeps);
        let says = Capabilities::new().with_sessions(keeps);
        let said = failure(|| pollster::block_on(sessions(model.as_ref(), &says, PROMPT)));
        assert!(said.contains(message), "{message}: {said}");
    }
}

#[test]
fn each_thing_that_is_wrong_is_found() {
    for (wrong, message) in [
        (Wrong::IgnoresSessions, "a session is kept, but memory() has no bytes"),
        (Wrong::OtherTokens, "gave other tokens than the same request without a session"),
        (Wrong::CachedOneMore, "by the counters"),
        (Wrong::ComputesMore, "by the counters"),
        (Wrong::UsesWithout, "a request without a session"),
        (Wrong::EndKeeps, "after every session was ended"),
        (Wrong::HoldsMore, "after every session was ended"),
        (Wrong::TrimKeeps, "trim(Sessions) must free"),
        (Wrong::TrimSaysNothing, "but says 0"),
        (Wrong::TrimsTooMuch, "trim(Caches) must leave"),
        (Wrong::ForkForgets, "a turn in a fork"),
        (Wrong::ForkKeepsOld, "a fork of a session that has computed nothing"),
        (Wrong::ForkMoves, "a turn beside a fork"),
        (Wrong::ExportsNothing, "only 0 are kept"),
        (Wrong::ExportsOneLess, "only 48 are kept"),
        (Wrong::NoFormat, "has no `format`"),
        (Wrong::ImportsAnything, "a state with a token id outside the vocabulary was imported"),
        (Wrong::DropForgets, "a dropped generation gave a token, but"),
    ] {
        let (inner, capabilities) = fake(true);
        let bad = Bad { inner, wrong, computed: Arc::default() };
        let said = failure(|| pollster::block_on(sessions(&bad, &capabilities, PROMPT)));
        assert!(said.contains(message), "{message}: {said}");
    }
}
