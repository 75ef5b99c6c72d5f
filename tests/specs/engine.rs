//! The engine: one model per spec, one load at a time, cancelling, unloading, and what a plan says.

#![cfg(feature = "local")]

use std::{
    sync::{Arc, Mutex},
    task::Context,
};

use crate::common::{fixture_ref, tiny};
use futures_util::{FutureExt, StreamExt, future::join};
use llm_local::{
    BackendPreference, Engine, Error, FinishReason, GenerateRequest, GenerationEvent, LogitsRequest, Message,
    ModelSpec, ProgressEvent,
    core::{CancellationToken, DeviceInfo, DeviceKind, Support},
};
use llm_local_testkit::fakes::{FakeBackend, Gate, MemorySource};
use pollster::block_on;

fn engine_with(backend: &Arc<FakeBackend>) -> Engine {
    let registry = llm_local::builtin::registry().unwrap().with_backend(backend.clone());
    Engine::builder().registry(registry).cache_dir(env!("CARGO_TARGET_TMPDIR")).build().unwrap()
}

fn spec(adapter: Option<&str>) -> ModelSpec {
    tiny(adapter).with_backend(BackendPreference::Named("fake".into()))
}

#[test]
fn the_same_spec_twice_is_one_model_and_another_spec_is_another() {
    let backend = Arc::new(FakeBackend::new("fake"));
    let engine = engine_with(&backend);
    block_on(async {
        let one = engine.load(&spec(None)).await.unwrap();
        let same = engine.load(&spec(None).with_id("other name").with_description("for people")).await.unwrap();
        assert!(one.is_same(&same));
        let with_adapter = engine.load(&spec(Some("peft"))).await.unwrap();
        assert!(!one.is_same(&with_adapter));
        let adapter = fixture_ref("adapters/tiny-llama-lora-peft");
        let weaker = engine.load(&spec(None).with_weighted_adapter(adapter, 0.5)).await.unwrap();
        assert!(!weaker.is_same(&with_adapter));
        assert_eq!(backend.calls().loads, 3);
    });
}

#[test]
fn two_loads_of_one_spec_at_once_are_one_load() {
    let gate = Arc::new(Gate::new());
    let backend = Arc::new(FakeBackend::new("fake").with_gate(gate.clone()));
    let engine = engine_with(&backend);
    block_on(async {
        let let_through = async {
            backend.when(|calls| calls.loads == 1).await;
            assert!(matches!(engine.unload(&spec(None)).await, Err(Error::LoadInProgress { .. })));
            gate.open();
        };
        let (one, other) = (spec(None), spec(None));
        let ((one, other), ()) = join(join(engine.load(&one), engine.load(&other)), let_through).await;
        assert!(one.unwrap().is_same(&other.unwrap()));
        assert_eq!(backend.calls().loads, 1);
    });
}

#[test]
fn one_who_gives_up_does_not_take_the_load_from_the_other_and_the_last_cancels_it() {
    let gate = Arc::new(Gate::new());
    let backend = Arc::new(FakeBackend::new("fake").with_gate(gate.clone()));
    let engine = engine_with(&backend);
    let spec = spec(None);
    block_on(async {
        {
            let mut first = engine.load(&spec).boxed();
            let mut second = engine.load(&spec).boxed();
            // Both reach the gate.
            let waiting = async {
                futures_util::future::select(join(&mut first, &mut second), backend.when(|c| c.loads == 1).boxed())
                    .await;
            };
            waiting.await;
            drop(first);
            assert_eq!(backend.calls().failed, 0);
            drop(second);
            assert_eq!(backend.when(|c| c.failed == 1).await.loaded, 0);
        }
        gate.open();
        engine.load(&spec).await.unwrap();
        assert_eq!(backend.calls().loads, 2);
    });
}

#[test]
fn a_failed_load_reaches_every_waiter_and_leaves_the_engine_as_it_was() {
    let backend = Arc::new(FakeBackend::new("fake").with_failure(Error::load("m", "on purpose")));
    let engine = engine_with(&backend);
    let spec = spec(None);
    block_on(async {
        let (one, other) = join(engine.load(&spec), engine.load(&spec)).await;
        for result in [one, other] {
            assert!(result.unwrap_err().to_string().contains("on purpose"));
        }
        assert!(engine.load(&spec).await.is_err());
        engine.unload(&spec).await.unwrap();
        assert_eq!(backend.calls().live(), 0);
    });
}

