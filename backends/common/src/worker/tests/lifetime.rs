//! Loads, unloads, and the thread's end.

use std::{
    future::poll_fn,
    sync::{Arc, atomic::Ordering::Relaxed, mpsc},
    task::Poll,
    thread,
    time::Duration,
};

use llm_local_core::{Error, GenerateRequest, LoadedModel, LogitsRequest, MemoryReport, Result, SessionId, TrimLevel};
use pollster::block_on;

use super::fake::{Fake, Setup, WEIGHT_BYTES, next_token, options, prompt};
use crate::worker::{Built, spawn};

/// Polls a future once; it must not be ready.
fn begin<T>(future: &mut (impl Future<Output = T> + Unpin)) {
    block_on(poll_fn(|cx| {
        assert!(std::pin::Pin::new(&mut *future).poll(cx).is_pending());
        Poll::Ready(())
    }));
}

#[test]
fn a_loaded_model_tells_what_it_is() {
    let setup = Setup::default();
    let clock = setup.clock.clone();
    let model = block_on(spawn::spawn_with_clock(
        &options(),
        {
            let clock = clock.clone();
            Arc::new(move || Duration::from_millis(clock.load(Relaxed)))
        },
        move || {
            assert_eq!(thread::current().name(), Some("llm-worker"));
            clock.fetch_add(1500, Relaxed);
            Ok(setup.build())
        },
    ))
    .unwrap();
    let info = model.info();
    assert_eq!((info.model.as_str(), info.load_time), ("fake", Duration::from_millis(1500)));
    assert!(info.has_chat_template);
    assert_eq!(model.memory(), MemoryReport::new(WEIGHT_BYTES, 0));
}

#[test]
fn a_failed_load_is_its_error() {
    let error = block_on(spawn(&options(), || Err::<Built<Fake>, _>(Error::load("m", "no weights")))).err().unwrap();
    assert_eq!(error.to_string(), "loading `m` failed: no weights");
    let panics = || -> Result<Built<Fake>> { panic!("out of range") };
    let error = block_on(spawn(&options(), panics)).err().unwrap();
    assert_eq!(error.code(), "load_failed");
    assert!(error.to_string().contains("panicked: out of range"), "{error}");
}

#[test]
fn a_dropped_load_cancels_its_token_and_drops_what_it_has() {
    let (drops, dropped) = mpsc::channel();
    let options = options();
    let cancel = options.cancel.clone();
    let mut load = Box::pin(spawn(&options, move || -> Result<Built<Fake>> {
        block_on(cancel.cancelled());
        // The load had come so far when it looked at the token.
        drop(Setup { drops, ..Setup::default() }.build());
        Err(Error::Cancelled)
    }));
    begin(&mut load);
    drop(load);
    assert_eq!(dropped.iter().collect::<Vec<_>>(), ["model", "reservation"]);
}

#[test]
fn a_load_that_does_not_look_at_its_token_is_dropped_all_the_same() {
    let (drops, dropped) = mpsc::channel();
    let (go, may_go) = mpsc::channel::<()>();
    let options = options();
    let mut load = Box::pin(spawn(&options, move || {
        may_go.recv().unwrap();
        Ok(Setup { drops, ..Setup::default() }.build())
    }));
    begin(&mut load);
    drop(load);
    go.send(()).unwrap();
    assert_eq!(dropped.iter().collect::<Vec<_>>(), ["model", "reservation"]);
}

#[test]
fn a_cancelled_load_ends_with_cancelled_once_its_memory_is_back() {
    let (drops, dropped) = mpsc::channel();
    let options = options();
    let cancel = options.cancel.clone();
    let loaded = block_on(spawn(&options, move || {
        cancel.cancel();
        Ok(Setup { drops, ..Setup::default() }.build())
    }));
    assert_eq!(loaded.err().unwrap().code(), "cancelled");
    assert_eq!(dropped.try_iter().collect::<Vec<_>>(), ["model", "reservation"]);
}

#[test]
fn a_finished_load_leaves_its_token_alone() {
    let options = options();
    let _model = block_on(Setup::default().spawn(&options)).unwrap();
    assert!(!options.cancel.is_cancelled());
}

