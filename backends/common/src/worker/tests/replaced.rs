//! Tensors of the base that are replaced while it is in use.

use std::sync::{Arc, Mutex, mpsc};

use futures_util::FutureExt;
use llm_local_core::{
    AdapterSet, Error, GenerateRequest, LoadedModel, LogitsRequest, LoraAdapter, ModelFormat, ModelInfo, Result,
    SessionId, SessionState,
};
use llm_local_testkit::fakes::MemoryTensorSource;
use pollster::block_on;

use super::{
    driven::Driven,
    fake::{ADAPTER_BYTES, CACHE_BYTES_PER_TOKEN, Setup, WEIGHT_BYTES, answer_of, answer_with},
    sharing::{export, import},
};
use crate::worker::NAMED_SETS;

const PROMPT: [u32; 4] = [1, 2, 3, 4];

fn setup() -> Setup {
    Setup { replaces_tensors: true, runs_adapters: true, ..Setup::with_sessions() }
}

fn set(weight: f32) -> AdapterSet {
    AdapterSet::new().with(LoraAdapter::new("hf:a/b", "digest", Vec::new()).into(), weight)
}

fn request() -> GenerateRequest {
    GenerateRequest::new(PROMPT.to_vec()).with_max_tokens(3)
}

fn in_session() -> GenerateRequest {
    request().with_session(SessionId::new("s"))
}

/// Puts new weights, called `name`, in place.
fn replace(worker: &mut Driven, name: &str) -> Result<()> {
    let info = Arc::new(ModelInfo::new("m", ModelFormat::Remote, Vec::new()));
    let names = vec![name.to_owned()];
    worker.ask(|model| model.replace_tensors(Arc::new(MemoryTensorSource::new()), info, names))
}

/// Generates, checks that the answer is that of the weights called `weights`, and gives how many tokens were cached.
#[track_caller]
fn turn(worker: &mut Driven, request: GenerateRequest, weights: &str) -> usize {
    let done = worker.complete(request).unwrap();
    assert_eq!(done.tokens, answer_of(weights, &PROMPT, 3));
    done.usage.cached_tokens
}

#[test]
fn requests_made_before_keep_the_weights_and_those_made_after_have_the_new_ones() {
    let (drops, dropped) = mpsc::channel();
    let mut worker = Driven::new(Setup { drops, ..setup() });
    let model = worker.model.clone();
    let dropped_weights = || dropped.try_iter().filter(|part| *part == "weights").count();
    let running = model.generate(in_session());
    let waiting = model.generate(in_session());
    worker.drive();
    replace(&mut worker, "one").unwrap();
    turn(&mut worker, request(), "one");
    assert_eq!((dropped_weights(), model.memory().weights), (0, WEIGHT_BYTES + ADAPTER_BYTES));
    let also_running = model.generate(request());
    worker.drive();
    replace(&mut worker, "two").unwrap();
    assert_eq!(model.memory().weights, WEIGHT_BYTES + 2 * ADAPTER_BYTES);
    assert_eq!(worker.finish(running).unwrap().tokens, answer_of("", &PROMPT, 3));
    assert_eq!(dropped_weights(), 0);
    assert_eq!(worker.finish(waiting).unwrap().tokens, answer_of("", &PROMPT, 3));
    assert_eq!(worker.finish(also_running).unwrap().tokens, answer_of("one", &PROMPT, 3));
    assert_eq!((dropped_weights(), model.memory().weights), (2, WEIGHT_BYTES));
    assert_eq!(model.memory().kv_cache, 0);
    turn(&mut worker, request(), "two");
    // Nobody has these: they go at once.
    replace(&mut worker, "three").unwrap();
    assert_eq!((dropped_weights(), model.memory().weights), (1, WEIGHT_BYTES));
}

