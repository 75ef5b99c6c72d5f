use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use llm_local_core::Stream;
use llm_local_core::{
    Counters, Error, InferenceBackend, LoadOptions, LoadedInfo, MemoryReport, ModelFormat, ModelInfo, ModelWeights,
    Result, TextFiles, async_trait,
};

use super::*;
use crate::{
    conformance::failure,
    fakes::{FakeBackend, MemoryTensorSource},
};

const PROMPT: &str = "a prompt, repeated: ä";

fn fake(context: usize) -> Arc<dyn LoadedModel> {
    let info = ModelInfo::new("m", ModelFormat::Gguf { metadata: Arc::default() }, vec![]);
    let tensors = MemoryTensorSource::new().with_floats("w", &[1], llm_local_core::FloatType::F32, &[0.0]);
    let weights = ModelWeights::new(Arc::new(info), Some(Arc::new(tensors)), TextFiles::default());
    pollster::block_on(FakeBackend::new("fake").load(weights, LoadOptions::new(context))).unwrap()
}

#[derive(Clone, Copy, PartialEq)]
enum Wrong {
    NotGreedy,
    OneTokenMore,
    OneTokenTooFew,
    PromptMiscounted,
    NoFirstTime,
    IgnoresStop,
    ChecksNothing,
    RunsOnAfterDrop,
    IgnoresCancel,
    CancelMiscounts,
    CutsPrompt,
    OtherLogits,
    FewLogits,
    NanLogit,
    KeepsMemory,
    UnloadOnce,
    WorksAfterUnload,
}

/// A fake model with one thing wrong.
struct Bad {
    inner: Arc<dyn LoadedModel>,
    never_unloaded: Arc<dyn LoadedModel>,
    wrong: Wrong,
    calls: AtomicUsize,
    extra_steps: Arc<AtomicUsize>,
    unloads: AtomicUsize,
}

impl Bad {
    fn new(wrong: Wrong) -> Self {
        Self {
            inner: fake(64),
            never_unloaded: fake(64),
            wrong,
            calls: AtomicUsize::new(0),
            extra_steps: Arc::default(),
            unloads: AtomicUsize::new(0),
        }
    }

    fn is(&self, wrong: Wrong) -> bool {
        self.wrong == wrong
    }
}

/// The inner generation, with events changed.
struct Changed {
    inner: Pin<Box<Generation>>,
    change: Box<dyn FnMut(GenerationEvent) -> Option<GenerationEvent> + Send>,
    steps_if_dropped: Option<Arc<AtomicUsize>>,
}

impl Stream for Changed {
    type Item = Result<GenerationEvent>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match std::task::ready!(self.inner.as_mut().poll_next(cx)) {
                Some(Ok(event)) => {
                    if matches!(event, GenerationEvent::Finished { .. }) {
                        self.steps_if_dropped = None;
                    }
                    if let Some(event) = (self.change)(event) {
                        return Poll::Ready(Some(Ok(event)));
                    }
                }
                other => return Poll::Ready(other),
            }
        }
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        if let Some(steps) = &self.steps_if_dropped {
            steps.fetch_add(40, Ordering::SeqCst);
        }
    }
}

#[async_trait]
impl LoadedModel for Bad {
    fn info(&self) -> LoadedInfo {
        self.inner.info()
    }

