//! What a session saves, and that it changes nothing else.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
    mpsc,
};

use llm_local_core::{
    CancellationToken, Completion, Counters, Error, FinishReason, GenerateRequest, LoadedModel, Result, SessionId,
    TrimLevel, Usage,
};
use pollster::block_on;

use super::fake::{CACHE_BYTES_PER_TOKEN, Setup, answer, gate};

fn session() -> SessionId {
    SessionId::new("chat-1")
}

/// `count` tokens of a chat; with the same `seed`, one begins with the other.
fn tokens(seed: u32, count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (seed * 31 + i * i) % 800).collect()
}

/// Generates in the session, and checks the answer.
fn turn(model: &Arc<dyn LoadedModel>, prompt: &[u32], count: usize) -> Completion {
    let done = try_turn(model, prompt, count).unwrap();
    assert_eq!(done.tokens, answer(prompt, count));
    assert_eq!((done.usage.prompt_tokens, done.usage.generated_tokens), (prompt.len(), count));
    done
}

fn try_turn(model: &Arc<dyn LoadedModel>, prompt: &[u32], count: usize) -> Result<Completion> {
    let request = GenerateRequest::new(prompt.to_vec()).with_max_tokens(count).with_session(session());
    block_on(model.generate(request).complete())
}

/// What the session has computed.
fn computed(model: &Arc<dyn LoadedModel>) -> usize {
    let computed = block_on(model.export_session(&session())).unwrap().tokens.len();
    assert_eq!(model.memory().kv_cache, computed as u64 * CACHE_BYTES_PER_TOKEN);
    computed
}

#[test]
fn a_second_turn_computes_only_what_is_new() {
    let model = Setup::with_sessions().load();
    let mut chat = tokens(1, 20);
    let first = turn(&model, &chat, 5);
    assert_eq!((first.usage.cached_tokens, first.stats.prefill_tokens), (0, 20));
    // The last token of the answer is not computed.
    assert_eq!(computed(&model), 24);
    chat.extend(first.tokens);
    chat.extend(tokens(2, 6));
    let before = model.counters();
    let second = turn(&model, &chat, 3);
    assert_eq!(second.usage, Usage::new(31, 3).with_cached_tokens(24));
    assert_eq!((second.stats.prefill_tokens, second.stats.decode_tokens), (7, 2));
    let after = model.counters();
    assert_eq!(
        (after.forward_steps - before.forward_steps, after.forward_tokens - before.forward_tokens),
        (1 + 2, 7 + 2)
    );
    assert_eq!(computed(&model), 33);
}

#[test]
fn a_cache_that_is_cut_takes_less_at_once() {
    let (hook, gate) = gate();
    let model = Setup::with_sessions().hook(hook).load();
    let chat = tokens(1, 8);
    let request = |length| GenerateRequest::new(chat[..length].to_vec()).with_max_tokens(1).with_session(session());
    let first = model.generate(request(8));
    gate.begun();
    gate.pass();
    block_on(first.complete()).unwrap();
    assert_eq!(model.memory().kv_cache, 8 * CACHE_BYTES_PER_TOKEN);
    let second = model.generate(request(4));
    assert_eq!(gate.begun().position, 3);
    assert_eq!(model.memory().kv_cache, 3 * CACHE_BYTES_PER_TOKEN);
    gate.pass();
    block_on(second.complete()).unwrap();
    assert_eq!(model.memory().kv_cache, 4 * CACHE_BYTES_PER_TOKEN);
}

#[test]
fn a_prompt_that_is_computed_already_has_its_last_token_computed_anew() {
    let model = Setup::with_sessions().load();
    let chat = tokens(1, 20);
    turn(&model, &chat, 5);
    let before = model.counters().forward_tokens;
    assert_eq!(turn(&model, &chat, 5).usage.cached_tokens, 19);
    assert_eq!(model.counters().forward_tokens - before, 1 + 4);
    // A part of it, and one token.
    assert_eq!(turn(&model, &chat[..7], 1).usage.cached_tokens, 6);
    assert_eq!(computed(&model), 7);
    assert_eq!(turn(&model, &chat[..1], 2).usage.cached_tokens, 0);
    assert_eq!(computed(&model), 2);
}

