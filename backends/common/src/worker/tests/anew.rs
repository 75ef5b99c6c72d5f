//! Sequences whose cache does not hold the tokens that they have come to.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use llm_local_core::{
    CancellationToken, Completion, Counters, FinishReason, GenerateRequest, LoadedModel, SessionId, Usage,
};
use pollster::block_on;

use super::fake::{CACHE_BYTES_PER_TOKEN, Setup, Step, answer, gate, next_token};

/// The tokens up to which a sequence is short. A cache is for short ones or for long ones.
const LIMIT: usize = 20;

fn setup() -> Setup {
    Setup { holds: Box::new(|made_for, tokens| (made_for > LIMIT) == (tokens > LIMIT)), ..Setup::with_sessions() }
}

fn tokens(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (7 + i * i) % 700).collect()
}

fn request(prompt: &[u32], count: usize) -> GenerateRequest {
    GenerateRequest::new(prompt.to_vec()).with_max_tokens(count)
}

/// What a generation computed: steps and tokens.
fn cost(model: &Arc<dyn LoadedModel>, request: GenerateRequest) -> (Completion, Counters) {
    let before = model.counters();
    let done = block_on(model.generate(request).complete()).unwrap();
    let after = model.counters();
    let steps = after.forward_steps - before.forward_steps;
    (done, Counters::new(steps, after.forward_tokens - before.forward_tokens))
}

/// A turn of a session: the answer must be right, and what was computed what its usage and statistics say.
fn turn(model: &Arc<dyn LoadedModel>, prompt: &[u32], count: usize) -> (Usage, Counters) {
    let (done, cost) = cost(model, request(prompt, count).with_session(SessionId::new("chat")));
    assert_eq!(done.tokens, answer(prompt, count));
    assert_eq!(done.stats.prefill_tokens, prompt.len() - done.usage.cached_tokens);
    assert_eq!(cost.forward_tokens, (done.stats.prefill_tokens + done.stats.decode_tokens) as u64);
    (done.usage, cost)
}

#[test]
fn a_sequence_that_outgrows_its_cache_is_computed_anew_in_chunks_that_are_counted() {
    let model = setup().load();
    // 18 in chunks of 8, then 2 that are held, 21 in chunks, and 5 more.
    let (done, counted) = cost(&model, request(&tokens(18), 9));
    assert_eq!(done.tokens, answer(&tokens(18), 9));
    assert_eq!(counted, Counters::new(3 + 2 + 3 + 5, 18 + 2 + 21 + 5));
    assert_eq!((done.stats.prefill_tokens, done.stats.decode_tokens), (18, 2 + 21 + 5));
    assert_eq!((done.usage, model.memory().kv_cache), (Usage::new(18, 9), 0));
    // One that is long from the beginning is not.
    assert_eq!(cost(&model, request(&tokens(21), 9)).1, Counters::new(3 + 8, 21 + 8));
    // Nor one that stays short: its last token is not computed.
    assert_eq!(cost(&model, request(&tokens(18), 3)).1, Counters::new(3 + 2, 18 + 2));
}

#[test]
fn others_have_their_turns_while_a_sequence_is_computed_anew() {
    let (hook, gate) = gate();
    let model = setup().hook(hook).load();
    let mut growing = model.generate(request(&tokens(20), 3));
    for position in [0, 8, 16] {
        assert_eq!(gate.begun().position, position);
        gate.pass();
    }
    next_token(&mut growing);
    // The first chunk of 21 tokens, in a cache of its own.
    assert_eq!(gate.begun(), Step { prompt: 7, position: 0, tokens: 8 });
    assert_eq!(model.memory().kv_cache, 0);
    let other = model.generate(request(&[500; 16], 1));
    let steps = gate.open();
    assert_eq!(block_on(other.complete()).unwrap().tokens, answer(&[500; 16], 1));
    next_token(&mut growing);
    assert_eq!(next_token(&mut growing), answer(&tokens(20), 3)[2]);
    drop((growing, model));
    let order: Vec<_> = steps.iter().map(|step| (step.prompt, step.position)).collect();
    assert_eq!(order, [(7, 8), (500, 0), (7, 16), (500, 8), (7, 21)]);
}

