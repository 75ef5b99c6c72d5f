//! Pressure that a source tells of, and the thread that hears of it.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, mpsc},
    thread,
    time::Duration,
};

use llm_local::{
    Error, FinishReason, GenerateRequest, Generation, GenerationEvent, Model,
    core::{CancellationToken, SessionId},
    memory::{
        EvictionReason, MemoryEvent, MemoryEvents, WhenShort,
        pressure::{ManualPressure, PressureLevel, PressureLevel::*},
    },
};
use llm_local_testkit::fakes::Gate;
use pollster::block_on;
use tracing::{
    Event, Metadata, Subscriber,
    field::Field,
    span::{Attributes, Id, Record},
};

use crate::world::{MB, Setup, Size, World, lock, spec};

/// Held by the test that runs: they look for the threads of the process.
static ALONE: Mutex<()> = Mutex::new(());

/// How long the monitor's thread may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Monitored {
    pub(crate) world: World,
    pub(crate) source: ManualPressure,
    heard: mpsc::Receiver<MemoryEvent>,
    _alone: MutexGuard<'static, ()>,
}

impl Monitored {
    pub(crate) fn new(setup: Setup) -> Self {
        let alone = lock(&ALONE);
        let (world, source) = (setup.build(), ManualPressure::new());
        let heard = listen(world.engine.memory_events());
        world.engine.start_monitoring_with(vec![Arc::new(source.clone())]).unwrap();
        Self { world, source, heard, _alone: alone }
    }

    /// Waits until something is heard that `is` it. Gives all that was heard until then.
    pub(crate) fn until(&self, is: impl Fn(&MemoryEvent) -> bool) -> Vec<MemoryEvent> {
        let mut all = Vec::new();
        loop {
            let event = self.heard.recv_timeout(PATIENCE);
            let event = event.unwrap_or_else(|error| panic!("{error}; heard until then: {all:?}"));
            all.push(event);
            if is(&all[all.len() - 1]) {
                return all;
            }
        }
    }

    pub(crate) fn until_level(&self, level: PressureLevel) -> Vec<MemoryEvent> {
        self.until(|event| matches!(event, MemoryEvent::Pressure { level: now, .. } if *now == level))
    }

    /// Loads these, in this order.
    fn load<const N: usize>(&self, models: [&str; N]) -> [Model; N] {
        models.map(|model| block_on(self.world.engine.load(&spec(model))).unwrap())
    }

    /// Has the monitor look at its clock.
    pub(crate) fn nudge(&self) {
        self.source.report(Normal, "look");
    }
}

/// Sends events on from a thread of its own, which ends with the engine.
fn listen(mut events: MemoryEvents) -> mpsc::Receiver<MemoryEvent> {
    let (sender, heard) = mpsc::channel();
    thread::spawn(move || {
        while let Some(event) = block_on(events.next()) {
            if sender.send(event).is_err() {
                break;
            }
        }
    });
    heard
}

fn four() -> Setup {
    Setup::new(100 * MB, &["a", "b", "c", "d"].map(|model| (model, Size::of(20 * MB).with_token(100))))
}

fn is_evicted(event: &MemoryEvent, of: &str, level: PressureLevel) -> bool {
    matches!(event, MemoryEvent::Evicted { model, reason: EvictionReason::Pressure(at), .. } if model == of && *at == level)
}

fn next(generation: &mut Generation) -> GenerationEvent {
    block_on(generation.next()).unwrap().unwrap()
}

/// Tells of each time that a load says something of memory, in whose thread it is the subscriber.
struct ToldOfMemory(mpsc::Sender<String>);

impl Subscriber for ToldOfMemory {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "llm_local::memory"
    }

    fn event(&self, event: &Event<'_>) {
        event.record(&mut |field: &Field, value: &dyn fmt::Debug| {
            if field.name() == "message" {
                // Nobody listens any more behind what was waited for.
                let _ = self.0.send(format!("{value:?}"));
            }
        });
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// How many threads of this process have names that begin so.
#[cfg(target_os = "linux")]
fn threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    // One may end while this looks.
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("llm-memory")).count()
}

/// Waits until the monitor has so many threads: one that was just begun has no name yet, and one that was joined may still be
/// listed for a moment.
#[cfg(target_os = "linux")]
pub(crate) fn has_threads(count: usize) -> bool {
    let begun = std::time::Instant::now();
    while threads() != count {
        if begun.elapsed() > PATIENCE / 4 {
            return false;
        }
        thread::yield_now();
    }
    true
}