#[test]
fn a_prompt_that_goes_another_way_keeps_what_is_common() {
    let model = Setup::with_sessions().load();
    let mut chat = tokens(1, 20);
    turn(&model, &chat, 5);
    chat[13] = 799;
    assert_eq!(turn(&model, &chat, 5).usage.cached_tokens, 13);
    assert_eq!(computed(&model), 24);
    // Nothing is common.
    chat[0] = 798;
    assert_eq!(turn(&model, &chat, 5).usage.cached_tokens, 0);
    assert_eq!(computed(&model), 24);
}

#[test]
fn a_cache_that_cannot_be_cut_is_computed_anew() {
    let truncate = |held, to| {
        assert_eq!((held, to), (24, 13));
        Ok(false)
    };
    let model = Setup { truncate: Box::new(truncate), ..Setup::with_sessions() }.load();
    let mut chat = tokens(1, 20);
    let done = turn(&model, &chat, 5);
    chat[13] = 799;
    let before = model.counters().forward_tokens;
    let second = turn(&model, &chat, 5);
    assert_eq!((second.usage.cached_tokens, second.stats.prefill_tokens), (0, 20));
    assert_eq!(model.counters().forward_tokens - before, 24);
    // What needs no cut goes on.
    chat.extend(second.tokens);
    assert_eq!(turn(&model, &chat, 1).usage.cached_tokens, 24);
    drop(done);
}

#[test]
fn a_generation_without_a_session_leaves_them_alone() {
    let model = Setup::with_sessions().load();
    let chat = tokens(1, 20);
    turn(&model, &chat, 5);
    let plain = GenerateRequest::new(chat.clone()).with_max_tokens(3);
    let done = block_on(model.generate(plain).complete()).unwrap();
    assert_eq!((done.tokens, done.usage), (answer(&chat, 3), Usage::new(20, 3)));
    assert_eq!(computed(&model), 24);
    assert_eq!(turn(&model, &chat, 1).usage.cached_tokens, 19);
}

#[test]
fn what_computes_nothing_leaves_the_session_as_it_was() {
    let model = Setup { context_length: 30, ..Setup::with_sessions() }.load();
    let chat = tokens(1, 20);
    turn(&model, &chat, 5);
    let counters = model.counters();
    let request = |prompt| GenerateRequest::new(prompt).with_session(session());
    let cancelled = CancellationToken::new();
    cancelled.cancel();
    for (request, usage, reason) in [
        (request(tokens(2, 9)).with_max_tokens(0), Usage::new(9, 0), FinishReason::Length),
        (request(tokens(2, 30)), Usage::new(30, 0), FinishReason::Length),
        (request(tokens(2, 9)).with_cancel(cancelled), Usage::new(9, 0), FinishReason::Cancelled),
    ] {
        let done = block_on(model.generate(request).complete()).unwrap();
        assert_eq!((done.usage, done.finish_reason), (usage, Some(reason)));
    }
    let error = block_on(model.generate(request(tokens(1, 31))).complete()).unwrap_err();
    assert!(matches!(error, Error::ContextLengthExceeded { prompt_tokens: 31, context_length: 30 }), "{error}");
    assert_eq!(try_turn(&model, &[896], 1).unwrap_err().code(), "invalid_spec");
    assert_eq!((computed(&model), model.counters()), (24, counters));
}

#[test]
fn a_session_that_fills_the_context_ends_with_length_and_keeps_what_is_computed() {
    let model = Setup { context_length: 24, ..Setup::with_sessions() }.load();
    let mut chat = tokens(1, 20);
    let request = GenerateRequest::new(chat.clone()).with_session(session());
    let done = block_on(model.generate(request).complete()).unwrap();
    assert_eq!((done.tokens.len(), done.finish_reason), (4, Some(FinishReason::Length)));
    assert_eq!(computed(&model), 23);
    chat.extend(&done.tokens[..2]);
    assert_eq!(turn(&model, &chat, 2).usage.cached_tokens, 21);
}

