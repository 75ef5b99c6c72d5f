//! Unloads that go wrong, or are given up half way, and who hears of them.

use std::{
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use llm_local::{
    ContextLength, Error, FinishReason, GenerateRequest, Model, ModelSpec, Result,
    core::{CancellationToken, KeepAlive},
    memory::{
        EvictionReason, MemoryEvent, ResidentPhase,
        pressure::PressureLevel::{Critical, Normal, Warn},
    },
};
use pollster::block_on;

use crate::{
    contrary::Manners,
    executor::Task,
    monitoring::Monitored,
    world::{MB, Setup, Size, World, evicted, spec},
};

/// How often something is done that goes wrong by chance.
const ROUNDS: usize = 100;

/// A machine with 100 MB, and models of 60.
fn two() -> Setup {
    Setup::new(100 * MB, &["a", "b"].map(|model| (model, Size::of(60 * MB))))
}

fn load(world: &World, model: &str) -> Task<Result<Model>> {
    let (engine, spec) = (world.engine.clone(), spec(model));
    Task::new(&world.journal, Some(model), async move { engine.load(&spec).await })
}

fn promised(world: &World) -> u64 {
    world.status().devices[0].promised
}

fn is_idle(event: &MemoryEvent) -> bool {
    matches!(event, MemoryEvent::Evicted { reason: EvictionReason::Idle, .. })
}

#[test]
fn a_backend_that_keeps_the_reservation_of_an_unloaded_model_does_not_hold_up_loads() {
    let manners = Arc::new(Manners { keep_reservation: true, ..Manners::default() });
    let world = manners.of(two()).build();
    let a = load(&world, "a").finish().unwrap();
    assert_eq!(promised(&world), 60 * MB);
    let b = load(&world, "b").finish().unwrap();
    assert!(!a.is_loaded() && b.is_loaded());
    assert_eq!((world.models(), promised(&world), world.backend.held()), (vec!["b".to_owned()], 60 * MB, 60 * MB));
    assert_eq!(evicted(&world.events()), ["a"]);
    // The reservation goes with the last handle: that of a model which has none any more takes nothing from others.
    assert_eq!(manners.live(), 2);
    drop(a);
    assert_eq!((manners.live(), promised(&world)), (1, 60 * MB));
    block_on(b.unload()).unwrap();
    assert_eq!((world.models(), promised(&world)), (Vec::new(), 0));
}

#[test]
fn a_model_that_its_backend_cannot_unload_stays_counted_until_its_last_handle_is_dropped() {
    let manners = Arc::new(Manners::default());
    manners.fail_to_unload.store(true, SeqCst);
    let world = manners.of(two()).build();
    let a = load(&world, "a").finish().unwrap();
    let error = load(&world, "b").finish().unwrap_err();
    assert!(matches!(error, Error::InsufficientMemory { available, .. } if available == 40 * MB), "{error}");
    assert_eq!((world.resident("a").phase, world.backend.held()), (ResidentPhase::Stuck, 60 * MB));
    assert_eq!((world.models(), promised(&world)), (vec!["a".to_owned()], 60 * MB));
    assert!(!a.is_loaded() && a.pin().is_err());
    // Nothing else takes it up.
    block_on(world.engine.relieve(Critical));
    assert_eq!((world.resident("a").phase, evicted(&world.events())), (ResidentPhase::Stuck, vec![]));
    drop(a);
    assert_eq!((world.models(), promised(&world), world.backend.held(), manners.live()), (Vec::new(), 0, 0, 0));
    assert!(load(&world, "b").finish().unwrap().is_loaded());
    assert_eq!(evicted(&world.events()), [""; 0]);
}

#[test]
fn a_model_that_could_not_be_unloaded_is_unloaded_when_its_holder_tries_again() {
    let manners = Arc::new(Manners::default());
    manners.fail_to_unload.store(true, SeqCst);
    let world = manners.of(two()).build();
    let a = load(&world, "a").finish().unwrap();
    assert!(block_on(a.unload()).is_err());
    assert_eq!((world.resident("a").phase, promised(&world)), (ResidentPhase::Stuck, 60 * MB));
    manners.fail_to_unload.store(false, SeqCst);
    block_on(a.unload()).unwrap();
    assert_eq!((world.models(), promised(&world), world.backend.held()), (Vec::new(), 0, 0));
    // Its holder unloaded it, and not the engine.
    assert_eq!(evicted(&world.events()), [""; 0]);
    assert!(!load(&world, "a").finish().unwrap().is_same(&a));
}

/// Begins something that unloads `a`.
type Driver = fn(&World) -> Task<()>;

fn loading_b(world: &World) -> Task<()> {
    let engine = world.engine.clone();
    Task::new(&world.journal, Some("b"), async move { drop(engine.load(&spec("b")).await.unwrap()) })
}

fn relieving(world: &World) -> Task<()> {
    let engine = world.engine.clone();
    Task::new(&world.journal, None, async move { engine.relieve(Critical).await })
}

fn unloading_idle(world: &World) -> Task<()> {
    let engine = world.engine.clone();
    Task::new(&world.journal, None, async move { engine.unload_idle().await })
}

#[test]
fn an_unload_that_is_given_up_half_way_is_taken_up_by_others_and_told_once() {
    let room = || EvictionReason::RoomFor { model: "b".into() };
    let firsts: [(Driver, EvictionReason); 3] =
        [(loading_b, room()), (relieving, EvictionReason::Pressure(Critical)), (unloading_idle, EvictionReason::Idle)];
    for (first, why) in firsts {
        for later in [loading_b as Driver, relieving] {
            let after = CancellationToken::new();
            let manners = Arc::new(Manners { unload_after: Some(after.clone()), ..Manners::default() });
            let minute = KeepAlive::For(Duration::from_secs(60));
            let world = manners.of(two().policy(|policy| policy.with_keep_alive(minute))).build();
            let a = load(&world, "a").finish().unwrap();
            world.pass(Duration::from_secs(60));
            let mut first = first(&world);
            assert!(first.run().is_none());
            drop(first);
            world.journal.is_over("b");
            after.cancel();
            // Nobody polls it.
            assert_eq!((world.resident("a").phase, world.backend.held()), (ResidentPhase::Leaving, 60 * MB));
            assert_eq!((evicted(&world.events()), a.is_loaded()), (vec![], false));
            later(&world).finish();
            assert!(!world.models().contains(&"a".to_owned()), "{:?}", world.status().models);
            let is_of_a = |event: &MemoryEvent| matches!(event, MemoryEvent::Evicted { model, .. } if model == "a");
            let told: Vec<_> = world.events().into_iter().filter(is_of_a).collect();
            let bytes = 60 * MB;
            assert_eq!(told, [MemoryEvent::Evicted { model: "a".into(), bytes, reason: why.clone() }]);
            // The engine has no handle of it either.
            let live = manners.live();
            drop(a);
            assert_eq!(manners.live(), live - 1);
            let loads = world.backend.calls().loads;
            assert!(load(&world, "a").finish().unwrap().is_loaded());
            assert_eq!(world.backend.calls().loads, loads + 1);
            assert!(!world.events().iter().any(is_of_a), "it was told twice");
        }
    }
}

#[test]
fn a_model_that_stays_for_ever_by_its_time_does_not_end_the_monitor() {
    let ever = KeepAlive::For(Duration::MAX);
    let monitored = Monitored::new(two().policy(|policy| policy.with_keep_alive(ever)));
    let world = &monitored.world;
    world.pass(Duration::from_secs(1));
    let a = block_on(world.engine.load(&spec("a").with_keep_alive(ever))).unwrap();
    world.pass(Duration::from_secs(1000));
    block_on(world.engine.unload_idle());
    assert!(a.is_loaded());
    monitored.source.report(Critical, "on purpose");
    monitored.until(|event| matches!(event, MemoryEvent::Evicted { model, .. } if model == "a"));
    assert!(!a.is_loaded());
}

#[test]
fn a_backend_that_panics_while_memory_is_taken_back_does_not_end_the_monitor() {
    for in_trim in [true, false] {
        let manners = Arc::new(Manners::default());
        let panics = if in_trim { &manners.panic_in_trim } else { &manners.panic_in_unload };
        panics.store(true, SeqCst);
        let monitored = Monitored::new(manners.of(two()));
        let a = block_on(monitored.world.engine.load(&spec("a"))).unwrap();
        let pinned = in_trim.then(|| a.pin().unwrap());
        monitored.source.report(Critical, "on purpose");
        monitored.until_level(Critical);
        // It has panicked once the report is dealt with, of which nothing is told: that is before the next is.
        monitored.source.report(Normal, "look");
        monitored.world.pass(Duration::from_secs(10));
        monitored.nudge();
        monitored.until_level(Normal);
        assert!(!panics.load(SeqCst), "nothing has panicked");
        drop(pinned);
        monitored.source.report(Warn, "on purpose");
        monitored.until_level(Warn);
        monitored.source.report(Critical, "on purpose");
        monitored.until_level(Critical);
        block_on(monitored.world.engine.relieve(Critical));
        assert!(!a.is_loaded());
        assert_eq!((monitored.world.models(), monitored.world.backend.held()), (Vec::new(), 0));
    }
}

#[test]
fn a_model_that_goes_at_once_when_nobody_uses_it_is_used_before() {
    let monitored = Monitored::new(two().policy(|policy| policy.with_keep_alive(KeepAlive::For(Duration::ZERO))));
    for round in 1..=ROUNDS {
        let generation = block_on(monitored.world.engine.generate(&spec("a"), GenerateRequest::new("hello"))).unwrap();
        let completion = block_on(generation.complete()).unwrap();
        assert_eq!((completion.text.as_str(), completion.finish_reason), ("hello", Some(FinishReason::Eos)));
        monitored.until(is_idle);
        assert_eq!(monitored.world.backend.calls().loads, round);
        assert_eq!((monitored.world.models(), monitored.world.backend.held()), (Vec::new(), 0));
    }
}

#[test]
fn monitoring_that_is_ended_and_begun_at_once_is_on_or_off_as_the_status_says() {
    let monitored = Monitored::new(two());
    let (engine, source) = (&monitored.world.engine, &monitored.source);
    let start = || engine.start_monitoring_with(vec![Arc::new(source.clone())]).unwrap();
    let mut on = 0;
    for round in 0..ROUNDS {
        start();
        let both = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                both.wait();
                engine.stop_monitoring();
            });
            both.wait();
            // Behind the one that is ended, or before it is: then it does nothing.
            (0..round).for_each(|_| std::hint::spin_loop());
            start();
        });
        let is_on = monitored.world.status().monitoring;
        assert_eq!(source.is_watched(), is_on);
        if is_on {
            on += 1;
            // It looks after idle models when something changes, and hears of pressure.
            let at_once = spec("a").with_keep_alive(KeepAlive::For(Duration::ZERO));
            drop(block_on(engine.load(&at_once)).unwrap());
            monitored.until(is_idle);
            source.report(Critical, "on purpose");
            monitored.until_level(Critical);
        }
        engine.stop_monitoring();
        let status = monitored.world.status();
        assert_eq!((status.monitoring, status.level, source.is_watched()), (false, Normal, false));
    }
    assert!(on > 0, "the two never met");
    #[cfg(target_os = "linux")]
    assert!(crate::monitoring::has_threads(0));
}

