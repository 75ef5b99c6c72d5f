//! One session and more than one request; and what goes from one session to another.

use std::collections::BTreeMap;

use llm_local_core::{
    CancellationToken, FinishReason, FloatType, GenerateRequest, Generation, LoadedModel, SessionId, SessionState,
    TrimLevel,
};

use super::{
    driven::Driven,
    fake::{CACHE_BYTES_PER_TOKEN, Setup, answer, metadata, tensor},
};

pub(super) fn empty() -> SessionState {
    SessionState::new(Vec::new(), BTreeMap::new(), Vec::new())
}

fn request(session: &str, prompt: &[u32]) -> GenerateRequest {
    GenerateRequest::new(prompt.to_vec()).with_session(SessionId::new(session)).with_max_tokens(3)
}

/// Generates in the session, checks the answer, and gives how many tokens of the prompt were cached.
fn turn(worker: &mut Driven, session: &str, prompt: &[u32]) -> usize {
    let done = worker.complete(request(session, prompt)).unwrap();
    assert_eq!(done.tokens, answer(prompt, 3));
    done.usage.cached_tokens
}

pub(super) fn export(worker: &mut Driven, session: &str) -> SessionState {
    let session = SessionId::new(session);
    let model = worker.model.clone();
    let mut export = model.export_session(&session);
    worker.drive();
    worker.try_ask(&mut export).expect("an answer").unwrap()
}

pub(super) fn fork(worker: &mut Driven, from: &str, to: &str) {
    let (from, to) = (SessionId::new(from), SessionId::new(to));
    let model = worker.model.clone();
    worker.drive();
    worker.try_ask(&mut model.fork_session(&from, to)).expect("an answer").unwrap();
}

pub(super) fn import(worker: &mut Driven, session: &str, state: SessionState) -> llm_local_core::Result<()> {
    let session = SessionId::new(session);
    let model = worker.model.clone();
    worker.drive();
    worker.try_ask(&mut model.import_session(&session, state)).expect("an answer")
}

#[test]
fn requests_for_one_session_wait_for_each_other_in_order() {
    let mut worker = Driven::new(Setup::with_sessions());
    let model = worker.model.clone();
    let chat: Vec<u32> = (10..30).collect();
    let first = model.generate(request("s", &chat));
    worker.drive();
    let waiting: Vec<Generation> = (1..4).map(|n| model.generate(request("s", &chat[..20 - n]))).collect();
    let s = SessionId::new("s");
    let mut export = model.export_session(&s);
    assert!(worker.try_ask(&mut export).is_none());
    let last = model.generate(request("s", &[7]));
    worker.drive();
    // Only the first has computed anything, and others go on beside.
    assert_eq!(model.counters().forward_tokens, 20);
    assert_eq!(turn(&mut worker, "t", &[1, 2, 3]), 0);
    // Each ends only when it is read, and then the next one begins: the last token of its prompt is computed anew.
    assert_eq!(worker.finish(first).unwrap().tokens, answer(&chat, 3));
    for (n, generation) in (1..).zip(waiting) {
        assert!(worker.try_ask(&mut export).is_none());
        let done = worker.finish(generation).unwrap();
        assert_eq!(done.tokens, answer(&chat[..20 - n], 3));
        assert_eq!(done.usage.cached_tokens, 19 - n);
    }
    // The call saw what the one before it left.
    let state = worker.try_ask(&mut export).unwrap().unwrap();
    assert_eq!(state.tokens, [&chat[..17], &answer(&chat[..17], 2)].concat());
    assert_eq!(worker.finish(last).unwrap().usage.cached_tokens, 0);
}

