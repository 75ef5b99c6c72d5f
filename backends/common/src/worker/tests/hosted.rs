//! Whose turn it is on a thread that models share, and that it outlives what goes wrong there.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    task::{Context, Poll, Wake, Waker},
    thread,
};

use llm_local_core::{GenerateRequest, LoadedModel, LogitsRequest, Result, TrimLevel};
use pollster::block_on;

use super::fake::{Gate, Setup, Step, gate, options, prompt};
use crate::worker::{
    SharedThread,
    shared_thread::{Job, host},
    spawn_on, yield_now,
};

/// Polls a future once; it must not be ready.
pub(super) fn begin<T>(future: &mut (impl Future<Output = T> + Unpin)) {
    block_on(poll_fn(|cx| {
        assert!(std::pin::Pin::new(&mut *future).poll(cx).is_pending());
        Poll::Ready(())
    }));
}

pub(super) fn load(thread: &SharedThread, setup: Setup) -> Arc<dyn LoadedModel> {
    block_on(spawn_on(thread, &options(), async move || Ok(setup.build()))).unwrap()
}

/// What happened on the thread, in order.
pub(super) type Log = Arc<Mutex<Vec<u32>>>;

/// Notes each step by its prompt, and holds it at a gate.
pub(super) fn noted(log: &Log) -> (impl FnMut(Step) -> Result<()> + Send + 'static, Gate) {
    let log = log.clone();
    let (mut hook, gate) = gate();
    let noting = move |step: Step| {
        log.lock().unwrap().push(step.prompt);
        hook(step)
    };
    (noting, gate)
}

#[test]
fn steps_of_two_models_alternate() {
    let (thread, log) = (SharedThread::new("two"), Log::default());
    let (hook, gate) = noted(&log);
    let a = load(&thread, Setup::default().hook(hook));
    let noting = log.clone();
    let b = load(
        &thread,
        Setup::default().hook(move |step| {
            noting.lock().unwrap().push(step.prompt);
            Ok(())
        }),
    );
    let mut of_a = a.logits(LogitsRequest::new(prompt(100, 160)));
    begin(&mut of_a);
    gate.begun();
    let mut of_b = b.logits(LogitsRequest::new(prompt(200, 160)));
    begin(&mut of_b);
    let _steps = gate.open();
    block_on(of_a).unwrap();
    block_on(of_b).unwrap();
    assert_eq!(*log.lock().unwrap(), [100, 200].repeat(20));
}

#[test]
fn one_model_is_unloaded_while_another_computes() {
    let (thread, log) = (SharedThread::new("unload"), Log::default());
    let (hook, gate) = noted(&log);
    let a = load(&thread, Setup::default().hook(hook));
    let (drops, dropped) = mpsc::channel();
    let b = load(&thread, Setup { drops, ..Setup::default() });
    let mut of_a = a.logits(LogitsRequest::new(prompt(100, 24)));
    begin(&mut of_a);
    gate.begun();
    let mut unload = b.unload();
    begin(&mut unload);
    gate.pass();
    // It had the turn between two steps of the other one, and is gone while the second one is being computed.
    assert_eq!(gate.begun().position, 8);
    assert_eq!(dropped.try_iter().collect::<Vec<_>>(), ["model", "reservation"]);
    block_on(unload).unwrap();
    assert_eq!(log.lock().unwrap().len(), 2);
    let _steps = gate.open();
    block_on(of_a).unwrap();
}

#[test]
fn a_panic_in_a_call_is_its_error_and_the_thread_goes_on() {
    let thread = SharedThread::new("panics");
    let id = block_on(thread.call(|| thread::current().id())).unwrap();
    assert_ne!(id, thread::current().id());
    let model = load(&thread, Setup::default());
    let error = block_on(thread.call(|| panic!("no device {}", 7))).unwrap_err();
    assert_eq!(error.code(), "backend_unavailable");
    assert!(error.to_string().contains("panics") && error.to_string().contains("it panicked: no device 7"), "{error}");
    let late = async || {
        yield_now().await;
        panic!("later")
    };
    assert!(block_on(thread.run(late)).unwrap_err().to_string().contains("it panicked: later"));
    // What panics before it gives a future.
    let early = || -> std::future::Ready<()> { panic!("sooner") };
    assert!(block_on(thread.run(early)).unwrap_err().to_string().contains("it panicked: sooner"));
    assert_eq!(block_on(thread.call(|| (thread::current().id(), 3))).unwrap(), (id, 3));
    assert_eq!(block_on(model.trim(TrimLevel::Caches)).unwrap(), 7);
}