    fn generate(&self, mut r: GenerateRequest) -> Generation {
        let n = self.calls.fetch_add(1, Ordering::SeqCst);
        if self.is(Wrong::OneTokenMore) {
            r.max_tokens = r.max_tokens.map(|max| max + 1);
        }
        if self.is(Wrong::IgnoresStop) && !r.stop.iter().any(String::is_empty) {
            r.stop.clear();
        }
        if self.is(Wrong::ChecksNothing) {
            r.sampling = Sampling::default();
        }
        if self.is(Wrong::IgnoresCancel) {
            r.cancel = CancellationToken::new();
        }
        if let (true, Input::Tokens(tokens)) = (self.is(Wrong::CutsPrompt), &mut r.input) {
            tokens.truncate(60);
        }
        if self.is(Wrong::WorksAfterUnload) && self.unloads.load(Ordering::SeqCst) > 0 {
            return self.never_unloaded.generate(r);
        }
        let wrong = self.wrong;
        let change = move |mut event: GenerationEvent| {
            match (&mut event, wrong) {
                (GenerationEvent::Token { id, .. }, Wrong::NotGreedy) => *id = (*id + n as u32) % 200,
                (GenerationEvent::Finished { usage, .. }, Wrong::OneTokenTooFew) => usage.generated_tokens -= 1,
                (GenerationEvent::Finished { usage, stats, .. }, Wrong::PromptMiscounted) => {
                    usage.prompt_tokens += 1;
                    stats.prefill_tokens += 1;
                }
                (GenerationEvent::Finished { stats, .. }, Wrong::NoFirstTime) => stats.time_to_first_token = None,
                (GenerationEvent::Finished { usage, reason: FinishReason::Cancelled, .. }, Wrong::CancelMiscounts) => {
                    usage.generated_tokens = 0
                }
                _ => {}
            }
            Some(event)
        };
        Generation::new(Changed {
            inner: Box::pin(self.inner.generate(r)),
            change: Box::new(change),
            steps_if_dropped: self.is(Wrong::RunsOnAfterDrop).then(|| self.extra_steps.clone()),
        })
    }

    async fn logits(&self, r: LogitsRequest) -> Result<Vec<f32>> {
        let mut logits = self.inner.logits(r).await?;
        match self.wrong {
            Wrong::OtherLogits => logits.rotate_left(1),
            Wrong::FewLogits => logits.truncate(256),
            Wrong::NanLogit => logits[0] = f32::NAN,
            _ => {}
        }
        Ok(logits)
    }

    fn memory(&self) -> MemoryReport {
        if self.is(Wrong::KeepsMemory) { MemoryReport::new(4, 0) } else { self.inner.memory() }
    }

    fn counters(&self) -> Counters {
        let counters = self.inner.counters();
        let extra = self.extra_steps.load(Ordering::SeqCst) as u64;
        Counters::new(counters.forward_steps + extra, counters.forward_tokens)
    }

    async fn unload(&self) -> Result<()> {
        if self.unloads.fetch_add(1, Ordering::SeqCst) > 0 && self.is(Wrong::UnloadOnce) {
            return Err(Error::ModelNotLoaded { model: "m".into() });
        }
        self.inner.unload().await
    }
}

#[test]
fn a_good_model_passes_with_a_small_and_a_large_context() {
    for context in [64, 4096] {
        pollster::block_on(loaded_model(fake(context).as_ref(), PROMPT));
    }
}

#[test]
fn each_thing_that_is_wrong_is_found() {
    for (wrong, message) in [
        (Wrong::NotGreedy, "two greedy generations from one prompt differ"),
        (Wrong::OneTokenMore, "but 17 tokens came"),
        (Wrong::OneTokenTooFew, "usage counts 15 generated tokens, but 16 came"),
        (Wrong::PromptMiscounted, "a prompt of 16 tokens was counted as 17"),
        (Wrong::NoFirstTime, "no time to the first"),
        (Wrong::IgnoresStop, "the stop text"),
        (Wrong::ChecksNothing, "a temperature of -1 must fail"),
        (Wrong::RunsOnAfterDrop, "took steps on"),
        (Wrong::IgnoresCancel, "cancelled after 0 events"),
        (Wrong::CancelMiscounts, "counts 0 tokens, but 1 came"),
        (Wrong::CutsPrompt, "longer than the context"),
        (Wrong::OtherLogits, "but the best is"),
        (Wrong::FewLogits, "there are 256 logits, but vocab_size is 257"),
        (Wrong::NanLogit, "a logit is NaN"),
        (Wrong::KeepsMemory, "still holds"),
        (Wrong::UnloadOnce, "the second unload failed"),
        (Wrong::WorksAfterUnload, "a generation after unload must fail"),
    ] {
        let bad = Bad::new(wrong);
        let said = failure(|| pollster::block_on(loaded_model(&bad, PROMPT)));
        assert!(said.contains(message), "{message}: {said}");
    }
}
