//! The worker sleeps while nobody can take a turn, and wakes when somebody can. The test drives it, so that it knows.

use llm_local_core::{
    CancellationToken, GenerateRequest, LoadedModel, LogitsRequest, MemoryReport, SessionId, TrimLevel,
};

use super::{
    driven::Driven,
    fake::{Setup, prompt},
};

fn request(first: u32) -> GenerateRequest {
    GenerateRequest::new(prompt(first, 4))
}

fn in_session(first: u32) -> GenerateRequest {
    request(first).with_session(SessionId::new("s"))
}

/// Lets the worker do all it can, and checks that it had something to wake it.
fn wakes(worker: &mut Driven) {
    assert!(worker.is_woken());
    worker.drive();
}

#[test]
fn a_worker_sleeps_while_nobody_can_take_a_turn() {
    let mut worker = Driven::new(Setup::with_sessions());
    let model = worker.model.clone();
    // Nobody is there.
    worker.drive();
    assert!(!worker.is_woken());
    // One that nobody reads, one that waits for its session, and a call that does.
    let unread = model.generate(in_session(100));
    wakes(&mut worker);
    let waiting = model.generate(in_session(200));
    wakes(&mut worker);
    let mut end = model.end_session(SessionId::new("s"));
    assert!(worker.try_ask(&mut end).is_none());
    let steps = model.counters();
    for _ in 0..3 {
        assert!(!worker.is_woken());
        worker.drive();
    }
    assert_eq!(model.counters(), steps);
    drop((unread, waiting, end));
}

#[test]
fn what_a_worker_waits_for_wakes_it() {
    let mut worker = Driven::new(Setup::with_sessions());
    let model = worker.model.clone();
    worker.drive();
    let cancel = CancellationToken::new();
    let mut unread = model.generate(in_session(100));
    wakes(&mut worker);
    let cancelled = model.generate(in_session(200).with_cancel(cancel.clone()));
    wakes(&mut worker);
    let dropped = model.generate(in_session(300));
    wakes(&mut worker);
    // A call that has given up; what is behind it in the line gets ahead.
    let s = SessionId::new("s");
    let mut fork = model.fork_session(&s, SessionId::new("t"));
    assert!(worker.try_ask(&mut fork).is_none());
    let mut behind = model.generate(request(400).with_session(SessionId::new("t")).with_max_tokens(1));
    wakes(&mut worker);
    assert!(worker.try_ask(&mut Box::pin(behind.next())).is_none());
    drop(fork);
    wakes(&mut worker);
    assert!(matches!(worker.try_ask(&mut Box::pin(behind.next())), Some(Some(Ok(_)))));

    // Reading one makes room for its next event.
    let steps = model.counters().forward_steps;
    assert!(matches!(worker.read(&mut unread), Some(Some(Ok(_)))));
    wakes(&mut worker);
    assert_eq!(model.counters().forward_steps, steps + 1);
    drop(dropped);
    wakes(&mut worker);
    cancel.cancel();
    wakes(&mut worker);
    assert_eq!(worker.finish(cancelled).unwrap().usage.prompt_tokens, 4);
    drop(unread);
    wakes(&mut worker);
}

#[test]
fn a_session_that_is_dropped_goes_to_one_that_was_passed_over_before() {
    let s = SessionId::new("s");
    let mut worker = Driven::new(Setup::with_sessions());
    let model = worker.model.clone();
    let mut export = model.export_session(&s);
    for calls in [false, true] {
        let before = model.counters().forward_tokens;
        let mut holds = model.generate(in_session(100));
        worker.drive();
        let waits = (!calls).then(|| model.generate(in_session(200).with_max_tokens(1)));
        if calls {
            assert!(worker.try_ask(&mut export).is_none());
        }
        worker.drive();
        // A turn puts it behind the one that waits, which is then looked at first, and in vain.
        assert!(matches!(worker.read(&mut holds), Some(Some(Ok(_)))));
        wakes(&mut worker);
        assert_eq!(model.counters().forward_tokens - before, 5);
        drop(holds);
        wakes(&mut worker);
        // Nobody has read anything of it, and yet it has ended.
        assert_eq!(model.counters().forward_tokens - before, if calls { 5 } else { 9 });
        assert!(!calls || worker.try_ask(&mut export).is_some());
        drop(waits);
    }
}

#[test]
fn commands_wake_a_worker_beside_generations_that_cannot_go_on() {
    let mut worker = Driven::new(Setup::with_sessions());
    let model = worker.model.clone();
    worker.drive();
    let unread = model.generate(in_session(100));
    let waiting = model.generate(in_session(200));
    assert_eq!(worker.ask(|model| model.trim(TrimLevel::Sessions)).unwrap(), 7);
    worker.ask(|model| model.logits(LogitsRequest::new(prompt(300, 20)))).unwrap();
    let mut end = model.end_session(SessionId::new("s"));
    assert!(worker.try_ask(&mut end).is_none());
    let mut unload = model.unload();
    assert!(worker.try_ask(&mut unload).is_some());
    assert_eq!(worker.try_ask(&mut end).unwrap().unwrap_err().code(), "model_not_loaded");
    for generation in [unread, waiting] {
        assert_eq!(worker.finish(generation).unwrap_err().code(), "model_not_loaded");
    }
    assert_eq!(model.memory(), MemoryReport::default());
}