#[test]
fn a_refusal_is_told_once_and_a_retry_that_works_is_none() {
    let asking = |tokens| spec("m").with_context_length(ContextLength::Tokens(tokens));
    let pinned = |world: &World| Some(block_on(world.engine.load(&spec("other"))).unwrap().pin().unwrap());
    let nobody = |_: &World| None;
    // Loads that fail for want of memory, what is pinned, the spec, how often it is retried, and refused.
    type Pins = fn(&World) -> Option<llm_local::memory::Pinned>;
    let cases: [(&str, usize, Pins, ModelSpec, usize, usize); 6] = [
        ("its plan does not fit", 0, nobody, spec("huge"), 0, 1),
        ("others have the memory", 0, pinned, asking(2048), 0, 1),
        ("the device says no", 1, nobody, asking(2048), 0, 1),
        ("the device says no twice", 2, nobody, spec("m"), 1, 1),
        ("the device says no once", 1, nobody, spec("m"), 1, 0),
        ("it fits", 0, nobody, spec("m"), 0, 0),
    ];
    for (name, failures, pins, spec, retried, refused) in cases {
        let begun = AtomicUsize::new(0);
        let fail = move |model: &str| model == "m" && begun.fetch_add(1, SeqCst) < failures;
        let sizes =
            [("m", Size::of(60 * MB).with_token(1000)), ("other", Size::of(60 * MB)), ("huge", Size::of(200 * MB))];
        let error = || Error::out_of_memory("cpu", "the allocator said no");
        let world = Setup::new(100 * MB, &sizes)
            .backend(move |backend| backend.with_failure_fn(move |model, _, _| fail(model).then(error)))
            .build();
        let _pinned = pins(&world);
        assert_eq!(block_on(world.engine.load(&spec)).is_err(), refused > 0, "{name}");
        let events = world.events();
        let count = |is: fn(&MemoryEvent) -> bool| events.iter().filter(|event| is(event)).count();
        let told = (
            count(|event| matches!(event, MemoryEvent::Retried { .. })),
            count(|event| matches!(event, MemoryEvent::Refused { .. })),
        );
        assert_eq!(told, (retried, refused), "{name}: {events:?}");
    }
}