#[test]
fn a_sequence_that_is_computed_anew_can_be_cancelled_between_chunks() {
    let cancel = CancellationToken::new();
    let (reached, first) = (cancel.clone(), AtomicBool::new(true));
    let model = setup()
        .hook(move |step| {
            // The second chunk of the second time.
            if step.position == 8 && !first.swap(false, SeqCst) {
                reached.cancel();
            }
            Ok(())
        })
        .load();
    let request = request(&tokens(18), 9).with_session(SessionId::new("chat")).with_cancel(cancel);
    let (done, counted) = cost(&model, request);
    assert_eq!((done.finish_reason, done.usage), (Some(FinishReason::Cancelled), Usage::new(18, 3)));
    assert_eq!(counted, Counters::new(3 + 2 + 2, 18 + 2 + 16));
    assert_eq!(model.memory().kv_cache, 16 * CACHE_BYTES_PER_TOKEN);
    // It goes on from there, if it is long again; the cache does not hold a short one.
    let chat = [tokens(18), answer(&tokens(18), 3)].concat();
    assert_eq!(turn(&model, &chat, 1), (Usage::new(21, 1).with_cached_tokens(16), Counters::new(1, 5)));
}

#[test]
fn a_session_goes_from_short_to_long_and_back_and_pays_for_each_change_once() {
    let model = setup().load();
    let chat = tokens(60);
    let cached = |prompt: usize, generated, cached| Usage::new(prompt, generated).with_cached_tokens(cached);
    assert_eq!(turn(&model, &chat[..10], 4), (cached(10, 4, 0), Counters::new(2 + 3, 13)));
    assert_eq!(turn(&model, &chat[..15], 1), (cached(15, 1, 10), Counters::new(1, 5)));
    // Long after short.
    assert_eq!(turn(&model, &chat[..30], 2), (cached(30, 2, 0), Counters::new(4 + 1, 31)));
    assert_eq!(turn(&model, &chat[..40], 2), (cached(40, 2, 30), Counters::new(2 + 1, 11)));
    // Cut to what a short one would begin with, but long.
    let other = [&chat[..12], &[699; 12]].concat();
    assert_eq!(turn(&model, &other, 2), (cached(24, 2, 12), Counters::new(2 + 1, 13)));
    // Short after long, and over the limit within the answer: what the session had was of use until then.
    assert_eq!(turn(&model, &chat[..12], 1), (cached(12, 1, 0), Counters::new(2, 12)));
    assert_eq!(turn(&model, &chat[..19], 4), (cached(19, 4, 12), Counters::new(1 + 1 + 3 + 1, 7 + 1 + 21 + 1)));
    let grown = [&chat[..19], &answer(&chat[..19], 4)].concat();
    assert_eq!(turn(&model, &grown, 2), (cached(23, 2, 22), Counters::new(1 + 1, 1 + 1)));
}

#[test]
fn a_session_whose_long_prompt_was_cancelled_does_not_go_on_short() {
    let cancel = CancellationToken::new();
    let reached = cancel.clone();
    let hook = move |_| {
        reached.cancel();
        Ok(())
    };
    let model = setup().hook(hook).load();
    let chat = tokens(40);
    let long = request(&chat, 3).with_session(SessionId::new("chat")).with_cancel(cancel);
    assert_eq!(cost(&model, long).1, Counters::new(1, 8));
    assert_eq!(turn(&model, &chat[..9], 3), (Usage::new(9, 3), Counters::new(2 + 2, 9 + 2)));
}

#[test]
fn copies_hold_what_the_original_does() {
    let model = setup().load();
    let chat = tokens(30);
    turn(&model, &chat, 1);
    let copy = SessionId::new("copy");
    block_on(model.fork_session(&SessionId::new("chat"), copy.clone())).unwrap();
    for (prompt, cached) in [(&chat[..25], 24), (&chat[..15], 0)] {
        let (done, counted) = cost(&model, request(prompt, 1).with_session(copy.clone()));
        assert_eq!((done.tokens, done.usage.cached_tokens), (answer(prompt, 1), cached));
        assert_eq!(counted.forward_tokens, (prompt.len() - cached) as u64);
    }
}

#[test]
fn a_cache_that_does_not_hold_what_it_was_made_for_is_an_error() {
    let model = Setup { holds: Box::new(|_, tokens| tokens < 10), ..setup() }.load();
    assert_eq!(cost(&model, request(&tokens(5), 3)).0.tokens, answer(&tokens(5), 3));
    let error = block_on(model.generate(request(&tokens(9), 3)).complete()).unwrap_err();
    assert!(error.to_string().contains("KV cache for 10 tokens"), "{error}");
}