#[test]
fn unloading_gives_the_model_back_and_the_next_load_makes_a_new_one() {
    let backend = Arc::new(FakeBackend::new("fake"));
    let engine = engine_with(&backend);
    block_on(async {
        let model = engine.load(&spec(None)).await.unwrap();
        engine.unload(&spec(None)).await.unwrap();
        engine.unload(&spec(None)).await.unwrap();
        assert!(!model.is_loaded());
        let error = model.generate(GenerateRequest::new("x")).complete().await.unwrap_err();
        assert!(matches!(error, Error::ModelNotLoaded { .. }), "{error}");
        let again = engine.load(&spec(None)).await.unwrap();
        assert!(!again.is_same(&model));
        // Unloaded by its handle, not by the engine.
        again.unload().await.unwrap();
        assert!(engine.load(&spec(None)).await.unwrap().is_loaded());
        assert_eq!(backend.calls().loads, 3);
    });
}

#[test]
fn a_loaded_model_stays_usable_and_unloadable_when_its_folder_is_gone() {
    let backend = Arc::new(FakeBackend::new("fake"));
    let engine = engine_with(&backend);
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(crate::common::fixture("models/tiny-llama")).unwrap() {
        let file = file.unwrap();
        std::fs::write(folder.path().join(file.file_name()), std::fs::read(file.path()).unwrap()).unwrap();
    }
    let mut spec = spec(None);
    spec.base = llm_local::ArtifactRef::file(folder.path()).unwrap();
    block_on(async {
        let model = engine.load(&spec).await.unwrap();
        drop(folder);
        assert!(engine.load(&spec).await.unwrap().is_same(&model));
        let request = GenerateRequest::new("x").with_max_tokens(1);
        engine.generate(&spec, request).await.unwrap().complete().await.unwrap();
        engine.unload(&spec).await.unwrap();
        assert!(matches!(engine.load(&spec).await, Err(Error::NotFound { .. })));
        assert_eq!(backend.calls().live(), 0);
    });
}

#[test]
fn generate_loads_when_needed_and_says_how_long_that_took() {
    let backend = Arc::new(FakeBackend::new("fake"));
    let engine = engine_with(&backend);
    let request = || GenerateRequest::new(vec![Message::user("hello there")]).with_max_tokens(4);
    block_on(async {
        let first = engine.generate(&spec(None), request()).await.unwrap().complete().await.unwrap();
        assert!(first.stats.load.is_some());
        let second = engine.generate(&spec(None), request()).await.unwrap().complete().await.unwrap();
        assert_eq!(second.stats.load, None);
        assert_eq!((first.text, first.tokens), (second.text, second.tokens));
        assert_eq!(backend.calls().loads, 1);
    });
}

