//! Generations that are dropped or cancelled.

use std::{
    future::poll_fn,
    sync::{Arc, mpsc},
    task::Poll,
};

use llm_local_core::{
    CancellationToken, Counters, FinishReason, GenerateRequest, GenerationEvent, LoadedModel, LogitsRequest,
    MemoryReport, SessionId, TrimLevel, Usage,
};
use pollster::block_on;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use super::fake::{CACHE_BYTES_PER_TOKEN, Setup, WEIGHT_BYTES, gate, next, next_token, prompt};

/// A generation to its end. Every earlier request that could take a turn has had one by then.
fn fence(model: &Arc<dyn LoadedModel>) {
    let fence = GenerateRequest::new(prompt(700, 20)).with_max_tokens(3);
    block_on(model.generate(fence).complete()).unwrap();
}

#[test]
fn a_dropped_generation_computes_only_the_step_it_is_in() {
    let (hook, gate) = gate();
    let model = Setup { prefill_chunk: 64, ..Setup::default() }.hook(hook).load();
    let generation = model.generate(GenerateRequest::new(prompt(100, 2000)));
    assert_eq!(gate.begun().position, 0);
    gate.pass();
    // In the middle of the prompt.
    assert_eq!(gate.begun().position, 64);
    drop(generation);
    let steps = gate.open();
    fence(&model);
    drop(model);
    assert!(steps.iter().all(|step| step.prompt != 100));
}

#[test]
fn a_generation_dropped_between_tokens_computes_only_the_step_it_is_in() {
    let (hook, gate) = gate();
    let model = Setup::default().hook(hook).load();
    let mut generation = model.generate(GenerateRequest::new(prompt(100, 2)));
    gate.begun();
    gate.pass();
    next_token(&mut generation);
    assert_eq!(gate.begun().position, 2);
    drop(generation);
    let steps = gate.open();
    fence(&model);
    assert_eq!(model.memory(), MemoryReport::new(WEIGHT_BYTES, 0));
    drop(model);
    assert!(steps.iter().all(|step| step.prompt != 100));
}

#[test]
fn a_generation_dropped_while_it_waits_for_its_reader_computes_nothing_more() {
    let model = Setup::default().load();
    let generation = model.generate(GenerateRequest::new(prompt(100, 4)));
    fence(&model);
    assert_eq!(model.memory().kv_cache, 4 * CACHE_BYTES_PER_TOKEN);
    drop(generation);
    fence(&model);
    assert_eq!(model.memory().kv_cache, 0);
    assert_eq!(model.counters(), Counters::new(1 + 2 * 5, 4 + 2 * 22));
}

#[test]
fn logits_that_nobody_waits_for_are_not_computed_further() {
    let (hook, gate) = gate();
    let model = Setup::default().hook(hook).load();
    let mut logits = model.logits(LogitsRequest::new(prompt(100, 2000)));
    block_on(poll_fn(|cx| {
        assert!(logits.as_mut().poll(cx).is_pending());
        Poll::Ready(())
    }));
    gate.begun();
    drop(logits);
    let steps = gate.open();
    fence(&model);
    drop(model);
    assert!(steps.iter().all(|step| step.prompt != 100));
}

#[test]
fn a_cancelled_generation_gives_its_usage() {
    let (hook, gate) = gate();
    let model = Setup { prefill_chunk: 64, ..Setup::default() }.hook(hook).load();
    let cancel = CancellationToken::new();
    let mut generation = model.generate(GenerateRequest::new(prompt(100, 2000)).with_cancel(cancel.clone()));
    gate.begun();
    cancel.cancel();
    let steps = gate.open();
    let Some(Ok(GenerationEvent::Finished { reason, usage, stats, .. })) = next(&mut generation) else {
        panic!("expected the end");
    };
    assert_eq!((reason, usage), (FinishReason::Cancelled, Usage::new(2000, 0)));
    assert_eq!((stats.prefill_tokens, stats.time_to_first_token), (64, None));
    assert!(next(&mut generation).is_none());
    // The next one works at once.
    fence(&model);
    drop(model);
    assert!(steps.iter().all(|step| step.prompt != 100));
}

#[test]
fn an_unread_generation_is_cancelled_without_its_reader() {
    let model = Setup::default().load();
    let cancel = CancellationToken::new();
    let mut generation = model.generate(GenerateRequest::new(prompt(100, 4)).with_cancel(cancel.clone()));
    fence(&model);
    assert_eq!(model.memory().kv_cache, 4 * CACHE_BYTES_PER_TOKEN);
    cancel.cancel();
    fence(&model);
    assert_eq!(model.memory().kv_cache, 0);
    next_token(&mut generation);
    let end = next(&mut generation).unwrap().unwrap();
    assert!(
        matches!(end, GenerationEvent::Finished { reason: FinishReason::Cancelled, usage, .. } if usage == Usage::new(4, 1))
    );
}

