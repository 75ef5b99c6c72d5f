//! The suite for loaded models.

use llm_local_core::{
    CancellationToken, FinishReason, GenerateRequest, Generation, GenerationEvent, Input, LoadedModel, LogitsRequest,
    Sampling, generate::Completion,
};

/// Tokens that the suite generates at a time.
const TOKENS: usize = 16;
/// Steps that may have begun before a drop was seen: one whose token waits to be read, one that is being computed,
/// and one for a worker that looks at the drop after its step.
const STEPS_AHEAD: u64 = 3;
/// Up to this context length the suite fills the whole context.
const SMALL_CONTEXT: usize = 512;

/// Checks a loaded model with `prompt`, which the context must hold with 32 tokens more. The model is unloaded at the
/// end; what it makes of sessions, [`sessions`](super::sessions) says. A context of at most 512 tokens is filled once;
/// to have that checked, load the model with a small one.
///
/// - the same request gives the same tokens and text, greedy or with a seed;
/// - token counts and statistics are true, ids lie below the vocabulary's size, and `max_tokens` is kept;
/// - a stop text ends a generation and is not part of it;
/// - what is wrong with a request is the stream's first item, and the model lives on;
/// - a dropped generation stops; a cancelled one ends with [`FinishReason::Cancelled`] and true counts; one that nobody
///   reads holds up neither another nor the unloading;
/// - a prompt longer than the context is an error, and a generation ends where the context does;
/// - logits have the vocabulary's size, and the greedy token is their best;
/// - after `unload` every call gives [`llm_local_core::Error::ModelNotLoaded`], except `unload`.
///
/// # Panics
/// With what is wrong.
pub async fn loaded_model(model: &dyn LoadedModel, prompt: &str) {
    let info = model.info();
    assert!(info.vocab_size > 0, "info: vocab_size is 0");
    assert!(info.context_length > 2 * TOKENS, "load the model with a context of more than {} tokens", 2 * TOKENS);
    let suite = Suite { model, prompt };
    let greedy = suite.generations().await;
    suite.stop_text(&greedy).await;
    suite.wrong_requests(&greedy).await;
    suite.dropping(&greedy).await;
    suite.cancelling().await;
    suite.logits(&greedy).await;
    suite.context(&greedy).await;
    suite.unloading(&greedy).await;
}

struct Suite<'a> {
    model: &'a dyn LoadedModel,
    prompt: &'a str,
}

