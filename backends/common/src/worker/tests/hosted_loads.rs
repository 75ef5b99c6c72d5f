//! Loads on a thread that models share.

use std::{
    any::Any,
    sync::{Mutex, mpsc},
    thread::{self, ThreadId},
};

use llm_local_core::{GenerateRequest, LogitsRequest, Result};
use pollster::block_on;

use super::{
    fake::{Fake, Setup, options, prompt},
    hosted::{Log, begin, load, noted},
};
use crate::worker::{Built, SharedThread, spawn_on, yield_now};

/// What a load's tensor is in a [`Log`].
const TENSOR: u32 = 0;

/// Says that it is dropped, and where.
struct Guard(&'static str, Mutex<mpsc::Sender<(&'static str, ThreadId)>>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.1.lock().unwrap().send((self.0, thread::current().id())).unwrap();
    }
}

#[test]
fn a_load_and_a_model_take_turns_a_tensor_and_a_step_each() {
    let (thread, log) = (SharedThread::new("loads"), Log::default());
    let (hook, gate) = noted(&log);
    let a = load(&thread, Setup::default().hook(hook));
    let mut logits = a.logits(LogitsRequest::new(prompt(100, 160)));
    begin(&mut logits);
    gate.begun();
    let noting = log.clone();
    let (options, setup) = (options(), Setup::default());
    let mut loading = Box::pin(spawn_on(&thread, &options, async move || {
        for _ in 0..10 {
            noting.lock().unwrap().push(TENSOR);
            yield_now().await;
        }
        Ok(setup.build())
    }));
    begin(&mut loading);
    let _steps = gate.open();
    let b = block_on(loading).unwrap();
    block_on(logits).unwrap();
    let log = log.lock().unwrap();
    let first = log.iter().position(|entry| *entry == TENSOR).unwrap();
    assert!(first <= 2, "{log:?}");
    assert_eq!(log[first..first + 20], [TENSOR, 100].repeat(10));
    drop(log);
    block_on(b.generate(GenerateRequest::new(prompt(300, 4)).with_max_tokens(3)).complete()).unwrap();
}

#[test]
fn a_panic_in_a_load_leaves_the_thread_serving() {
    let thread = SharedThread::new("panics");
    let model = load(&thread, Setup::default());
    for at in [0, 1] {
        let error = block_on(spawn_on(&thread, &options(), async move || -> Result<Built<Fake>> {
            for _ in 0..at {
                yield_now().await;
            }
            panic!("tensor {at}")
        }));
        let error = error.err().unwrap();
        assert_eq!(error.code(), "load_failed");
        assert!(error.to_string().contains(&format!("panicked: tensor {at}")), "{error}");
        let done = block_on(model.generate(GenerateRequest::new(prompt(100, 4)).with_max_tokens(3)).complete());
        assert_eq!(done.unwrap().tokens.len(), 3);
    }
    load(&thread, Setup::default());
}

/// A load that goes on for ever and looks at no token, with how far it is and what it drops.
fn endless(thread: &SharedThread, by_token: bool) {
    let (drops, dropped) = mpsc::channel();
    let (begun, began) = mpsc::channel();
    let options = options();
    let mut loading = Box::pin(spawn_on(thread, &options, async move || -> Result<Built<Fake>> {
        let _reservation = Guard("reservation", Mutex::new(drops.clone()));
        let _tensor = Guard("tensor", Mutex::new(drops));
        begun.send(()).unwrap();
        loop {
            yield_now().await;
        }
    }));
    begin(&mut loading);
    began.recv().unwrap();
    assert!(dropped.try_recv().is_err());
    let dropped: Vec<_> = if by_token {
        options.cancel.cancel();
        assert_eq!(block_on(loading).err().unwrap().code(), "cancelled");
        // By now, and not at some time.
        dropped.try_iter().collect()
    } else {
        drop(loading);
        assert!(options.cancel.is_cancelled());
        dropped.iter().collect()
    };
    let id = block_on(thread.call(|| thread::current().id())).unwrap();
    assert_eq!(dropped, [("tensor", id), ("reservation", id)]);
}

#[test]
fn a_load_that_is_dropped_or_cancelled_drops_what_it_has_on_the_thread() {
    let thread = SharedThread::new("endless");
    for by_token in [true, false] {
        endless(&thread, by_token);
    }
    load(&thread, Setup::default());
}

#[test]
fn a_load_that_ignores_its_token_is_dropped_all_the_same() {
    let thread = SharedThread::new("ignores");
    let (drops, dropped) = mpsc::channel();
    let options = options();
    let cancel = options.cancel.clone();
    let loaded = block_on(spawn_on(&thread, &options, async move || {
        cancel.cancel();
        Ok(Setup { drops, ..Setup::default() }.build())
    }));
    assert_eq!(loaded.err().unwrap().code(), "cancelled");
    assert_eq!(dropped.try_iter().collect::<Vec<_>>(), ["model", "reservation"]);
}

#[test]
fn a_load_that_was_cancelled_before_its_turn_does_not_begin() {
    let thread = SharedThread::new("unbegun");
    let options = options();
    options.cancel.cancel();
    let build = async || -> Result<Built<Fake>> { panic!("it began") };
    assert_eq!(block_on(spawn_on(&thread, &options, build)).err().unwrap().code(), "cancelled");
}

#[test]
fn the_reservation_goes_on_the_thread_behind_the_model_and_before_unload_returns() {
    let thread = SharedThread::new("hook");
    let (drops, dropped) = mpsc::channel();
    let (parts, dropped_parts) = mpsc::channel();
    let guard = Guard("reservation", Mutex::new(drops));
    let model = block_on(spawn_on(&thread, &options(), async move || {
        let reservation: Box<dyn Any + Send + Sync> = Box::new(guard);
        Ok(Built { reservation: Some(reservation), ..Setup { drops: parts, ..Setup::default() }.build() })
    }))
    .unwrap();
    // That of the fake, which is not used.
    assert_eq!(dropped_parts.try_iter().collect::<Vec<_>>(), ["reservation"]);
    block_on(model.unload()).unwrap();
    assert_eq!(dropped_parts.try_iter().collect::<Vec<_>>(), ["model"]);
    let id = block_on(thread.call(|| thread::current().id())).unwrap();
    assert_eq!(dropped.try_iter().collect::<Vec<_>>(), [("reservation", id)]);
}

#[test]
fn a_panic_in_dropping_the_reservation_does_not_keep_unload_from_returning() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("nothing to clear");
        }
    }
    let thread = SharedThread::new("bomb");
    let model = block_on(spawn_on(&thread, &options(), async move || {
        Ok(Built { reservation: Some(Box::new(Bomb)), ..Setup::default().build() })
    }))
    .unwrap();
    block_on(model.unload()).unwrap();
    load(&thread, Setup::default());
}
