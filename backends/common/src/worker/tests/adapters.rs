//! Sets of adapters: the model's own, those of requests, and whose cache is whose.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    task::{Context, Poll, Wake, Waker},
};

use llm_local_core::{
    AdapterSet, CancellationToken, Error, GenerateRequest, LoadedModel, LogitsRequest, LoraAdapter, MemoryReport,
    Result, SessionId,
};
use pollster::block_on;

use super::{
    driven::Driven,
    fake::{ADAPTER_BYTES, CACHE_BYTES_PER_TOKEN, Setup, WEIGHT_BYTES, answer_with, id_after, options},
    sharing::{export, fork, import},
};
use crate::worker::handle::Handle;

const PROMPT: [u32; 4] = [1, 2, 3, 4];

fn set(weight: f32) -> AdapterSet {
    AdapterSet::new().with(LoraAdapter::new("hf:a/b", "digest", Vec::new()).into(), weight)
}

fn base() -> AdapterSet {
    AdapterSet::new()
}

/// A model that runs adapters and counts how often a set is made ready.
fn setup() -> (Setup, Arc<AtomicUsize>) {
    let made = Arc::new(AtomicUsize::new(0));
    let count = made.clone();
    let prepare = move |_: &AdapterSet| {
        count.fetch_add(1, SeqCst);
        Ok(())
    };
    (Setup { runs_adapters: true, prepare: Box::new(prepare), ..Setup::with_sessions() }, made)
}

fn request() -> GenerateRequest {
    GenerateRequest::new(PROMPT.to_vec()).with_max_tokens(3)
}

fn in_session() -> GenerateRequest {
    request().with_session(SessionId::new("s"))
}

/// Generates, checks that the answer is that of `expected`, and gives how many tokens of the prompt were cached.
#[track_caller]
fn turn(worker: &mut Driven, request: GenerateRequest, expected: &AdapterSet) -> usize {
    let done = worker.complete(request).unwrap();
    assert_eq!(done.tokens, answer_with(expected, &PROMPT, 3));
    done.usage.cached_tokens
}

fn replace(worker: &mut Driven, set: AdapterSet) -> Result<()> {
    worker.ask(|model| model.set_adapters(set))
}

#[test]
fn a_request_computes_with_the_set_it_names_and_else_with_the_models_own() {
    let (setup, _) = setup();
    let mut worker = Driven::new(Setup { adapters: set(2.0), ..setup });
    turn(&mut worker, request(), &set(2.0));
    turn(&mut worker, request().with_adapters(set(1.0)), &set(1.0));
    turn(&mut worker, request().with_adapters(base()), &base());
    replace(&mut worker, set(0.5)).unwrap();
    turn(&mut worker, request(), &set(0.5));
    replace(&mut worker, base()).unwrap();
    turn(&mut worker, request(), &base());
    let mut logits = |request: LogitsRequest| worker.ask(|model| model.logits(request)).unwrap();
    let best = |logits: Vec<f32>| logits.iter().position(|x| *x == 10.0).unwrap() as u32;
    assert_eq!(best(logits(LogitsRequest::new(PROMPT.to_vec()))), id_after(&PROMPT));
    let named = LogitsRequest::new(PROMPT.to_vec()).with_adapters(set(1.0));
    assert_eq!(best(logits(named)), answer_with(&set(1.0), &PROMPT, 1)[0]);
}

#[test]
fn requests_made_before_the_models_set_is_replaced_keep_it() {
    let (setup, _) = setup();
    let mut worker = Driven::new(Setup { adapters: set(2.0), ..setup });
    let model = worker.model.clone();
    let running = model.generate(in_session());
    // It waits for the session, and has computed nothing when the set is replaced.
    let waiting = model.generate(in_session());
    worker.drive();
    replace(&mut worker, set(3.0)).unwrap();
    turn(&mut worker, request(), &set(3.0));
    assert_eq!(model.memory().weights, WEIGHT_BYTES + 2 * ADAPTER_BYTES);
    assert_eq!(worker.finish(running).unwrap().tokens, answer_with(&set(2.0), &PROMPT, 3));
    assert_eq!(worker.finish(waiting).unwrap().tokens, answer_with(&set(2.0), &PROMPT, 3));
    assert_eq!(model.memory().weights, WEIGHT_BYTES + ADAPTER_BYTES);
    // Nobody comes back to what they have computed.
    assert_eq!(model.memory().kv_cache, 0);
}