#[test]
fn cancelling_wakes_a_sleeping_worker() {
    let (drops, dropped) = mpsc::channel();
    let model = Setup { drops, ..Setup::default() }.load();
    let cancel = CancellationToken::new();
    let generation = model.generate(GenerateRequest::new(prompt(100, 4)).with_cancel(cancel.clone()));
    fence(&model);
    assert_eq!(dropped.recv(), Ok("cache"));
    // Nothing but this tells the worker to look at the one that waits for its reader.
    cancel.cancel();
    assert_eq!(dropped.recv(), Ok("cache"));
    assert_eq!(block_on(generation.complete()).unwrap().finish_reason, Some(FinishReason::Cancelled));
}

#[test]
fn a_request_cancelled_before_it_begins_computes_nothing() {
    let model = Setup::default().load();
    let cancel = CancellationToken::new();
    cancel.cancel();
    let done = block_on(model.generate(GenerateRequest::new(prompt(100, 4)).with_cancel(cancel)).complete()).unwrap();
    assert_eq!((done.finish_reason, done.usage), (Some(FinishReason::Cancelled), Usage::new(4, 0)));
    assert_eq!(model.counters(), Counters::default());
}

#[test]
fn a_thousand_generations_that_end_anywhere_leave_nothing_behind() {
    let (drops, dropped) = mpsc::channel();
    let (made, caches) = mpsc::channel();
    let new_cache = move || {
        made.send(()).unwrap();
        Ok(())
    };
    let model = Setup { drops, new_cache: Box::new(new_cache), ..Setup::with_sessions() }.load();
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut below = |n: u32| rng.next_u32() % n;
    let mut held = Vec::new();
    for n in 0..1000 {
        let cancel = CancellationToken::new();
        let mut request = GenerateRequest::new(prompt(below(3), 1 + below(40) as usize)).with_cancel(cancel.clone());
        let shares = below(8) == 0;
        if shares {
            request = request.with_session(SessionId::new("shared"));
        } else if below(2) == 0 {
            request = request.with_session(SessionId::new(n.to_string()));
        }
        held.push((model.generate(request), cancel, shares));
        // Several at a time; the oldest are not the first to go.
        if held.len() == 7 {
            let (mut generation, cancel, shares) = held.swap_remove(below(7) as usize);
            // One that shares its session may wait for another that is held here, so nothing is read of it.
            for _ in 0..if shares { 0 } else { below(4) } {
                next_token(&mut generation);
            }
            if below(2) == 0 {
                cancel.cancel();
                assert_eq!(block_on(generation.complete()).unwrap().finish_reason, Some(FinishReason::Cancelled));
            } else {
                drop(generation);
            }
        }
    }
    drop(held);
    fence(&model);
    block_on(model.trim(TrimLevel::Sessions)).unwrap();
    assert_eq!(model.memory(), MemoryReport::new(WEIGHT_BYTES, 0));
    fence(&model);
    assert_eq!(dropped.try_iter().count(), caches.try_iter().count());
}

#[test]
fn nothing_is_computed_behind_a_cancel_in_the_same_turn() {
    let cancel = CancellationToken::new();
    let in_cache = cancel.clone();
    let new_cache = move || {
        in_cache.cancel();
        Ok(())
    };
    let model = Setup { new_cache: Box::new(new_cache), ..Setup::default() }.load();
    let request = GenerateRequest::new(prompt(100, 4)).with_cancel(cancel);
    let done = block_on(model.generate(request).complete()).unwrap();
    assert_eq!((done.finish_reason, done.usage), (Some(FinishReason::Cancelled), Usage::new(4, 0)));
    assert_eq!((model.counters(), model.memory().kv_cache), (Counters::default(), 0));
}

#[test]
fn nothing_is_computed_behind_a_drop_in_the_same_turn() {
    let (entered, making) = mpsc::channel();
    let (go, may_go) = mpsc::channel();
    let new_cache = move || {
        entered.send(()).unwrap();
        // Without a keeper, the gate is open.
        let _ = may_go.recv();
        Ok(())
    };
    let model = Setup { new_cache: Box::new(new_cache), ..Setup::default() }.load();
    let generation = model.generate(GenerateRequest::new(prompt(100, 4)));
    making.recv().unwrap();
    drop(generation);
    go.send(()).unwrap();
    let mut logits = model.logits(LogitsRequest::new(prompt(100, 4)));
    block_on(poll_fn(|cx| {
        assert!(logits.as_mut().poll(cx).is_pending());
        Poll::Ready(())
    }));
    making.recv().unwrap();
    drop(logits);
    drop(go);
    block_on(model.trim(TrimLevel::Caches)).unwrap();
    assert_eq!((model.counters(), model.memory().kv_cache), (Counters::default(), 0));
}