impl Suite<'_> {
    fn request(&self) -> GenerateRequest {
        GenerateRequest::new(self.prompt).with_max_tokens(TOKENS).with_ignore_eos(true)
    }

    async fn complete(&self, request: GenerateRequest, what: &str) -> Completion {
        self.model.generate(request).complete().await.unwrap_or_else(|e| panic!("{what} failed: {e}"))
    }

    /// The greedy answer to the prompt, which later checks compare with.
    async fn generations(&self) -> Completion {
        let vocab = self.model.info().vocab_size;
        let greedy = self.complete(self.request(), "a greedy generation").await;
        let found = greedy.tokens.len();
        assert_eq!(found, TOKENS, "max_tokens is {TOKENS} and eos is ignored, but {found} tokens came");
        assert_eq!(greedy.finish_reason, Some(FinishReason::Length), "max_tokens ends a generation with Length");
        let outside = greedy.tokens.iter().find(|&&id| id as usize >= vocab);
        assert_eq!(outside, None, "a token id is not below the vocabulary's size {vocab}");
        true_counts(&greedy);
        let again = self.complete(self.request(), "the second greedy generation").await;
        assert_eq!(greedy.tokens, again.tokens, "two greedy generations from one prompt differ");
        assert_eq!(greedy.text, again.text, "two greedy generations with the same tokens differ in their text");

        let tokens = greedy.tokens.clone();
        let from_tokens = GenerateRequest::new(tokens.clone()).with_max_tokens(4);
        let from_tokens = self.complete(from_tokens, "a generation from tokens").await;
        let counted = from_tokens.usage.prompt_tokens;
        assert_eq!(counted, tokens.len(), "a prompt of {} tokens was counted as {counted}", tokens.len());
        assert!(
            matches!(from_tokens.finish_reason, Some(FinishReason::Eos | FinishReason::Length)),
            "a generation that nothing interrupts ended with {:?}",
            from_tokens.finish_reason
        );
        true_counts(&from_tokens);

        let seeded = || self.request().with_sampling(Sampling::default().with_temperature(1.0).with_seed(7));
        let first = self.complete(seeded(), "a sampled generation").await;
        let second = self.complete(seeded(), "a sampled generation").await;
        assert_eq!(first.tokens, second.tokens, "two generations with one seed differ");
        greedy
    }

    async fn stop_text(&self, greedy: &Completion) {
        let text = &greedy.text;
        let starts: Vec<_> = text.char_indices().map(|(at, _)| at).collect();
        let characters = starts.len();
        assert!(characters >= 4, "{TOKENS} greedy tokens gave the text {text:?}; choose a prompt that gives more");
        let stop = &text[starts[characters / 2 - 1]..starts[characters / 2 + 1]];
        let expected = &text[..text.find(stop).expect("a part of the text")];
        let stopped = self.complete(self.request().with_stop(stop), "a generation with a stop text").await;
        assert_eq!(stopped.text, expected, "the stop text {stop:?} must end {text:?} and not be part of it");
        assert_eq!(stopped.finish_reason, Some(FinishReason::Stop), "a stop text ends a generation with Stop");
        true_counts(&stopped);
    }

    async fn wrong_requests(&self, greedy: &Completion) {
        let cold = self.request().with_sampling(Sampling::default().with_temperature(-1.0));
        for (what, request) in [("a temperature of -1", cold), ("an empty stop text", self.request().with_stop(""))] {
            let code = self.fails(self.model.generate(request), what).await;
            assert_eq!(code, "invalid_spec", "{what} gave another error than that");
        }
        let outside = vec![self.model.info().vocab_size as u32];
        self.fails(self.model.generate(GenerateRequest::new(outside)), "a token id outside the vocabulary").await;
        self.still_works(greedy, "after a refused request").await;
    }

    async fn dropping(&self, greedy: &Completion) {
        let before = self.model.counters();
        self.still_works(greedy, "once more").await;
        let one = self.model.counters().forward_steps - before.forward_steps;
        let long = || self.request().with_max_tokens(self.model.info().context_length);
        for read in [0, 1] {
            let before = self.model.counters().forward_steps;
            let mut dropped = self.model.generate(long());
            for _ in 0..read {
                self.token(&mut dropped).await;
            }
            drop(dropped);
            self.still_works(greedy, "after a dropped generation").await;
            let steps = self.model.counters().forward_steps - before;
            // The dropped one: its prefill, which is part of `one`, and few steps more.
            let allowed = one + one.saturating_sub(TOKENS as u64 - 1) + read + STEPS_AHEAD;
            assert!(
                steps <= allowed,
                "a generation dropped after {read} events took steps on: {steps} with the next generation's, {allowed} are allowed"
            );
        }
        let unread = self.model.generate(long());
        self.still_works(greedy, "beside a generation that nobody reads").await;
        drop(unread);
    }

    async fn cancelling(&self) {
        for read in [0, 1, 3] {
            let cancel = CancellationToken::new();
            let mut generation = self.model.generate(self.request().with_cancel(cancel.clone()));
            let mut tokens = 0;
            for _ in 0..read {
                tokens += self.token(&mut generation).await;
            }
            cancel.cancel();
            let rest = generation.complete().await.unwrap_or_else(|e| panic!("a cancelled generation failed: {e}"));
            let reason = rest.finish_reason;
            assert_eq!(reason, Some(FinishReason::Cancelled), "cancelled after {read} events, it ended otherwise");
            tokens += rest.tokens.len();
            let counted = rest.usage.generated_tokens;
            assert_eq!(counted, tokens, "a cancelled generation counts {counted} tokens, but {tokens} came");
        }
    }

    async fn logits(&self, greedy: &Completion) {
        let logits = self.model.logits(LogitsRequest::new(self.prompt)).await;
        let logits = logits.unwrap_or_else(|e| panic!("logits failed: {e}"));
        let (found, vocab) = (logits.len(), self.model.info().vocab_size);
        assert_eq!(found, vocab, "there are {found} logits, but vocab_size is {vocab}");
        assert!(!logits.iter().any(|x| x.is_nan()), "a logit is NaN");
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let first = greedy.tokens[0];
        let of_first = logits[first as usize];
        // Two computations of one prompt may differ in how they chunk it, so equal to rounding is enough.
        let close = of_first >= best - 1e-3 * best.abs().max(1.0);
        assert!(close, "the greedy token {first} has the logit {of_first}, but the best is {best}");
    }

    async fn context(&self, greedy: &Completion) {
        let context = self.model.info().context_length;
        let prompt = |n: usize| Input::Tokens(greedy.tokens.iter().copied().cycle().take(n).collect());
        let too_long = self.model.generate(GenerateRequest::new(prompt(context + 1)));
        let code = self.fails(too_long, "a prompt longer than the context").await;
        assert_eq!(code, "context_length_exceeded", "a prompt longer than the context gave another error than that");
        match self.model.logits(LogitsRequest::new(prompt(context + 1))).await {
            Ok(_) => panic!("logits of a prompt longer than the context must be an error"),
            Err(e) => assert_eq!(e.code(), "context_length_exceeded", "logits beyond the context: {e}"),
        }
        if context <= SMALL_CONTEXT {
            let almost = GenerateRequest::new(prompt(context - 4)).with_ignore_eos(true);
            let full = self.complete(almost, "a generation up to the context's end").await;
            assert_eq!(full.finish_reason, Some(FinishReason::Length), "the context's end is a Length");
            let found = full.tokens.len();
            assert_eq!(found, 4, "a context with room for 4 tokens gave {found}");
        }
        self.still_works(greedy, "after a prompt that is too long").await;
    }

    async fn unloading(&self, greedy: &Completion) {
        let mut unread = self.model.generate(self.request());
        for time in ["first", "second"] {
            self.model.unload().await.unwrap_or_else(|e| panic!("the {time} unload failed: {e}"));
        }
        let memory = self.model.memory();
        assert_eq!((memory.weights, memory.kv_cache), (0, 0), "bytes that an unloaded model still holds");
        let code = loop {
            match unread.next().await {
                Some(Ok(GenerationEvent::Finished { reason, .. })) => {
                    panic!("a generation that was running at the unload ended with {reason:?}, not with an error")
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => break error.code(),
                None => panic!("a generation that was running at the unload ended without an error"),
            }
        };
        assert_eq!(code, "model_not_loaded", "the error of a generation that was running at the unload");
        let code = self.fails(self.model.generate(self.request()), "a generation after unload").await;
        assert_eq!(code, "model_not_loaded", "the error of a generation after unload");
        match self.model.logits(LogitsRequest::new(greedy.tokens.clone())).await {
            Ok(_) => panic!("logits after unload must be an error"),
            Err(e) => assert_eq!(e.code(), "model_not_loaded", "the error of logits after unload: {e}"),
        }
    }

    async fn still_works(&self, greedy: &Completion, when: &str) {
        let found = self.complete(self.request(), &format!("a generation {when}")).await;
        assert_eq!(found.tokens, greedy.tokens, "a greedy generation {when} gave other tokens than before");
    }

    /// Reads one event, which must be a token or text. Returns how many tokens it was.
    async fn token(&self, generation: &mut Generation) -> usize {
        match generation.next().await {
            Some(Ok(GenerationEvent::Token { .. })) => 1,
            Some(Ok(GenerationEvent::Text(_))) => 0,
            other => panic!("expected a token, found {other:?}"),
        }
    }

    /// The code of the error that is the first and last item.
    async fn fails(&self, mut generation: Generation, what: &str) -> &'static str {
        match generation.next().await {
            Some(Err(error)) => error.code(),
            other => panic!("{what} must fail with the first item, but it is {other:?}"),
        }
    }
}

fn true_counts(completion: &Completion) {
    let (usage, stats, tokens) = (completion.usage, &completion.stats, completion.tokens.len());
    let counted = usage.generated_tokens;
    assert_eq!(counted, tokens, "usage counts {counted} generated tokens, but {tokens} came");
    assert!(usage.prompt_tokens > 0, "usage counts no prompt tokens");
    assert!(usage.cached_tokens <= usage.prompt_tokens, "more tokens are cached than the prompt has");
    let computed = usage.prompt_tokens - usage.cached_tokens;
    assert_eq!(stats.prefill_tokens, computed, "statistics: tokens of the prompt that were computed");
    let first = stats.time_to_first_token;
    assert!(tokens == 0 || first.is_some(), "statistics: {tokens} tokens came, but there is no time to the first");
}

#[cfg(test)]
mod tests;