#[test]
fn a_set_in_use_is_made_ready_once_and_dropped_behind_the_last() {
    let (setup, made) = setup();
    let (drops, dropped) = mpsc::channel();
    let mut worker = Driven::new(Setup { drops, ..setup });
    let model = worker.model.clone();
    let dropped_sets = || dropped.try_iter().filter(|part| *part == "adapters").count();
    let mut generations: Vec<_> = (0..3).map(|_| model.generate(request().with_adapters(set(1.0)))).collect();
    worker.drive();
    assert_eq!((made.load(SeqCst), model.memory().weights), (1, WEIGHT_BYTES + ADAPTER_BYTES));
    replace(&mut worker, set(1.0)).unwrap();
    for generation in generations.drain(..) {
        worker.finish(generation).unwrap();
    }
    assert_eq!((made.load(SeqCst), dropped_sets()), (1, 0));
    replace(&mut worker, base()).unwrap();
    assert_eq!((dropped_sets(), model.memory().weights), (1, WEIGHT_BYTES));
    turn(&mut worker, request().with_adapters(set(1.0)), &set(1.0));
    assert_eq!((made.load(SeqCst), dropped_sets()), (2, 1));
}

/// A caller that looks at the memory in use as soon as it can have an answer.
struct Looks(Arc<Handle>, Mutex<Vec<MemoryReport>>);

impl Wake for Looks {
    fn wake(self: Arc<Self>) {
        self.1.lock().unwrap().push(self.0.memory());
    }
}

/// What whoever waits for `future` sees of the memory when it is ready, which `cause` and the worker bring about.
fn seen<T>(worker: &mut Driven, mut future: impl Future<Output = T> + Unpin, cause: impl FnOnce()) -> MemoryReport {
    let looks = Arc::new(Looks(worker.model.clone(), Mutex::default()));
    let waker = Waker::from(looks.clone());
    let mut is_ready = || matches!(Pin::new(&mut future).poll(&mut Context::from_waker(&waker)), Poll::Ready(_));
    assert!(!is_ready());
    cause();
    worker.drive();
    let seen = looks.1.lock().unwrap().clone();
    assert!(seen.len() == 1 && is_ready(), "woken {} times", seen.len());
    seen[0]
}

#[test]
fn a_set_is_let_go_before_its_last_user_has_its_answer() {
    let (setup, _) = setup();
    let fails = Arc::new(Mutex::new(false));
    let now = fails.clone();
    let mut worker = Driven::new(setup.hook(move |_| match *now.lock().unwrap() {
        true => Err(Error::generation("out of luck")),
        false => Ok(()),
    }));
    let model = worker.model.clone();
    let without = MemoryReport::new(WEIGHT_BYTES, 0);
    for is_error in [false, true] {
        let cancel = CancellationToken::new();
        let mut running = model.generate(request().with_adapters(set(1.0)).with_cancel(cancel.clone()));
        assert!(worker.read(&mut running).unwrap().unwrap().is_ok());
        assert_eq!(model.memory().weights, WEIGHT_BYTES + ADAPTER_BYTES);
        let ends = || if is_error { *fails.lock().unwrap() = true } else { cancel.cancel() };
        assert_eq!(seen(&mut worker, Box::pin(running.next()), ends), without, "error: {is_error}");
        let logits = LogitsRequest::new(PROMPT.to_vec()).with_adapters(set(1.0));
        assert_eq!(seen(&mut worker, model.logits(logits), || ()), without, "error: {is_error}");
    }
}

#[test]
fn a_session_has_a_cache_for_each_set_of_adapters() {
    let mut worker = Driven::new(setup().0);
    assert_eq!(turn(&mut worker, in_session(), &base()), 0);
    assert_eq!(turn(&mut worker, in_session().with_adapters(set(1.0)), &set(1.0)), 0);
    assert_eq!(turn(&mut worker, in_session().with_adapters(set(0.5)), &set(0.5)), 0);
    assert_eq!(turn(&mut worker, in_session().with_adapters(set(1.0)), &set(1.0)), 3);
    // The base by another way.
    assert_eq!(turn(&mut worker, in_session().with_adapters(base()), &base()), 3);
    assert_eq!(worker.model.memory().kv_cache, 3 * 6 * CACHE_BYTES_PER_TOKEN);
    // A fork takes all of them, and so does an end.
    fork(&mut worker, "s", "t");
    assert_eq!(worker.model.memory().kv_cache, 6 * 6 * CACHE_BYTES_PER_TOKEN);
    worker.ask(|model| model.end_session(SessionId::new("s"))).unwrap();
    assert_eq!(worker.model.memory().kv_cache, 3 * 6 * CACHE_BYTES_PER_TOKEN);
}