#[test]
fn progress_comes_in_its_order_and_ends_with_loaded() {
    let backend = Arc::new(FakeBackend::new("fake"));
    let engine = engine_with(&backend);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let heard = seen.clone();
    let handler = Arc::new(move |event: &ProgressEvent| heard.lock().unwrap().push(event.clone()));
    block_on(engine.load_with_progress(&spec(Some("peft")), Some(handler))).unwrap();
    let seen = seen.lock().unwrap();
    let stages: Vec<_> = seen
        .iter()
        .map(|event| match event {
            ProgressEvent::Resolving { .. } => 0,
            ProgressEvent::Download(_) | ProgressEvent::File(_) => 1,
            ProgressEvent::Loading { .. } => 2,
            ProgressEvent::Loaded => 3,
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(stages.is_sorted(), "{stages:?}");
    let fractions: Vec<f64> = seen
        .iter()
        .filter_map(|event| match event {
            ProgressEvent::Download(progress) => Some(progress.fraction),
            _ => None,
        })
        .collect();
    assert!(fractions.is_sorted(), "{fractions:?}");
    // The files are here already.
    assert_eq!((fractions.first(), fractions.last()), (Some(&0.999), Some(&1.0)));
    assert_eq!(fractions.iter().filter(|&&f| f == 1.0).count(), 1);
    assert_eq!(stages.iter().filter(|&&s| s == 0).count(), 2);
    assert!(stages.contains(&1) && stages.contains(&2));
    assert_eq!(stages.iter().filter(|&&s| s == 3).count(), 1);
}

#[test]
fn who_joins_or_finds_the_model_loaded_hears_that_it_is() {
    let backend = Arc::new(FakeBackend::new("fake"));
    let engine = engine_with(&backend);
    block_on(engine.load(&spec(None))).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let heard = seen.clone();
    let handler = Arc::new(move |event: &ProgressEvent| heard.lock().unwrap().push(event.clone()));
    block_on(engine.load_with_progress(&spec(None), Some(handler))).unwrap();
    assert_eq!(*seen.lock().unwrap(), [ProgressEvent::Loaded]);
}

#[test]
fn a_progress_handler_that_panics_fails_its_load_and_nothing_else() {
    let backend = Arc::new(FakeBackend::new("fake"));
    let engine = engine_with(&backend);
    let handler = Arc::new(|_: &ProgressEvent| panic!("bad handler"));
    let error = block_on(engine.load_with_progress(&spec(None), Some(handler))).unwrap_err();
    assert!(matches!(&error, Error::LoadFailed { .. }) && error.to_string().contains("bad handler"), "{error}");
    block_on(engine.load(&spec(None))).unwrap();
}

#[test]
fn a_load_waits_until_the_memory_of_an_unload_is_back() {
    let backend = Arc::new(FakeBackend::new("fake"));
    let engine = engine_with(&backend);
    let spec = spec(None);
    block_on(async {
        let model = engine.load(&spec).await.unwrap();
        // The unload is asked for and then left to whoever comes next.
        let mut left = engine.unload(&spec).boxed();
        let _ = left.poll_unpin(&mut Context::from_waker(std::task::Waker::noop()));
        drop(left);
        let again = engine.load(&spec).await.unwrap();
        assert!(!again.is_same(&model) && again.is_loaded());
        assert_eq!((backend.calls().loads, backend.calls().live()), (2, 1));
        // By the handle: the slot still holds it, and it must not be given out.
        again.unload().await.unwrap();
        engine.load(&spec).await.unwrap();
        assert_eq!((backend.calls().loads, backend.calls().live()), (3, 1));
    });
}

#[test]
fn a_plan_says_what_and_why_and_loads_nothing() {
    let backend = Arc::new(FakeBackend::new("fake"));
    let other = FakeBackend::new("other").with_support(Support::No("head_dim is 7".into()));
    let gpu = FakeBackend::new("gpu").with_unavailable("no such chip");
    let registry = llm_local::builtin::registry()
        .unwrap()
        .with_backend(backend.clone())
        .with_backend(Arc::new(other))
        .with_backend(Arc::new(gpu));
    let engine = Engine::builder().registry(registry).cache_dir(env!("CARGO_TARGET_TMPDIR")).build().unwrap();
    let plan = block_on(engine.plan(&spec(Some("peft")))).unwrap();
    assert_eq!((plan.backend.as_str(), plan.device.id.as_str()), ("fake", "cpu"));
    let model = plan.model.as_ref().unwrap();
    assert_eq!((model.context_length, model.merged_tensors), (512, 28));
    let error = block_on(engine.plan(&tiny(None).with_backend(BackendPreference::Named("other".into())))).unwrap_err();
    assert!(error.to_string().contains("head_dim is 7"), "{error}");
    let error = block_on(engine.plan(&tiny(None).with_backend(BackendPreference::Named("gpu".into())))).unwrap_err();
    assert!(error.to_string().contains("no such chip"), "{error}");
    assert_eq!(backend.calls().loads, 0);
    let text = plan.to_string();
    for part in ["tiny-llama", "weight 1", "fake on cpu", "512 tokens", "28 tensors", "another backend"] {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
}

#[test]
fn the_fallback_follows_priority_support_and_device() {
    let cpu_only = Arc::new(FakeBackend::new("a-cpu"));
    let gpu = FakeBackend::new("b-gpu").with_devices(vec![DeviceInfo::new("gpu", DeviceKind::Cuda, "a card")]);
    let registry = llm_local::Registry::empty()
        .with_source(Arc::new(MemorySource::new("nowhere")))
        .with_model_source(llm_local::builtin::registry().unwrap().model_source(&tiny(None).base).unwrap())
        .with_backend(cpu_only)
        .with_backend(Arc::new(gpu));
    let engine = Engine::builder().registry(registry).cache_dir(env!("CARGO_TARGET_TMPDIR")).build().unwrap();
    assert_eq!(block_on(engine.plan(&tiny(None))).unwrap().backend, "a-cpu");
    let plan = block_on(engine.plan(&tiny(None).with_device("gpu"))).unwrap();
    assert_eq!(plan.backend, "b-gpu");
    assert!(plan.to_string().contains("a-cpu"), "{plan}");
}

#[cfg(feature = "candle")]
mod with_candle {
    use super::*;

    #[test]
    fn after_a_cancelled_and_a_dropped_generation_the_next_works_at_once() {
        let engine = crate::common::engine();
        let request = || GenerateRequest::new("Once upon a time").with_ignore_eos(true).with_max_tokens(20);
        block_on(async {
            let whole = engine.generate(&tiny(None), request()).await.unwrap().complete().await.unwrap();
            assert_eq!(whole.usage.generated_tokens, 20);

            let cancel = CancellationToken::new();
            let mut generation = engine.generate(&tiny(None), request().with_cancel(cancel.clone())).await.unwrap();
            assert!(matches!(generation.next().await, Some(Ok(GenerationEvent::Token { .. }))));
            cancel.cancel();
            let completion = generation.complete().await.unwrap();
            assert_eq!(completion.finish_reason, Some(FinishReason::Cancelled));
            assert!(completion.usage.generated_tokens < 20);

            let mut dropped = engine.generate(&tiny(None), request()).await.unwrap();
            assert!(dropped.next().await.is_some());
            drop(dropped);

            let again = engine.generate(&tiny(None), request()).await.unwrap().complete().await.unwrap();
            assert_eq!(again.tokens, whole.tokens);
        });
    }

    #[test]
    fn the_context_length_of_the_spec_ends_a_generation_and_refuses_a_longer_prompt() {
        let engine = crate::common::engine();
        let spec = tiny(None).with_context_length(llm_local::ContextLength::Tokens(12));
        let request = |n: usize| GenerateRequest::new(vec![393u32; n]).with_ignore_eos(true);
        block_on(async {
            let completion = engine.generate(&spec, request(5)).await.unwrap().complete().await.unwrap();
            assert_eq!(completion.finish_reason, Some(FinishReason::Length));
            assert_eq!(completion.usage.prompt_tokens + completion.usage.generated_tokens, 12);
            let error = engine.generate(&spec, request(13)).await.unwrap().complete().await.unwrap_err();
            assert!(matches!(error, Error::ContextLengthExceeded { prompt_tokens: 13, context_length: 12 }), "{error}");
            let error = engine.logits(&spec, LogitsRequest::new(vec![393u32; 13])).await.unwrap_err();
            assert_eq!(error.code(), "context_length_exceeded");
        });
    }

    #[test]
    fn a_generation_outlives_the_handles_of_its_model() {
        let engine = crate::common::engine();
        block_on(async {
            let request = GenerateRequest::new("Once upon a time").with_ignore_eos(true).with_max_tokens(10);
            let generation = engine.generate(&tiny(None), request).await.unwrap();
            drop(engine);
            assert_eq!(generation.complete().await.unwrap().usage.generated_tokens, 10);
        });
    }

    #[test]
    fn events_are_a_stream() {
        let engine = crate::common::engine();
        let request = GenerateRequest::new("Once upon a time").with_max_tokens(3).with_ignore_eos(true);
        let generation = block_on(engine.generate(&tiny(None), request)).unwrap();
        let events: Vec<_> = block_on(generation.collect());
        assert!(matches!(events.last(), Some(Ok(GenerationEvent::Finished { .. }))));
        assert_eq!(events.iter().filter(|e| matches!(e, Ok(GenerationEvent::Token { .. }))).count(), 3);
    }
}

/// A load that was started but is not polled must not keep others from theirs.
#[test]
fn a_load_that_nobody_drives_is_driven_by_the_next_caller() {
    let backend = Arc::new(FakeBackend::new("fake"));
    let engine = engine_with(&backend);
    let spec = spec(None);
    let mut idle = engine.load(&spec).boxed();
    let _ = idle.poll_unpin(&mut Context::from_waker(std::task::Waker::noop()));
    block_on(engine.load(&spec)).unwrap();
    assert_eq!(backend.calls().loads, 1);
    drop(idle);
}
