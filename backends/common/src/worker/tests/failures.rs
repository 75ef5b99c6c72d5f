//! Errors and panics end their own request and nothing else.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use llm_local_core::{Error, GenerateRequest, LoadedModel, LogitsRequest, TrimLevel};
use pollster::block_on;

use super::fake::{Setup, next_token, prompt};

fn works(model: &Arc<dyn LoadedModel>) {
    let done = block_on(model.generate(GenerateRequest::new(prompt(200, 20)).with_max_tokens(5)).complete());
    assert_eq!(done.unwrap().tokens.len(), 5);
    assert_eq!(model.memory().kv_cache, 0);
}

#[test]
fn a_panic_in_a_step_ends_one_generation_and_the_others_go_on() {
    let model = Setup::default()
        .hook(|step| {
            assert!(step.prompt != 666 || step.position < 6, "the bits fell out at {}", step.position);
            Ok(())
        })
        .load();
    let mut other = model.generate(GenerateRequest::new(prompt(100, 4)).with_max_tokens(5));
    next_token(&mut other);
    let error = block_on(model.generate(GenerateRequest::new(prompt(666, 4))).complete()).unwrap_err();
    assert_eq!(error.to_string(), "generation failed: the backend panicked: the bits fell out at 6");
    let error = block_on(model.logits(LogitsRequest::new(prompt(666, 20)))).unwrap_err();
    assert_eq!(error.to_string(), "generation failed: the backend panicked: the bits fell out at 8");
    assert_eq!(block_on(other.complete()).unwrap().tokens.len(), 4);
    works(&model);
    block_on(model.unload()).unwrap();
}

#[test]
fn an_error_in_a_step_ends_one_generation() {
    let model = Setup::default()
        .hook(|step| if step.prompt == 666 { Err(Error::generation("the device is on fire")) } else { Ok(()) })
        .load();
    let error = block_on(model.generate(GenerateRequest::new(prompt(666, 4))).complete()).unwrap_err();
    assert_eq!(error.to_string(), "generation failed: the device is on fire");
    works(&model);
}

#[test]
fn a_panic_or_error_in_a_new_cache_ends_one_generation() {
    let mut caches = 0;
    let new_cache = move || {
        caches += 1;
        match caches {
            1 => panic!("{}", format!("cache {caches}")),
            2 => Err(Error::insufficient_memory(2, 1)),
            _ => Ok(()),
        }
    };
    let model = Setup { new_cache: Box::new(new_cache), ..Setup::default() }.load();
    let fail = || block_on(model.generate(GenerateRequest::new(prompt(100, 4))).complete()).unwrap_err();
    assert!(fail().to_string().ends_with("panicked: cache 1"));
    assert_eq!(fail().code(), "insufficient_memory");
    works(&model);
}

#[test]
fn a_panic_in_dropping_a_cache_is_an_error_of_its_generation() {
    let model = Setup { panics_on_drop: "cache", ..Setup::default() }.load();
    let request = || GenerateRequest::new(prompt(100, 4)).with_max_tokens(2);
    for _ in 0..2 {
        let error = block_on(model.generate(request()).complete()).unwrap_err();
        assert!(error.to_string().contains("freeing the KV cache panicked"), "{error}");
    }
    let error = block_on(model.logits(LogitsRequest::new(prompt(100, 4)))).unwrap_err();
    assert!(error.to_string().contains("freeing the KV cache panicked"), "{error}");
    // Nobody is there to be told of these two.
    drop(model.generate(GenerateRequest::new(prompt(100, 4))));
    let unread = model.generate(GenerateRequest::new(prompt(100, 4)));
    assert_eq!(block_on(model.trim(TrimLevel::Caches)).unwrap(), 7);
    block_on(model.unload()).unwrap();
    drop(unread);
}

#[test]
fn a_panic_in_dropping_the_model_does_not_keep_unload_from_returning() {
    let model = Setup { panics_on_drop: "model", ..Setup::default() }.load();
    block_on(model.unload()).unwrap();
    assert_eq!(model.memory().weights, 0);
}

#[test]
fn a_panic_in_trim_is_its_error() {
    let model = Setup { trim: Box::new(|_| panic!("nothing to trim")), ..Setup::default() }.load();
    let error = block_on(model.trim(TrimLevel::Sessions)).unwrap_err();
    assert_eq!(error.to_string(), "generation failed: trimming the model panicked: nothing to trim");
    works(&model);
}

#[test]
fn logits_of_the_wrong_length_are_an_error() {
    let model = Setup { logits: Box::new(|_| vec![0.0; 3]), ..Setup::default() }.load();
    let error = block_on(model.logits(LogitsRequest::new(prompt(100, 4)))).unwrap_err();
    assert_eq!(error.to_string(), "generation failed: the backend gave 3 logits for a vocabulary of 896");
}

#[test]
fn broken_logits_are_an_error_of_their_generation() {
    let model = Setup { logits: Box::new(|_| vec![f32::NAN; 896]), ..Setup::default() }.load();
    let error = block_on(model.generate(GenerateRequest::new(prompt(100, 4))).complete()).unwrap_err();
    assert!(error.to_string().contains("token 0 is NaN"), "{error}");
}

/// A consumer whose waker panics: what it is woken by, on the worker's thread, dies of it.
struct Bomb;

impl Wake for Bomb {
    fn wake(self: Arc<Self>) {
        panic!("a consumer's waker panicked");
    }
}

#[test]
fn handles_of_a_dead_thread_say_so_and_do_not_hang() {
    let (hook, gate) = super::fake::gate();
    let model = Setup::default().hook(hook).load();
    let mut running = model.generate(GenerateRequest::new(prompt(100, 4)));
    gate.begun();
    let mut trim = model.trim(TrimLevel::Caches);
    assert!(trim.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::new(Bomb)))).is_pending());
    let mut logits = model.logits(LogitsRequest::new(prompt(100, 4)));
    block_on(poll_fn(|cx| {
        assert!(logits.as_mut().poll(cx).is_pending());
        Poll::Ready(())
    }));
    gate.open();
    assert_eq!(block_on(logits).unwrap_err().code(), "model_not_loaded");
    next_token(&mut running);
    assert_eq!(block_on(running.complete()).unwrap_err().code(), "model_not_loaded");
    block_on(model.unload()).unwrap();
    let late = block_on(model.generate(GenerateRequest::new(prompt(100, 4))).complete()).unwrap_err();
    assert_eq!(late.code(), "model_not_loaded");
    assert_eq!(block_on(model.trim(TrimLevel::Caches)).unwrap_err().code(), "model_not_loaded");
}