#[test]
fn one_that_waits_can_be_cancelled_or_dropped_and_the_line_goes_on() {
    let mut worker = Driven::new(Setup::with_sessions());
    let model = worker.model.clone();
    let holds = model.generate(request("s", &[1, 2, 3]));
    worker.drive();
    let cancel = CancellationToken::new();
    let cancelled = model.generate(request("s", &[4, 5]).with_cancel(cancel.clone()));
    let dropped = model.generate(request("s", &[6]));
    let next = model.generate(request("s", &[1, 2, 3, 4]));
    cancel.cancel();
    let done = worker.finish(cancelled).unwrap();
    assert_eq!((done.finish_reason, done.usage.prompt_tokens), (Some(FinishReason::Cancelled), 2));
    drop(dropped);
    worker.drive();
    assert_eq!(model.counters().forward_tokens, 3);
    drop(holds);
    let done = worker.finish(next).unwrap();
    assert_eq!((done.tokens, done.usage.cached_tokens), (answer(&[1, 2, 3, 4], 3), 3));
    assert_eq!(model.counters().forward_tokens, 3 + 1 + 2);
}

#[test]
fn a_session_in_use_is_not_trimmed() {
    let mut worker = Driven::new(Setup::with_sessions());
    let model = worker.model.clone();
    turn(&mut worker, "idle", &[1, 2, 3]);
    let running = model.generate(request("used", &[4, 5, 6]));
    worker.drive();
    assert_eq!(model.memory().kv_cache, (5 + 3) * CACHE_BYTES_PER_TOKEN);
    let freed = worker.ask(|model| model.trim(TrimLevel::Sessions)).unwrap();
    assert_eq!(freed, 5 * CACHE_BYTES_PER_TOKEN + 7);
    assert_eq!(worker.finish(running).unwrap().tokens, answer(&[4, 5, 6], 3));
    assert_eq!(model.memory().kv_cache, 5 * CACHE_BYTES_PER_TOKEN);
    assert_eq!(turn(&mut worker, "idle", &[1, 2, 3]), 0);
}

#[test]
fn a_fork_goes_on_by_itself() {
    let mut worker = Driven::new(Setup::with_sessions());
    let chat: Vec<u32> = (10..30).collect();
    turn(&mut worker, "s", &chat);
    turn(&mut worker, "t", &[1, 2, 3]);
    fork(&mut worker, "s", "t");
    assert_eq!(worker.model.memory().kv_cache, 2 * 22 * CACHE_BYTES_PER_TOKEN);
    assert_eq!(export(&mut worker, "t"), export(&mut worker, "s"));
    let with = |last: u32| [chat.clone(), vec![last]].concat();
    assert_eq!(turn(&mut worker, "t", &with(7)), 20);
    assert_eq!(turn(&mut worker, "s", &with(8)), 20);
    assert_eq!(turn(&mut worker, "t", &with(7)), 20);
    worker.ask(|model| model.end_session(SessionId::new("s"))).unwrap();
    assert_eq!(turn(&mut worker, "t", &with(7)), 20);
    // To itself it is nothing; from one that has computed nothing, so is the copy.
    fork(&mut worker, "t", "t");
    assert_eq!(turn(&mut worker, "t", &with(7)), 20);
    fork(&mut worker, "nobody", "t");
    assert_eq!(worker.model.memory().kv_cache, 0);
}

#[test]
fn forks_wait_for_both_sessions_and_never_for_each_other() {
    let mut worker = Driven::new(Setup::with_sessions());
    let model = worker.model.clone();
    let (a, b) = (SessionId::new("a"), SessionId::new("b"));
    let in_a = model.generate(request("a", &[1, 2, 3]));
    let in_b = model.generate(request("b", &[4, 5, 6]));
    worker.drive();
    let mut there = model.fork_session(&a, b.clone());
    let mut back = model.fork_session(&b, a.clone());
    assert!(worker.try_ask(&mut there).is_none() && worker.try_ask(&mut back).is_none());
    worker.finish(in_a).unwrap();
    assert!(worker.try_ask(&mut there).is_none() && worker.try_ask(&mut back).is_none());
    worker.finish(in_b).unwrap();
    worker.try_ask(&mut there).unwrap().unwrap();
    worker.try_ask(&mut back).unwrap().unwrap();
    for session in ["a", "b"] {
        assert_eq!(export(&mut worker, session).tokens[..3], [1, 2, 3]);
    }
}