#[test]
fn a_cancelled_or_dropped_generation_keeps_what_it_computed() {
    let cancel = CancellationToken::new();
    let (reached, at) = (cancel.clone(), AtomicBool::new(false));
    let model = Setup::with_sessions()
        .hook(move |step| {
            // In the middle of the first prompt.
            if step.position == 8 && !at.swap(true, SeqCst) {
                reached.cancel();
            }
            Ok(())
        })
        .load();
    let mut chat = tokens(1, 20);
    let request = GenerateRequest::new(chat.clone()).with_session(session()).with_cancel(cancel);
    let done = block_on(model.generate(request).complete()).unwrap();
    assert_eq!((done.finish_reason, done.stats.prefill_tokens), (Some(FinishReason::Cancelled), 16));
    assert_eq!(computed(&model), 16);
    // Dropped with its first token unread; the export waits for the worker to see it.
    let dropped = model.generate(GenerateRequest::new(chat.clone()).with_session(session()));
    block_on(model.logits(llm_local_core::LogitsRequest::new(tokens(9, 40)))).unwrap();
    drop(dropped);
    assert_eq!(computed(&model), 20);
    chat.push(3);
    assert_eq!(turn(&model, &chat, 2).usage.cached_tokens, 20);
}

#[test]
fn a_stop_text_or_the_end_of_the_answer_keeps_what_is_computed() {
    let eos = super::fake::text().eos_ids()[0];
    let ids = super::fake::text().encode(&"Once upon a time".into()).unwrap();
    let mut script = ids[..3].to_vec();
    script.extend([eos, 300]);
    let model = Setup { keeps_sessions: true, ..Setup::default() }.script(4, script).load();
    let request = || GenerateRequest::new(tokens(1, 4)).with_session(session());
    let done = block_on(model.generate(request()).complete()).unwrap();
    assert_eq!((done.tokens.len(), done.finish_reason), (3, Some(FinishReason::Eos)));
    // The end-of-sequence token is not computed, what it follows is.
    assert_eq!(computed(&model), 7);
    let stopped = block_on(model.generate(request().with_stop(done.text.trim())).complete()).unwrap();
    assert_eq!(stopped.finish_reason, Some(FinishReason::Stop));
    assert_eq!(stopped.usage.cached_tokens, 3);
    assert_eq!(computed(&model), 3 + stopped.tokens.len());
}

#[test]
fn an_error_or_panic_drops_what_the_session_has() {
    let (armed, arm) = (Arc::new(AtomicBool::new(false)), |armed: &AtomicBool| armed.store(true, SeqCst));
    for panics in [false, true] {
        let fuse = armed.clone();
        let model = Setup::with_sessions()
            .hook(move |step| {
                if step.position >= 24 && fuse.swap(false, SeqCst) {
                    assert!(!panics, "the bits fell out");
                    return Err(Error::generation("the device is on fire"));
                }
                Ok(())
            })
            .load();
        let mut chat = tokens(1, 20);
        chat.extend(turn(&model, &chat, 5).tokens);
        arm(&armed);
        assert_eq!(try_turn(&model, &chat, 5).unwrap_err().code(), "generation_failed");
        assert_eq!(computed(&model), 0);
        assert_eq!(turn(&model, &chat, 5).usage.cached_tokens, 0);
        assert_eq!(computed(&model), 29);
    }
}

#[test]
fn an_error_or_panic_in_cutting_a_cache_drops_it() {
    let mut cuts = 0;
    let truncate = move |_, _| {
        cuts += 1;
        assert_ne!(cuts, 1, "no knife");
        if cuts == 2 { Err(Error::generation("a blunt knife")) } else { Ok(true) }
    };
    let model = Setup { truncate: Box::new(truncate), ..Setup::with_sessions() }.load();
    let chat = tokens(1, 20);
    for message in ["panicked", "a blunt knife"] {
        turn(&model, &chat, 5);
        let error = try_turn(&model, &chat[..9], 5).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
        assert_eq!(computed(&model), 0);
    }
    turn(&model, &chat, 5);
    assert_eq!(turn(&model, &chat[..9], 5).usage.cached_tokens, 8);
}

#[test]
fn trimming_sessions_frees_their_caches_and_the_next_turn_computes_anew() {
    let model = Setup::with_sessions().load();
    let chat = tokens(1, 20);
    turn(&model, &chat, 5);
    assert_eq!(block_on(model.trim(TrimLevel::Caches)).unwrap(), 7);
    assert_eq!(computed(&model), 24);
    assert_eq!(block_on(model.trim(TrimLevel::Sessions)).unwrap(), 24 * CACHE_BYTES_PER_TOKEN + 7);
    assert_eq!(computed(&model), 0);
    assert_eq!(turn(&model, &chat, 5).usage.cached_tokens, 0);
    assert_eq!(computed(&model), 24);
}