#[test]
fn no_session_goes_on_from_what_other_weights_computed() {
    let mut worker = Driven::new(setup());
    assert_eq!(turn(&mut worker, in_session(), ""), 0);
    worker.complete(in_session().with_adapters(set(1.0))).unwrap();
    for name in ["one", "two", "one"] {
        replace(&mut worker, name).unwrap();
        assert_eq!(worker.model.memory().kv_cache, 0);
        assert_eq!(turn(&mut worker, in_session(), name), 0);
        assert_eq!(turn(&mut worker, in_session(), name), 3);
        let named = worker.complete(in_session().with_adapters(set(1.0))).unwrap();
        assert_eq!(named.usage.cached_tokens, 0);
        // The base alone, by its name.
        assert_eq!(turn(&mut worker, in_session().with_adapters(AdapterSet::new()), name), 3);
    }
    // One that was running meanwhile gives nothing back.
    let running = worker.model.clone().generate(in_session().with_adapters(set(1.0)));
    worker.drive();
    replace(&mut worker, "three").unwrap();
    assert_eq!(worker.finish(running).unwrap().tokens, answer_with(&set(1.0), &PROMPT, 3));
    assert_eq!(worker.model.memory().kv_cache, 0);
}

#[test]
fn tensors_that_cannot_be_had_change_nothing() {
    let fails = Arc::new(Mutex::new(None));
    let now = fails.clone();
    let hook = move |_: &crate::worker::NewTensors| {
        let why = *now.lock().unwrap();
        assert_ne!(why, Some("panic"), "no such luck");
        why.map_or(Ok(()), |why| Err(Error::load("tensor `t`", why)))
    };
    let mut worker = Driven::new(Setup { replace: Box::new(hook), ..setup() });
    turn(&mut worker, in_session(), "");
    for (why, says) in [("panic", "no such luck"), ("out of luck", "out of luck")] {
        *fails.lock().unwrap() = Some(why);
        let error = replace(&mut worker, "one").unwrap_err();
        assert!(error.code() == "load_failed" && error.to_string().contains(says), "{error}");
        assert_eq!(turn(&mut worker, in_session(), ""), 3);
    }
    assert_eq!(worker.model.memory().weights, WEIGHT_BYTES);
    *fails.lock().unwrap() = None;
    worker.ask(|model| model.set_adapters(set(1.0))).unwrap();
    let error = replace(&mut worker, "one").unwrap_err();
    assert!(error.code() == "unsupported" && error.to_string().contains("set none"), "{error}");
    let mut cannot = Driven::new(Setup::default());
    let error = replace(&mut cannot, "one").unwrap_err();
    assert!(error.code() == "unsupported" && error.to_string().contains("`fakes`"), "{error}");
}

#[test]
fn a_model_that_is_unloaded_gives_up_reading() {
    let (entered, reading) = mpsc::channel();
    let hook = move |new: &crate::worker::NewTensors| {
        entered.send(()).unwrap();
        block_on(new.cancel.cancelled());
        Err(Error::Cancelled)
    };
    let model = Setup { replace: Box::new(hook), ..setup() }.load();
    let info = Arc::new(ModelInfo::new("m", ModelFormat::Remote, Vec::new()));
    let other = model.clone();
    let replacing = std::thread::spawn(move || {
        block_on(other.replace_tensors(Arc::new(MemoryTensorSource::new()), info, vec!["one".into()]))
    });
    reading.recv().unwrap();
    block_on(model.unload()).unwrap();
    let error = replacing.join().unwrap().unwrap_err();
    assert_eq!(error.code(), "model_not_loaded");
    assert_eq!(model.memory().weights, 0);
}

#[test]
fn a_model_that_is_dropped_gives_up_reading() {
    let (entered, reading) = mpsc::channel();
    let hook = move |new: &crate::worker::NewTensors| {
        entered.send(new.cancel.clone()).unwrap();
        block_on(new.cancel.cancelled());
        Err(Error::Cancelled)
    };
    let model = Setup { replace: Box::new(hook), ..setup() }.load();
    let info = Arc::new(ModelInfo::new("m", ModelFormat::Remote, Vec::new()));
    let mut replacing = model.replace_tensors(Arc::new(MemoryTensorSource::new()), info, vec!["one".into()]);
    assert!((&mut replacing).now_or_never().is_none());
    let cancel = reading.recv().unwrap();
    // Nobody waits for it from here on.
    drop(replacing);
    assert!(!cancel.is_cancelled());
    drop(model);
    assert!(cancel.is_cancelled());
}

#[test]
fn a_change_that_took_effect_is_no_error_because_an_old_cache_panics() {
    let mut worker = Driven::new(Setup { panics_on_drop: "cache", ..setup() });
    let model = worker.model.clone();
    // An old cache is dropped by the change, and the model is left with nothing that panics.
    worker.complete(in_session()).unwrap();
    worker.ask(|model| model.set_adapters(set(1.0))).unwrap();
    assert_eq!(model.memory().weights, WEIGHT_BYTES + ADAPTER_BYTES);
    worker.complete(in_session()).unwrap();
    worker.ask(|model| model.set_adapters(AdapterSet::new())).unwrap();
    worker.complete(in_session()).unwrap();
    replace(&mut worker, "one").unwrap();
    assert_eq!(model.memory().kv_cache, 0);
}

