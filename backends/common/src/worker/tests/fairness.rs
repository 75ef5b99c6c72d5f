//! Whose turn it is, and that nobody holds the others up.

use std::{future::poll_fn, task::Poll};

use llm_local_core::{FinishReason, GenerateRequest, LogitsRequest, TrimLevel};
use pollster::block_on;

use super::fake::{Setup, best, gate, next, next_id, next_token, prompt};

#[test]
fn prompts_and_logits_are_computed_a_chunk_each_in_turn() {
    let (hook, gate) = gate();
    let model = Setup::default().hook(hook).load();
    let request = |first| GenerateRequest::new(prompt(first, 24)).with_max_tokens(1);
    let a = model.generate(request(100));
    assert_eq!(gate.begun().prompt, 100);
    // While the first step of `a` is being computed, the others come.
    let b = model.generate(request(200));
    let mut logits = model.logits(LogitsRequest::new(prompt(300, 24)));
    block_on(poll_fn(|cx| {
        assert!(logits.as_mut().poll(cx).is_pending());
        Poll::Ready(())
    }));
    let c = model.generate(request(400));
    let steps = gate.open();
    assert_eq!(block_on(logits).unwrap(), best(next_id(&[5])));
    for generation in [a, b, c] {
        assert_eq!(block_on(generation.complete()).unwrap().tokens.len(), 1);
    }
    drop(model);
    // The first step has been received above; when the others come, its generation is at the front already.
    let order: Vec<u32> = steps.iter().map(|step| step.prompt).collect();
    assert_eq!(order, [100, 200, 300, 400, 100, 200, 300, 400, 200, 300, 400]);
}

#[test]
fn tokens_are_computed_one_each_in_turn() {
    let (hook, gate) = gate();
    let model = Setup::default().hook(hook).load();
    let mut a = model.generate(GenerateRequest::new(prompt(100, 4)));
    assert_eq!(gate.begun().prompt, 100);
    let mut b = model.generate(GenerateRequest::new(prompt(200, 4)));
    gate.pass();
    next_token(&mut a);
    // Whether that was read in time for `a` to be next is chance. From here on it is not: the other one has room and
    // has its turn before this one's next, however fast this one is read.
    let mut turn = gate.begun().prompt;
    for _ in 0..20 {
        gate.pass();
        next_token(if turn == 100 { &mut a } else { &mut b });
        turn = 300 - turn;
        assert_eq!(gate.begun().prompt, turn);
    }
    drop((a, b));
    gate.open();
}

#[test]
fn an_unread_generation_holds_nobody_up() {
    let model = Setup::default().load();
    let mut unread = model.generate(GenerateRequest::new(prompt(100, 4)));
    let read = model.generate(GenerateRequest::new(prompt(200, 20)).with_max_tokens(50));
    let done = block_on(read.complete()).unwrap();
    assert_eq!((done.tokens.len(), done.finish_reason), (50, Some(FinishReason::Length)));
    assert_eq!(block_on(model.logits(LogitsRequest::new(prompt(300, 20)))).unwrap(), best(next_id(&[5])));
    assert_eq!(block_on(model.trim(TrimLevel::Caches)).unwrap(), 7);
    // The unread one computed its prompt, and waits for room for a second token.
    assert_eq!(model.counters().forward_steps, 1 + (3 + 49) + 3);
    block_on(model.unload()).unwrap();
    next_token(&mut unread);
    assert_eq!(next(&mut unread).unwrap().unwrap_err().code(), "model_not_loaded");
    assert!(next(&mut unread).is_none());
}

#[test]
fn an_unread_generation_goes_on_when_it_is_read() {
    let model = Setup::default().load();
    let unread = model.generate(GenerateRequest::new(prompt(100, 4)).with_max_tokens(5));
    block_on(model.logits(LogitsRequest::new(prompt(300, 20)))).unwrap();
    assert_eq!(block_on(unread.complete()).unwrap().tokens.len(), 5);
}

#[test]
fn a_last_event_needs_no_reader() {
    let model = Setup::default().load();
    let unread = model.generate(GenerateRequest::new(prompt(100, 4)).with_max_tokens(1));
    block_on(model.logits(LogitsRequest::new(prompt(300, 20)))).unwrap();
    // It has ended although nobody has read a thing: its memory is back.
    assert_eq!(model.memory().kv_cache, 0);
    let done = block_on(unread.complete()).unwrap();
    assert_eq!((done.tokens.len(), done.finish_reason), (1, Some(FinishReason::Length)));
}