#[test]
fn a_call_that_is_given_up_before_its_turn_is_not_made() {
    let (thread, made) = (SharedThread::new("given-up"), Arc::new(AtomicUsize::new(0)));
    let (hook, gate) = gate();
    let model = load(&thread, Setup::default().hook(hook));
    let mut logits = model.logits(LogitsRequest::new(prompt(100, 24)));
    begin(&mut logits);
    gate.begun();
    let mut kept = Vec::new();
    for keep in [true, false, true] {
        let made = made.clone();
        let mut call = Box::pin(thread.call(move || made.fetch_add(1, SeqCst)));
        begin(&mut call);
        if keep {
            kept.push(call);
        }
    }
    let _steps = gate.open();
    block_on(logits).unwrap();
    block_on(thread.call(|| ())).unwrap();
    assert_eq!(made.load(SeqCst), 2);
}

#[test]
fn what_runs_on_the_thread_is_dropped_there_when_it_is_given_up() {
    /// Says on which thread it is dropped.
    struct Guard(mpsc::Sender<thread::ThreadId>);
    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.send(thread::current().id()).unwrap();
        }
    }
    let thread = SharedThread::new("guards");
    let ((sender, dropped), (begun, began)) = (mpsc::channel(), mpsc::channel());
    let mut endless = Box::pin(thread.run(async move || {
        let _guard = Guard(sender);
        begun.send(()).unwrap();
        loop {
            yield_now().await;
        }
    }));
    begin::<Result<()>>(&mut endless);
    began.recv().unwrap();
    assert!(dropped.try_recv().is_err());
    drop(endless);
    assert_eq!(dropped.recv().unwrap(), block_on(thread.call(|| thread::current().id())).unwrap());
}

/// How often it was woken.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[test]
fn a_thread_with_nothing_to_do_sleeps() {
    let (jobs, receiver) = tokio::sync::mpsc::unbounded_channel::<Job>();
    let mut host = pin!(host(receiver));
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(wakes.clone());
    // Polls until it sleeps. Gives how often that was.
    let mut drive = || {
        for polls in 1..100 {
            wakes.0.store(0, SeqCst);
            let ended = host.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
            if ended || wakes.0.load(SeqCst) == 0 {
                return (polls, ended);
            }
        }
        panic!("it does not sleep");
    };
    assert_eq!(drive(), (1, false));
    let (event, happens) = tokio::sync::oneshot::channel::<()>();
    let sleeper: Job = Box::new(move || {
        Box::pin(async move {
            let _ = happens.await;
        })
    });
    let at_work: Job = Box::new(|| {
        Box::pin(async {
            for _ in 0..5 {
                yield_now().await;
            }
        })
    });
    assert!(jobs.send(sleeper).is_ok() && jobs.send(at_work).is_ok());
    assert_eq!(wakes.0.load(SeqCst), 1);
    assert!(drive().0 > 1);
    // One is left, which waits.
    assert_eq!(drive(), (1, false));
    assert_eq!(wakes.0.load(SeqCst), 0);
    event.send(()).unwrap();
    assert_eq!(wakes.0.load(SeqCst), 1);
    drive();
    drop(jobs);
    assert!(drive().1);
}

#[test]
fn a_thousand_generations_and_a_hundred_loads_make_one_thread() {
    let (thread, ids) = (SharedThread::new("many-loads"), Arc::new(Mutex::new(Vec::new())));
    for _ in 0..100 {
        let (of_build, of_steps) = (ids.clone(), ids.clone());
        let model = block_on(spawn_on(&thread, &options(), async move || {
            of_build.lock().unwrap().push(thread::current().id());
            let setup = Setup::default().hook(move |_| {
                of_steps.lock().unwrap().push(thread::current().id());
                Ok(())
            });
            Ok(setup.build())
        }))
        .unwrap();
        for _ in 0..10 {
            block_on(model.generate(GenerateRequest::new(prompt(100, 4)).with_max_tokens(2)).complete()).unwrap();
        }
        block_on(model.unload()).unwrap();
    }
    let ids = ids.lock().unwrap();
    assert_eq!(ids.len(), 100 * (1 + 10 * 2));
    assert!(ids.iter().all(|id| *id == ids[0]));
    // A thread that it started without a name would have this one's.
    #[cfg(target_os = "linux")]
    {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok());
        assert_eq!(names.filter(|name| name.trim() == "llm-many-loads").count(), 1);
    }
}