#[test]
fn a_session_keeps_the_caches_of_the_named_sets_that_it_used_last() {
    let mut worker = Driven::new(setup());
    let named = |n: usize| in_session().with_adapters(set(n as f32 + 1.0));
    let cached = |worker: &mut Driven, request| worker.complete(request).unwrap().usage.cached_tokens;
    assert_eq!(cached(&mut worker, in_session()), 0);
    (0..NAMED_SETS).for_each(|n| assert_eq!(cached(&mut worker, named(n)), 0));
    // The first is used again, so that the second is the one that is forgotten for another.
    assert_eq!(cached(&mut worker, named(0)), 3);
    assert_eq!(cached(&mut worker, named(NAMED_SETS)), 0);
    let all = (NAMED_SETS as u64 + 1) * 6 * CACHE_BYTES_PER_TOKEN;
    assert_eq!(worker.model.memory().kv_cache, all);
    assert_eq!(cached(&mut worker, named(0)), 3);
    assert_eq!(cached(&mut worker, in_session()), 3);
    assert_eq!(cached(&mut worker, named(1)), 0);
    assert_eq!(worker.model.memory().kv_cache, all);
    // Each session has its own.
    let other = request().with_session(SessionId::new("t"));
    assert_eq!(cached(&mut worker, other.with_adapters(set(1.0))), 0);
    assert_eq!(cached(&mut worker, named(0)), 3);
}

#[test]
fn what_is_imported_is_of_the_set_that_the_model_had_when_it_was_asked_for() {
    let mut worker = Driven::new(setup());
    worker.complete(in_session()).unwrap();
    let state: SessionState = export(&mut worker, "s");
    assert_eq!(state.tokens.len(), 6);
    // Waits for its session behind a generation, while the model gets other adapters.
    let model = worker.model.clone();
    let running = model.generate(in_session());
    worker.drive();
    let s = SessionId::new("s");
    let mut importing = model.import_session(&s, state.clone());
    assert!(worker.try_ask(&mut importing).is_none());
    worker.ask(|model| model.set_adapters(set(1.0))).unwrap();
    worker.finish(running).unwrap();
    worker.try_ask(&mut importing).unwrap().unwrap();
    let done = worker.complete(in_session()).unwrap();
    assert_eq!((done.usage.cached_tokens, done.tokens), (0, answer_with(&set(1.0), &PROMPT, 3)));
    // An export too: what was asked for is gone with the set, and is not that of the new one.
    let running = model.generate(in_session());
    worker.drive();
    let mut exporting = model.export_session(&s);
    assert!(worker.try_ask(&mut exporting).is_none());
    worker.ask(|model| model.set_adapters(AdapterSet::new())).unwrap();
    let after = model.generate(in_session());
    worker.drive();
    worker.finish(running).unwrap();
    let exported = worker.try_ask(&mut exporting).unwrap().unwrap();
    assert!(exported.tokens.is_empty());
    worker.finish(after).unwrap();
    import(&mut worker, "t", state).unwrap();
    assert_eq!(worker.complete(request().with_session(SessionId::new("t"))).unwrap().usage.cached_tokens, 3);
}

#[test]
fn logits_asked_for_before_are_of_the_weights_before() {
    let mut worker = Driven::new(Setup { prefill_chunk: 1, ..setup() });
    let model = worker.model.clone();
    let best = |logits: Vec<f32>| logits.iter().position(|x| *x == 10.0).unwrap() as u32;
    let mut before = model.logits(LogitsRequest::new(PROMPT.to_vec()));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(before.as_mut().poll(&mut context).is_pending());
    replace(&mut worker, "one").unwrap();
    assert_eq!(best(worker.try_ask(&mut before).unwrap().unwrap()), answer_of("", &PROMPT, 1)[0]);
    let after = worker.ask(|model| model.logits(LogitsRequest::new(PROMPT.to_vec()))).unwrap();
    assert_eq!(best(after), answer_of("one", &PROMPT, 1)[0]);
}