#[test]
fn an_ended_session_is_forgotten() {
    let model = Setup::with_sessions().load();
    let chat = tokens(1, 20);
    turn(&model, &chat, 5);
    block_on(model.end_session(SessionId::new("another"))).unwrap();
    assert_eq!(computed(&model), 24);
    block_on(model.end_session(session())).unwrap();
    assert_eq!(computed(&model), 0);
    assert_eq!(turn(&model, &chat, 5).usage.cached_tokens, 0);
}

#[test]
fn unload_drops_sessions_before_the_model() {
    let (drops, dropped) = mpsc::channel();
    let model = Setup { drops, ..Setup::with_sessions() }.load();
    turn(&model, &tokens(1, 20), 5);
    block_on(model.fork_session(&session(), SessionId::new("copy"))).unwrap();
    assert_eq!(model.memory().kv_cache, 2 * 24 * CACHE_BYTES_PER_TOKEN);
    assert_eq!(dropped.try_iter().count(), 0);
    block_on(model.unload()).unwrap();
    assert_eq!(dropped.try_iter().collect::<Vec<_>>(), ["cache", "cache", "model", "reservation"]);
    assert_eq!(model.memory().kv_cache, 0);
    for error in [
        try_turn(&model, &[1], 1).unwrap_err(),
        block_on(model.end_session(session())).unwrap_err(),
        block_on(model.fork_session(&session(), SessionId::new("copy"))).unwrap_err(),
        block_on(model.export_session(&session())).unwrap_err(),
    ] {
        assert_eq!(error.code(), "model_not_loaded");
    }
}

#[test]
fn a_session_does_not_keep_the_thread_alive() {
    let (drops, dropped) = mpsc::channel();
    let model = Setup { drops, ..Setup::with_sessions() }.load();
    turn(&model, &tokens(1, 20), 5);
    drop(model);
    assert_eq!(dropped.iter().collect::<Vec<_>>(), ["cache", "model", "reservation"]);
}

#[test]
fn panics_in_dropping_the_caches_of_sessions_are_errors_and_nothing_is_left() {
    let load = || Setup { panics_on_drop: "cache", ..Setup::with_sessions() }.load();
    let two = |model: &Arc<dyn LoadedModel>| {
        turn(model, &tokens(1, 20), 5);
        block_on(model.fork_session(&session(), SessionId::new("copy"))).unwrap();
    };
    let model = load();
    two(&model);
    let error = block_on(model.trim(TrimLevel::Sessions)).unwrap_err();
    assert!(error.to_string().contains("freeing the KV cache panicked"), "{error}");
    assert_eq!(model.memory().kv_cache, 0);
    two(&model);
    let error = block_on(model.end_session(session())).unwrap_err();
    assert!(error.to_string().contains("freeing the KV cache panicked"), "{error}");
    assert_eq!(computed_bytes_of_copy(&model), model.memory().kv_cache);
    let model = load();
    two(&model);
    block_on(model.unload()).unwrap();
    assert_eq!(model.memory().kv_cache, 0);
}

fn computed_bytes_of_copy(model: &Arc<dyn LoadedModel>) -> u64 {
    let copy = block_on(model.export_session(&SessionId::new("copy"))).unwrap();
    copy.tokens.len() as u64 * CACHE_BYTES_PER_TOKEN
}

#[test]
fn a_model_that_keeps_none_refuses_sessions_by_name() {
    let model = Setup::default().load();
    for error in [
        try_turn(&model, &[1], 1).unwrap_err(),
        block_on(model.fork_session(&session(), SessionId::new("copy"))).unwrap_err(),
        block_on(model.export_session(&session())).unwrap_err(),
        block_on(model.import_session(&session(), super::sharing::empty())).unwrap_err(),
    ] {
        assert!(matches!(&error, Error::Unsupported { what, .. } if what.contains("chat-1")), "{error}");
    }
    block_on(model.end_session(session())).unwrap();
    assert_eq!(model.counters(), Counters::default());
}