#[test]
fn a_warning_unloads_the_oldest_until_enough_is_free() {
    let monitored = Monitored::new(four().policy(|policy| policy.with_enough(0.45)));
    let [a, b, c, d] = monitored.load(["a", "b", "c", "d"]);
    monitored.source.report(Warn, "on purpose");
    // 20 MB are free, 40 when `a` is gone, and 60 when `b` is.
    let heard = monitored.until(|event| is_evicted(event, "b", Warn));
    let pressure = heard.iter().find(|event| matches!(event, MemoryEvent::Pressure { .. }));
    let (level, source, reason) = (Warn, Some("manual".to_owned()), "on purpose".to_owned());
    assert_eq!(pressure, Some(&MemoryEvent::Pressure { level, source, reason }));
    assert!(heard.iter().any(|event| is_evicted(event, "a", Warn)), "{heard:?}");
    // It has decided by the time that it is stopped.
    monitored.world.engine.stop_monitoring();
    assert_eq!([a, b, c, d].map(|model| model.is_loaded()), [false, false, true, true]);
}

#[test]
fn a_critical_report_unloads_all_that_are_idle_and_what_becomes_so_and_lets_generations_end() {
    let monitored = Monitored::new(four());
    let [a, b, c, _] = monitored.load(["a", "b", "c", "d"]);
    let session = || GenerateRequest::new("hello").with_session(SessionId::new("s"));
    block_on(b.generate(session()).complete()).unwrap();
    let mut generation = b.generate(GenerateRequest::new("hello"));
    next(&mut generation);
    let pinned = c.pin().unwrap();
    block_on(c.generate(session()).complete()).unwrap();
    monitored.source.report(Critical, "on purpose");
    let mut trimmed = Vec::new();
    while trimmed.len() < 2 {
        let heard = monitored.until(|event| matches!(event, MemoryEvent::Trimmed { .. }));
        let Some(MemoryEvent::Trimmed { model, bytes, level: Critical }) = heard.last() else { panic!("{heard:?}") };
        assert!(*bytes > 0);
        trimmed.push(model.clone());
    }
    trimmed.sort();
    assert_eq!(trimmed, ["b", "c"]);
    assert!(!a.is_loaded() && b.is_loaded() && c.is_loaded());
    let completion = block_on(generation.complete()).unwrap();
    assert_eq!(completion.finish_reason, Some(FinishReason::Eos));
    // Nobody uses it now.
    monitored.until(|event| is_evicted(event, "b", Critical));
    assert!(c.is_loaded());
    drop(pinned);
    monitored.until(|event| is_evicted(event, "c", Critical));
}

