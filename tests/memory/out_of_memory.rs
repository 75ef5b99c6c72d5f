//! Allocations that fail while a model is loaded.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use llm_local::{
    ContextLength, Error, GenerateRequest,
    memory::{EvictionReason, MemoryEvent},
};
use pollster::block_on;

use crate::world::{GB, MB, Setup, Size, World, evicted, spec};

/// A machine whose first `times` loads of `m` fail so.
fn failing(times: usize, error: fn() -> Error) -> World {
    let begun = AtomicUsize::new(0);
    let sizes = [("m", Size::of(100 * MB).with_token(1000)), ("other", Size::of(MB))];
    let fail = move |model: &str| (model == "m" && begun.fetch_add(1, SeqCst) < times).then(error);
    Setup::new(4 * GB, &sizes).backend(move |backend| backend.with_failure_fn(move |model, _, _| fail(model))).build()
}

fn out_of_memory() -> Error {
    Error::out_of_memory("cpu", "the allocator said no")
}

/// Whether nothing is promised, and a load works.
fn is_as_before(world: &World) {
    assert!(world.models().is_empty(), "{:?}", world.status().models);
    assert_eq!((world.backend.held(), world.backend.calls().live()), (0, 0));
    works(world, 2048);
}

fn works(world: &World, context: usize) {
    block_on(async {
        let model = world.engine.load(&spec("m")).await.unwrap();
        assert_eq!(model.info().context_length, context);
        assert_eq!(model.generate(GenerateRequest::new("hello")).complete().await.unwrap().text, "hello");
        assert_eq!(world.resident("m").promised, 100 * MB + 1000 * context as u64);
    });
}

#[test]
fn one_that_fails_once_is_retried_with_half_the_context_when_idle_models_are_gone() {
    let world = failing(1, out_of_memory);
    block_on(world.engine.load(&spec("other"))).unwrap();
    works(&world, 1024);
    let events = world.events();
    assert_eq!(evicted(&events), ["other"]);
    let retried = |event: &MemoryEvent| matches!(event, MemoryEvent::Retried { model, context_length: 1024, reason } if model == "m" && reason.contains("the allocator said no"));
    let gone = |event: &MemoryEvent| matches!(event, MemoryEvent::Evicted { reason: EvictionReason::RoomFor { model }, .. } if model == "m");
    let at = |is: &dyn Fn(&MemoryEvent) -> bool| events.iter().position(is);
    assert!(at(&gone).unwrap() < at(&retried).unwrap(), "{events:?}");
    assert_eq!(world.backend.calls().failed, 1);
    assert_eq!(world.resident("m").promised, 100 * MB + 1_024_000);
}

#[test]
fn one_that_fails_twice_is_an_error_and_the_engine_is_as_before() {
    let world = failing(2, out_of_memory);
    let error = block_on(world.engine.load(&spec("m"))).unwrap_err();
    assert!(matches!(&error, Error::OutOfMemory { device, .. } if device == "cpu"), "{error}");
    assert_eq!(world.backend.calls().loads, 2);
    is_as_before(&world);
}

#[test]
fn a_context_that_was_asked_for_is_not_shortened() {
    let world = failing(1, out_of_memory);
    let asking = spec("m").with_context_length(ContextLength::Tokens(1000));
    let error = block_on(world.engine.load(&asking)).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    assert_eq!(world.backend.calls().loads, 1);
    assert!(world.events().iter().all(|event| !matches!(event, MemoryEvent::Retried { .. })));
    is_as_before(&world);
}

#[test]
fn any_other_failure_is_not_retried() {
    let world = failing(1, || Error::load("m", "broken"));
    let error = block_on(world.engine.load(&spec("m"))).unwrap_err();
    assert!(error.to_string().contains("broken"), "{error}");
    assert_eq!(world.backend.calls().loads, 1);
    is_as_before(&world);
}

#[test]
fn a_device_with_less_than_it_says_gets_the_context_that_it_can_hold() {
    let sizes = [("m", Size::of(100 * MB).with_token(10_000))];
    // 120.5 MB with 2048 tokens, 110.2 with 1024.
    let world = Setup::new(4 * GB, &sizes).backend(|backend| backend.with_out_of_memory_above(111 * MB)).build();
    let model = block_on(world.engine.load(&spec("m"))).unwrap();
    assert_eq!(model.info().context_length, 1024);
    let reason = &model.plan().model.as_ref().unwrap().context_reason;
    assert!(reason.contains("2048 did not fit"), "{reason}");
}