#[test]
fn a_session_never_goes_on_from_what_another_own_set_computed() {
    let (setup, _) = setup();
    let mut worker = Driven::new(Setup { adapters: set(2.0), ..setup });
    assert_eq!(turn(&mut worker, in_session(), &set(2.0)), 0);
    // By its name it is the same.
    assert_eq!(turn(&mut worker, in_session().with_adapters(set(2.0)), &set(2.0)), 3);
    replace(&mut worker, set(1.0)).unwrap();
    assert_eq!(worker.model.memory().kv_cache, 0);
    assert_eq!(turn(&mut worker, in_session(), &set(1.0)), 0);
    replace(&mut worker, base()).unwrap();
    assert_eq!(turn(&mut worker, in_session(), &base()), 0);
    replace(&mut worker, base()).unwrap();
    assert_eq!(turn(&mut worker, in_session(), &base()), 3);
}

#[test]
fn what_is_exported_and_imported_is_of_the_models_own_set() {
    let (setup, _) = setup();
    let mut worker = Driven::new(Setup { adapters: set(2.0), ..setup });
    turn(&mut worker, in_session().with_adapters(set(1.0)), &set(1.0));
    assert!(export(&mut worker, "s").tokens.is_empty());
    turn(&mut worker, in_session(), &set(2.0));
    let state = export(&mut worker, "s");
    assert_eq!(state.tokens.len(), 6);
    import(&mut worker, "t", state).unwrap();
    let in_t = || request().with_session(SessionId::new("t"));
    assert_eq!(turn(&mut worker, in_t().with_adapters(set(1.0)), &set(1.0)), 0);
    assert_eq!(turn(&mut worker, in_t(), &set(2.0)), 3);
}

#[test]
fn a_set_that_cannot_be_made_ready_changes_nothing_and_is_the_adapters_trouble() {
    let (setup, _) = setup();
    let fails = Arc::new(Mutex::new(None));
    let now = fails.clone();
    let prepare = move |_: &AdapterSet| {
        let why = *now.lock().unwrap();
        assert_ne!(why, Some("panic"), "no such luck");
        why.map_or(Ok(()), |why| Err(Error::generation(why)))
    };
    let mut worker = Driven::new(Setup { prepare: Box::new(prepare), adapters: set(2.0), ..setup });
    let is_named = |error: Error, why: &str| {
        assert_eq!(error.code(), "adapter_merge_failed");
        assert!(error.to_string().contains("hf:a/b") && error.to_string().contains(why), "{error}");
    };
    for why in ["panic", "out of luck"] {
        *fails.lock().unwrap() = Some(why);
        let says = if why == "panic" { "no such luck" } else { why };
        is_named(replace(&mut worker, set(1.0)).unwrap_err(), says);
        is_named(worker.complete(request().with_adapters(set(1.0))).unwrap_err(), says);
        let logits = LogitsRequest::new(PROMPT.to_vec()).with_adapters(set(1.0));
        is_named(worker.ask(|model| model.logits(logits)).unwrap_err(), says);
        turn(&mut worker, request(), &set(2.0));
    }
    assert_eq!(worker.model.memory().weights, WEIGHT_BYTES + ADAPTER_BYTES);
    // At the load it is the load's.
    let (setup, _) = self::setup();
    let refuses = |_: &AdapterSet| Err(Error::adapter("hf:a/b", "it has a tail"));
    let setup = Setup { prepare: Box::new(refuses), adapters: set(1.0), ..setup };
    is_named(block_on(setup.spawn(&options())).err().unwrap(), "it has a tail");
}

#[test]
fn what_computes_nothing_makes_no_set_ready() {
    let (setup, made) = setup();
    let mut worker = Driven::new(setup);
    let cancel = CancellationToken::new();
    cancel.cancel();
    worker.complete(request().with_adapters(set(1.0)).with_cancel(cancel)).unwrap();
    worker.complete(request().with_adapters(set(1.0)).with_max_tokens(0)).unwrap();
    // Given up before the worker came to it.
    let model = worker.model.clone();
    let mut given_up = model.set_adapters(set(1.0));
    let mut context = Context::from_waker(Waker::noop());
    assert!(given_up.as_mut().poll(&mut context).is_pending());
    drop(given_up);
    worker.drive();
    assert_eq!(made.load(SeqCst), 0);
    turn(&mut worker, request(), &base());
}

#[test]
fn a_model_that_runs_no_adapters_refuses_them() {
    let model = Setup::default().load();
    for error in [
        block_on(model.generate(request().with_adapters(set(1.0))).complete()).unwrap_err(),
        block_on(model.logits(LogitsRequest::new(PROMPT.to_vec()).with_adapters(base()))).unwrap_err(),
        block_on(model.set_adapters(set(1.0))).unwrap_err(),
    ] {
        assert_eq!(error.code(), "unsupported");
        assert!(error.to_string().contains("merged"), "{error}");
    }
}