#[test]
fn a_fork_that_fails_leaves_both_as_they_were() {
    let mut caches = 0;
    let new_cache = move || {
        caches += 1;
        if caches == 3 { Err(llm_local_core::Error::insufficient_memory(2, 1)) } else { Ok(()) }
    };
    let mut worker = Driven::new(Setup { new_cache: Box::new(new_cache), ..Setup::with_sessions() });
    let model = worker.model.clone();
    turn(&mut worker, "s", &[1, 2, 3]);
    turn(&mut worker, "t", &[4, 5, 6]);
    worker.drive();
    let s = SessionId::new("s");
    let failed = worker.try_ask(&mut model.fork_session(&s, SessionId::new("t"))).unwrap();
    assert_eq!(failed.unwrap_err().code(), "insufficient_memory");
    assert_eq!(export(&mut worker, "s").tokens[..3], [1, 2, 3]);
    assert_eq!(export(&mut worker, "t").tokens[..3], [4, 5, 6]);
    fork(&mut worker, "s", "t");
    assert_eq!(export(&mut worker, "t").tokens[..3], [1, 2, 3]);
}

#[test]
fn what_is_exported_goes_on_in_another_worker() {
    let chat: Vec<u32> = (10..30).collect();
    let state = {
        let mut worker = Driven::new(Setup::with_sessions());
        assert_eq!(export(&mut worker, "s"), empty());
        turn(&mut worker, "s", &chat);
        let state = export(&mut worker, "s");
        // It is still there.
        assert_eq!(turn(&mut worker, "s", &chat), 19);
        state
    };
    assert_eq!(state.tokens, [&chat[..], &answer(&chat, 2)].concat());
    assert_eq!(state.metadata["format"], "fake-1");
    let mut worker = Driven::new(Setup::with_sessions());
    turn(&mut worker, "s", &[1, 2, 3]);
    import(&mut worker, "s", state.clone()).unwrap();
    assert_eq!(worker.model.memory().kv_cache, 22 * CACHE_BYTES_PER_TOKEN);
    assert_eq!(export(&mut worker, "s"), state);
    let longer = [&state.tokens[..], &[5]].concat();
    assert_eq!(turn(&mut worker, "s", &longer), 22);
    import(&mut worker, "s", empty()).unwrap();
    assert_eq!(worker.model.memory().kv_cache, 0);
}

#[test]
fn a_state_that_is_not_of_this_model_is_refused_and_changes_nothing() {
    let mut worker = Driven::new(Setup { context_length: 30, ..Setup::with_sessions() });
    turn(&mut worker, "s", &[1, 2, 3]);
    let before = export(&mut worker, "s");
    let state = |tokens: Vec<u32>| {
        let tensors = vec![tensor(&tokens)];
        SessionState::new(tokens, metadata(), tensors)
    };
    let mut other = state(vec![1, 2]);
    other.tensors[0].dtype = FloatType::F16;
    for (state, message) in [
        (state(vec![1, 896]), "token 1 has the id 896"),
        (state(vec![1; 31]), "it has 31 tokens"),
        (state(vec![]), "it has 1 tensors but no tokens"),
        (other, "with the tensors"),
    ] {
        let error = import(&mut worker, "s", state).unwrap_err();
        assert_eq!(error.code(), "invalid_spec");
        assert!(error.to_string().contains(message), "{error}");
        assert_eq!(export(&mut worker, "s"), before);
    }
    // As long as the context is not too long; the prompt that uses it may be shorter only.
    let full: Vec<u32> = (0..30).collect();
    import(&mut worker, "s", state(full.clone())).unwrap();
    assert_eq!(turn(&mut worker, "s", &full[..27]), 26);
}