#[test]
fn unload_returns_when_everything_is_dropped_and_may_be_repeated() {
    let (drops, dropped) = mpsc::channel();
    let model = Setup { drops, ..Setup::default() }.load();
    let mut running = model.generate(GenerateRequest::new(prompt(100, 4)));
    next_token(&mut running);
    block_on(model.unload()).unwrap();
    assert_eq!(dropped.try_iter().collect::<Vec<_>>(), ["cache", "model", "reservation"]);
    assert_eq!(model.memory(), MemoryReport::default());
    block_on(model.unload()).unwrap();
    assert_eq!(block_on(running.complete()).unwrap_err().code(), "model_not_loaded");
    let error = block_on(model.generate(GenerateRequest::new(prompt(100, 4))).complete()).unwrap_err();
    assert!(matches!(&error, Error::ModelNotLoaded { model } if model == "fake"), "{error}");
    assert_eq!(block_on(model.logits(LogitsRequest::new(prompt(100, 4)))).unwrap_err().code(), "model_not_loaded");
    assert_eq!(block_on(model.trim(TrimLevel::Caches)).unwrap_err().code(), "model_not_loaded");
    assert_eq!(block_on(model.end_session(SessionId::new("s"))).unwrap_err().code(), "model_not_loaded");
}

#[test]
fn unload_cuts_a_prompt_and_whoever_waits_in_line() {
    let (hook, gate) = super::fake::gate();
    let model = Setup::default().hook(hook).load();
    let running = model.generate(GenerateRequest::new(prompt(100, 2000)));
    gate.begun();
    let mut unload = model.unload();
    begin(&mut unload);
    let late = model.generate(GenerateRequest::new(prompt(200, 4)));
    let mut logits = model.logits(LogitsRequest::new(prompt(200, 4)));
    begin(&mut logits);
    let steps = gate.open();
    block_on(unload).unwrap();
    assert_eq!(steps.iter().count(), 0);
    for generation in [running, late] {
        assert_eq!(block_on(generation.complete()).unwrap_err().code(), "model_not_loaded");
    }
    assert_eq!(block_on(logits).unwrap_err().code(), "model_not_loaded");
}

#[test]
fn dropping_the_last_handle_ends_the_thread() {
    let (drops, dropped) = mpsc::channel();
    let model = Setup { drops, ..Setup::default() }.load();
    let second = model.clone();
    drop(model);
    block_on(second.logits(LogitsRequest::new(prompt(100, 4)))).unwrap();
    drop(second);
    // The receiver's end: nothing that could send is left, on the thread or elsewhere.
    assert_eq!(dropped.iter().collect::<Vec<_>>(), ["cache", "model", "reservation"]);
}

#[test]
fn a_generation_that_is_held_reaches_its_end_without_a_handle() {
    let (drops, dropped) = mpsc::channel();
    let model = Setup { drops, ..Setup::default() }.load();
    let mut generation = model.generate(GenerateRequest::new(prompt(100, 4)).with_max_tokens(20));
    let unread = model.generate(GenerateRequest::new(prompt(200, 4)));
    next_token(&mut generation);
    drop(model);
    assert_eq!(block_on(generation.complete()).unwrap().tokens.len(), 19);
    // The unread one is held too, and is the last that keeps the model.
    assert_eq!(dropped.recv().unwrap(), "cache");
    drop(unread);
    assert_eq!(dropped.iter().collect::<Vec<_>>(), ["cache", "model", "reservation"]);
}

#[test]
fn calls_that_race_with_unload_all_return() {
    for _ in 0..50 {
        let model = Setup::default().load();
        let callers: Vec<_> = (0..3)
            .map(|_| {
                let model: Arc<dyn LoadedModel> = model.clone();
                thread::spawn(move || {
                    loop {
                        match block_on(model.logits(LogitsRequest::new(prompt(100, 4)))) {
                            Ok(_) => {}
                            Err(error) => return error.code(),
                        }
                    }
                })
            })
            .collect();
        block_on(model.unload()).unwrap();
        for caller in callers {
            assert_eq!(caller.join().unwrap(), "model_not_loaded");
        }
    }
}