#[test]
fn generations_are_stopped_if_the_policy_says_so_and_those_that_were_cancelled_say_that() {
    let monitored = Monitored::new(four().policy(|policy| policy.stopping_generations(true)));
    let [a, b, ..] = monitored.load(["a", "b", "c"]);
    let cancel = CancellationToken::new();
    let mut stopped = a.generate(GenerateRequest::new("hello"));
    let mut cancelled = b.generate(GenerateRequest::new("hello").with_cancel(cancel.clone()));
    next(&mut stopped);
    next(&mut cancelled);
    cancel.cancel();
    monitored.source.report(Critical, "on purpose");
    let heard = monitored.until(|event| matches!(event, MemoryEvent::GenerationStopped { .. }));
    assert_eq!(heard.last(), Some(&MemoryEvent::GenerationStopped { model: "a".into() }));
    let reason = |mut generation: Generation| match next(&mut generation) {
        GenerationEvent::Finished { reason, .. } => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!((reason(stopped), reason(cancelled)), (FinishReason::MemoryPressure, FinishReason::Cancelled));
    monitored.until(|event| is_evicted(event, "a", Critical));
}

#[test]
fn loads_wait_while_memory_is_critically_short_and_go_on_afterwards() {
    let monitored = Monitored::new(four());
    monitored.source.report(Critical, "on purpose");
    monitored.until_level(Critical);
    let (engine, (said, says)) = (monitored.world.engine.clone(), mpsc::channel());
    let loading = thread::spawn(move || {
        tracing::subscriber::with_default(ToldOfMemory(said), || block_on(engine.load(&spec("a"))).map(drop))
    });
    let said = || says.recv_timeout(PATIENCE).unwrap();
    let decided = |said: &String| said.contains("waits until") || said.contains("are set aside");
    let decision = std::iter::repeat_with(said).find(decided).unwrap();
    assert!(decision.contains("waits until memory is not critically short"), "{decision}");
    assert_eq!(monitored.world.backend.calls().loads, 0);
    monitored.world.pass(Duration::from_secs(10));
    monitored.nudge();
    let heard = monitored.until(|event| matches!(event, MemoryEvent::Admitted { .. }));
    let fell = |event: &MemoryEvent| matches!(event, MemoryEvent::Pressure { level: Normal, source: None, .. });
    assert!(heard.iter().any(fell), "it was let in before: {heard:?}");
    loading.join().unwrap().unwrap();
}

#[test]
fn loads_fail_while_memory_is_critically_short_if_the_policy_says_so() {
    let monitored = Monitored::new(four().policy(|policy| policy.when_critical(WhenShort::Fail)));
    monitored.source.report(Critical, "on purpose");
    monitored.until_level(Critical);
    let error = block_on(monitored.world.engine.load(&spec("a"))).unwrap_err();
    assert!(matches!(error, Error::InsufficientMemory { .. }) && error.to_string().contains("critically"), "{error}");
    monitored.until(|event| matches!(event, MemoryEvent::Refused { .. }));
    assert_eq!(monitored.world.backend.calls().loads, 0);
    monitored.world.pass(Duration::from_secs(10));
    monitored.nudge();
    monitored.until_level(Normal);
    block_on(monitored.world.engine.load(&spec("a"))).unwrap();
}

#[test]
#[cfg(target_os = "linux")]
fn the_end_of_monitoring_leaves_no_thread_and_lets_waiting_loads_go_on() {
    let monitored = Monitored::new(four());
    assert!(has_threads(1) && monitored.source.is_watched());
    // It is on already.
    monitored.world.engine.start_monitoring_with(vec![Arc::new(ManualPressure::new())]).unwrap();
    assert!(has_threads(1));
    monitored.source.report(Critical, "on purpose");
    monitored.until_level(Critical);
    let engine = monitored.world.engine.clone();
    let loading = thread::spawn(move || block_on(engine.load(&spec("a"))).map(drop));
    monitored.world.engine.stop_monitoring();
    assert!(has_threads(0) && !monitored.source.is_watched());
    loading.join().unwrap().unwrap();
    let status = monitored.world.status();
    assert_eq!((status.level, status.monitoring), (Normal, false));
    monitored.world.engine.stop_monitoring();
    monitored.world.engine.start_monitoring_with(vec![Arc::new(monitored.source.clone())]).unwrap();
    assert!(has_threads(1));
}

#[test]
#[cfg(target_os = "linux")]
fn an_engine_that_is_dropped_leaves_no_thread_and_no_model() {
    let monitored = Monitored::new(four());
    let [model] = monitored.load(["a"]);
    let mut generation = model.generate(GenerateRequest::new("hello"));
    next(&mut generation);
    let Monitored { world: World { engine, backend, .. }, source, heard, _alone } = monitored;
    drop(engine);
    assert!(has_threads(0) && !source.is_watched());
    // Whoever has a model keeps it.
    assert_eq!(block_on(generation.complete()).unwrap().finish_reason, Some(FinishReason::Eos));
    drop(model);
    assert_eq!((backend.calls().live(), backend.held()), (0, 0));
    // The events end.
    while heard.recv_timeout(PATIENCE).is_ok() {}
    assert_eq!(heard.recv(), Err(mpsc::RecvError));
}

#[test]
fn the_monitor_waits_for_memory_that_comes_back_late() {
    let gate = Arc::new(Gate::new());
    let unloads = gate.clone();
    let monitored = Monitored::new(four().backend(|backend| backend.with_unload_gate(unloads)));
    let [a, _] = monitored.load(["a", "b"]);
    monitored.source.report(Critical, "on purpose");
    monitored.until_level(Critical);
    gate.open();
    monitored.until(|event| is_evicted(event, "b", Critical));
    assert!(!a.is_loaded());
    assert_eq!((monitored.world.backend.held(), monitored.world.status().devices[0].promised), (0, 0));
}

#[test]
fn models_whose_time_is_over_go_while_it_is_on() {
    let keep = llm_local::core::KeepAlive::For(Duration::from_secs(60));
    let monitored = Monitored::new(four().policy(|policy| policy.with_keep_alive(keep)));
    let [model] = monitored.load(["a"]);
    monitored.world.pass(Duration::from_secs(60));
    monitored.nudge();
    let heard = monitored.until(|event| matches!(event, MemoryEvent::Evicted { .. }));
    assert!(matches!(heard.last(), Some(MemoryEvent::Evicted { reason: EvictionReason::Idle, .. })), "{heard:?}");
    assert!(!model.is_loaded());
}
