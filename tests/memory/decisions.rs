//! What becomes of a load: a table of situations.

use std::{io, sync::Arc, time::Duration};

use llm_local::{
    Error, FinishReason, GenerateRequest, GenerationEvent, Model, ModelSpec, Result,
    core::{DeviceInfo, DeviceKind, DeviceMemory, KeepAlive},
    memory::{Budget, EvictionReason, MemoryEvent, MemoryPolicy, ResidentPhase, WhenShort, pressure::PressureLevel},
};
use llm_local_testkit::fakes::Gate;
use pollster::block_on;

use crate::{
    executor::Task,
    world::{MB, Setup, Size, World, evicted, spec},
};

/// What a model that is there is doing.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Is {
    Idle,
    InUse,
    Pinned,
    Leaving,
    Loading,
}

/// What becomes of the load of `new`, 40 MB.
#[derive(Debug, PartialEq)]
enum Becomes {
    /// It is loaded, once these are gone.
    Loaded(&'static [&'static str]),
    /// It waits; then, when whatever is in use has ended, it is loaded once these are gone.
    Waits(&'static [&'static str]),
    /// It is refused, and nothing goes. It says this of what is available, and in this place.
    Refused(u64, &'static str),
}
use {Becomes::*, Is::*};

/// Models of 30 MB, in the order of their last use, and what they do.
type There = &'static [(&'static str, Is)];

/// What is told of it, the policy, bytes of other processes, who is there, and what becomes of a new load.
type Case = (&'static str, fn(MemoryPolicy) -> MemoryPolicy, u64, There, Becomes);

/// On a machine with 100 MB.
fn cases() -> Vec<Case> {
    let fails: fn(MemoryPolicy) -> MemoryPolicy = |policy| policy;
    let waits: fn(MemoryPolicy) -> MemoryPolicy = |policy| policy.when_in_use(WhenShort::Wait);
    vec![
        ("it fits", fails, 0, &[("a", Idle), ("b", InUse)], Loaded(&[])),
        ("the oldest goes", fails, 0, &[("a", Idle), ("b", Idle), ("c", Idle)], Loaded(&["a"])),
        ("the oldest that may go goes", fails, 0, &[("a", Pinned), ("b", Idle), ("c", Idle)], Loaded(&["b"])),
        ("the oldest that is idle goes", waits, 0, &[("a", InUse), ("b", Idle), ("c", Idle)], Loaded(&["b"])),
        (
            "one after the other",
            |p| p.with_budget(Budget::Bytes(90 * MB)),
            0,
            &[("a", Idle), ("b", Idle), ("c", Idle)],
            Loaded(&["a", "b"]),
        ),
        ("others take memory", fails, 40 * MB, &[("a", Idle), ("b", Idle)], Loaded(&["a", "b"])),
        ("others take too much", fails, 65 * MB, &[("a", Idle)], Refused(35 * MB, "beside the weights")),
        ("what is left free", |p| p.with_headroom(0.1), 25 * MB, &[("a", Idle)], Loaded(&["a"])),
        (
            "too large for the budget",
            |p| p.with_budget(Budget::Bytes(39 * MB)).when_in_use(WhenShort::Wait),
            0,
            &[],
            Refused(39 * MB, "beside the weights"),
        ),
        ("in use", fails, 0, &[("a", InUse), ("b", InUse), ("c", InUse)], Refused(10 * MB, "beside the weights")),
        ("in use, and it waits", waits, 0, &[("a", InUse), ("b", InUse), ("c", InUse)], Waits(&["a"])),
        ("pinned", waits, 0, &[("a", Pinned), ("b", Pinned), ("c", Pinned)], Refused(10 * MB, "beside the weights")),
        ("pinned and in use", waits, 0, &[("a", Pinned), ("b", InUse), ("c", Pinned)], Waits(&["b"])),
        ("one is enough", fails, 0, &[("a", Idle), ("b", InUse), ("c", InUse)], Loaded(&["a"])),
        (
            "nothing goes for nothing",
            |p| p.with_budget(Budget::Bytes(90 * MB)),
            0,
            &[("a", InUse), ("b", InUse), ("c", Idle)],
            Refused(30 * MB, "beside the weights"),
        ),
        ("what leaves is waited for", fails, 0, &[("a", Leaving), ("b", Idle), ("c", Idle)], Loaded(&["a"])),
        (
            "what is being loaded",
            fails,
            0,
            &[("a", InUse), ("b", InUse), ("c", Loading)],
            Refused(10 * MB, "beside the weights"),
        ),
        ("what is being loaded, and it waits", waits, 0, &[("a", Idle), ("b", InUse), ("c", Loading)], Loaded(&["a"])),
        ("no more models", |p| p.with_max_models(2), 0, &[("a", Idle), ("b", Idle)], Loaded(&["a"])),
        (
            "no more models, all in use",
            |p| p.with_max_models(2),
            0,
            &[("a", InUse), ("b", InUse)],
            Refused(0, "the policy allows 2"),
        ),
        (
            "no more models, and it waits",
            |p| p.with_max_models(1).when_in_use(WhenShort::Wait),
            0,
            &[("a", InUse)],
            Waits(&["a"]),
        ),
        (
            "no more models, one pinned",
            |p| p.with_max_models(1).when_in_use(WhenShort::Wait),
            0,
            &[("a", Pinned)],
            Refused(0, "pinned: `a`"),
        ),
    ]
}

fn load(world: &World, model: &str) -> Task<Result<Model>> {
    let (engine, spec) = (world.engine.clone(), spec(model));
    Task::new(&world.journal, Some(model), async move { engine.load(&spec).await })
}

#[test]
fn each_situation_is_decided_as_the_table_says() {
    for (name, policy, others, there, becomes) in cases() {
        let (loads, unloads) = (Arc::new(Gate::new()), Arc::new(Gate::new()));
        let gates = (loads.clone(), unloads.clone());
        let sizes = [("a", 30), ("b", 30), ("c", 30), ("new", 40)].map(|(model, mb)| (model, Size::of(mb * MB)));
        let setup = Setup::new(100 * MB, &sizes).policy(policy);
        let world = setup.backend(|backend| backend.with_gate(gates.0).with_unload_gate(gates.1)).build();
        let (mut generations, mut pins, mut tasks, mut unloading) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (model, is) in there {
            let mut task = load(&world, model);
            if *is == Loading {
                assert!(task.run().is_none(), "{name}: {model}");
                tasks.push(task);
                continue;
            }
            loads.let_through(1);
            let handle = task.run().unwrap_or_else(|| panic!("{name}: {model} waits")).unwrap();
            match is {
                Idle | Loading => {}
                InUse => generations.push((*model, handle.generate(GenerateRequest::new("hello")))),
                Pinned => pins.push(handle.pin().unwrap()),
                Leaving => {
                    let mut unload = Task::new(&world.journal, None, async move { handle.unload().await });
                    assert!(unload.run().is_none(), "{name}: {model}");
                    unloading.push(unload);
                }
            }
        }
        world.set_others(others);
        world.events();
        // Those that are being loaded stay so: nobody polls them.
        loads.let_through(1 + tasks.len());
        let mut new = load(&world, "new");
        let outcome = new.run();
        let mut outcome = match (&becomes, outcome) {
            (Loaded([]) | Refused(..), outcome) => outcome,
            // Unloads take their time.
            (Loaded(_), outcome) => {
                assert!(outcome.is_none(), "{name}: {outcome:?}");
                assert!(there.iter().all(|(model, _)| world.models().contains(&(*model).to_owned())), "{name}");
                unloads.open();
                new.run()
            }
            (Waits(_), outcome) => {
                assert!(outcome.is_none() && evicted(&world.events()).is_empty(), "{name}: {outcome:?}");
                unloads.open();
                assert!(new.run().is_none(), "{name}");
                for (_, generation) in generations.drain(..) {
                    let completion = block_on(generation.complete()).unwrap();
                    assert_eq!(completion.finish_reason, Some(FinishReason::Eos), "{name}");
                }
                new.run()
            }
        };
        let said = world.events();
        // Those of which somebody else began to be rid are not evicted.
        let by_others = |model: &&str| there.iter().any(|(there, is)| there == model && *is == Leaving);
        match &becomes {
            Loaded(gone) | Waits(gone) => {
                let model = outcome.take().unwrap_or_else(|| panic!("{name}: it waits")).unwrap();
                assert!(model.is_loaded(), "{name}");
                let gone: Vec<_> = gone.iter().copied().filter(|model| !by_others(model)).collect();
                assert_eq!(evicted(&said), gone, "{name}");
                let because = EvictionReason::RoomFor { model: "new".into() };
                let is_right = |event: &MemoryEvent| match event {
                    MemoryEvent::Evicted { reason, bytes, .. } => (reason, *bytes) == (&because, 30 * MB),
                    other => *other == MemoryEvent::Admitted { model: "new".into(), bytes: 40 * MB },
                };
                assert!(said.iter().all(is_right) && said.len() == gone.len() + 1, "{name}: {said:?}");
            }
            Refused(available, place) => {
                let Some(Err(error)) = outcome else { panic!("{name}: {outcome:?}") };
                let text = error.to_string();
                let Error::InsufficientMemory { required, available: there, .. } = error else {
                    panic!("{name}: {text}")
                };
                assert_eq!((required, there), (40 * MB, *available), "{name}: {text}");
                assert!(text.contains(place), "{name}: {text}");
                assert!(evicted(&said).is_empty(), "{name}: {said:?}");
            }
        }
        drop((generations, pins, unloading));
    }
}

#[test]
fn of_two_loads_at_once_of_which_one_fits_one_is_loaded_and_the_other_waits_or_is_refused() {
    for when in [WhenShort::Wait, WhenShort::Fail] {
        let gate = Arc::new(Gate::new());
        let loads = gate.clone();
        let setup = Setup::new(100 * MB, &[("a", Size::of(60 * MB)), ("b", Size::of(60 * MB))]);
        let world = setup.policy(|policy| policy.when_in_use(when)).backend(|backend| backend.with_gate(loads)).build();
        let (mut first, mut second) = (load(&world, "a"), load(&world, "b"));
        assert!(first.run().is_none());
        let outcome = second.run();
        assert_eq!((world.models(), world.backend.calls().loads), (vec!["a".to_owned()], 1));
        match when {
            WhenShort::Fail => {
                let error = outcome.unwrap().unwrap_err();
                assert!(
                    matches!(error, Error::InsufficientMemory { available, .. } if available == 40 * MB),
                    "{error}"
                );
                gate.open();
                first.finish().unwrap();
            }
            _ => {
                assert!(outcome.is_none());
                gate.open();
                first.finish().unwrap();
                let second = second.finish().unwrap();
                assert!(second.is_loaded());
                assert_eq!(evicted(&world.events()), ["a"]);
            }
        }
        assert_eq!((world.backend.held(), world.status().devices[0].promised), (60 * MB, 60 * MB));
    }
}

#[test]
fn a_load_that_waits_goes_on_when_the_one_before_it_fails_or_is_given_up() {
    for gives_up in [true, false] {
        let gate = Arc::new(Gate::new());
        let loads = gate.clone();
        let setup = Setup::new(100 * MB, &[("a", Size::of(60 * MB)), ("b", Size::of(60 * MB))]);
        let world = setup
            .policy(|policy| policy.when_in_use(WhenShort::Wait))
            .backend(|backend| {
                backend
                    .with_gate(loads)
                    .with_failure_fn(|model, _, _| (model == "a").then(|| Error::load("a", "broken")))
            })
            .build();
        let (mut first, mut second) = (load(&world, "a"), load(&world, "b"));
        assert!(first.run().is_none() && second.run().is_none());
        if gives_up {
            drop(first);
            world.journal.is_over("a");
            gate.let_through(1);
        } else {
            gate.open();
            assert!(first.finish().is_err());
        }
        second.finish().unwrap();
        assert_eq!(world.models(), ["b"]);
    }
}

#[test]
fn concurrent_loads_of_one_spec_are_promised_memory_once() {
    let gate = Arc::new(Gate::new());
    let loads = gate.clone();
    let world = Setup::new(100 * MB, &[("a", Size::of(60 * MB))]).backend(|backend| backend.with_gate(loads)).build();
    let (mut first, mut second) = (load(&world, "a"), load(&world, "a"));
    assert!(first.run().is_none() && second.run().is_none());
    assert_eq!(world.status().devices[0].promised, 60 * MB);
    gate.open();
    assert!(first.finish().unwrap().is_same(&second.finish().unwrap()));
    assert_eq!(world.backend.calls().loads, 1);
}

#[test]
fn a_load_takes_its_peak_and_then_what_running_takes() {
    let sizes = [("a", Size::of(40 * MB).with_peak(30 * MB)), ("b", Size::of(50 * MB))];
    let world = Setup::new(100 * MB, &sizes).build();
    block_on(async {
        world.engine.load(&spec("a")).await.unwrap();
        let admitted = MemoryEvent::Admitted { model: "a".into(), bytes: 70 * MB };
        assert_eq!((world.events(), world.resident("a").promised), (vec![admitted], 40 * MB));
        world.engine.load(&spec("b")).await.unwrap();
        assert_eq!(world.models(), ["a", "b"]);
    });
}

/// A GPU with 50 MB beside a machine with 100.
fn gpu() -> World {
    let devices = vec![
        DeviceInfo::new("cpu", DeviceKind::Cpu, "a processor"),
        DeviceInfo::new("cuda:0", DeviceKind::Cuda, "a GPU"),
    ];
    let sizes = ["a", "b", "c", "d"].map(|model| (model, Size::of(30 * MB)));
    let memory = |held| DeviceMemory::new(50 * MB, 50 * MB - held);
    let change = move |backend: llm_local_testkit::fakes::FakeBackend| {
        backend.with_devices(devices).with_device_memory("cuda:0", memory)
    };
    let world = Setup::new(100 * MB, &sizes).backend(change).build();
    // The machine's memory is what models on the processor hold.
    let (backend, probe) = (Arc::downgrade(&world.backend), &world.probe);
    probe.set_fn(move || {
        let held = backend.upgrade().map_or(0, |backend| backend.held_on("cpu"));
        Ok(llm_local::memory::SystemMemory::new(100 * MB, 100 * MB - held))
    });
    world
}

#[test]
fn memory_of_a_device_and_of_the_machine_are_apart() {
    let world = gpu();
    let on = |model: &str, device: &str| -> ModelSpec { spec(model).with_device(device) };
    block_on(async {
        world.engine.load(&on("a", "cuda:0")).await.unwrap();
        for model in ["b", "c", "d"] {
            world.engine.load(&on(model, "cpu")).await.unwrap();
        }
        assert_eq!(evicted(&world.events()), [""; 0]);
        world.engine.load(&on("b", "cuda:0")).await.unwrap();
        // Not `b` on the processor, which nobody has used for longer.
        assert_eq!((evicted(&world.events()), world.backend.held_on("cuda:0")), (vec!["a"], 30 * MB));
        let devices: Vec<_> = world.status().devices.iter().map(|d| (d.usable, d.promised, d.models)).collect();
        assert_eq!(devices, [(Some(100 * MB), 90 * MB, 3), (Some(50 * MB), 30 * MB, 1)]);
    });
}

#[test]
fn memory_that_nobody_knows_bounds_nothing_but_the_number_of_models() {
    let world = Setup::new(100 * MB, &["a", "b", "c"].map(|model| (model, Size::of(90 * MB))))
        .policy(|policy| policy.with_max_models(2))
        .build();
    world.probe.set_fn(|| Err(io::Error::other("nobody knows")));
    block_on(async {
        for model in ["a", "b", "c"] {
            world.engine.load(&spec(model)).await.unwrap();
        }
    });
    let status = world.status();
    assert_eq!((world.models(), evicted(&world.events())), (vec!["b".to_owned(), "c".into()], vec!["a"]));
    assert_eq!((&status.system, status.devices[0].usable, status.devices[0].budget), (&None, None, None));
}

#[test]
fn a_pinned_model_stays_until_it_is_not_pinned_any_more() {
    let world = Setup::new(100 * MB, &["a", "b"].map(|model| (model, Size::of(60 * MB)))).build();
    block_on(async {
        let model = world.engine.load(&spec("a")).await.unwrap();
        let (one, other) = (model.pin().unwrap(), model.pin().unwrap());
        drop(one);
        world.engine.relieve(PressureLevel::Critical).await;
        assert!(world.engine.load(&spec("b")).await.is_err() && model.is_loaded());
        drop(other);
        world.engine.load(&spec("b")).await.unwrap();
        assert!(!model.is_loaded() && model.pin().is_err());
    });
}

#[test]
fn models_stay_for_as_long_as_their_spec_says_and_else_as_the_policy_does() {
    let seconds = Duration::from_secs;
    let world = Setup::new(100 * MB, &["policy", "short", "forever"].map(|model| (model, Size::of(MB))))
        .policy(|policy| policy.with_keep_alive(KeepAlive::For(seconds(10))))
        .build();
    block_on(async {
        let engine = &world.engine;
        engine.load(&spec("policy")).await.unwrap();
        let short = engine.load(&spec("short").with_keep_alive(KeepAlive::For(seconds(3)))).await.unwrap();
        engine.load(&spec("forever").with_keep_alive(KeepAlive::Forever)).await.unwrap();
        world.pass(seconds(2));
        let mut generation = short.generate(GenerateRequest::new("hello"));
        let next =
            |generation: &mut llm_local::Generation| block_on(futures_util::StreamExt::next(generation)).unwrap();
        world.pass(seconds(5));
        assert!(matches!(next(&mut generation), Ok(GenerationEvent::Token { .. })));
        engine.unload_idle().await;
        assert_eq!(world.models(), ["policy", "short", "forever"]);
        drop(generation);
        world.pass(seconds(2));
        assert_eq!(world.resident("short").idle, seconds(2));
        engine.unload_idle().await;
        assert_eq!(world.models(), ["policy", "short", "forever"]);
        world.pass(seconds(1));
        engine.unload_idle().await;
        assert_eq!(world.models(), ["forever"]);
        let gone = |event: &MemoryEvent| matches!(event, MemoryEvent::Evicted { reason: EvictionReason::Idle, .. });
        assert_eq!(world.events().iter().filter(|event| gone(event)).count(), 2);
        world.pass(seconds(1000));
        engine.unload_idle().await;
        assert_eq!((world.models(), world.resident("forever").phase), (vec!["forever".into()], ResidentPhase::Ready));
    });
}

#[test]
fn a_load_that_comes_while_a_model_leaves_has_the_room_that_it_leaves() {
    let gate = Arc::new(Gate::new());
    let unloads = gate.clone();
    let setup = Setup::new(100 * MB, &[("a", Size::of(60 * MB)), ("b", Size::of(50 * MB).with_token(1000))]);
    let world = setup.backend(|backend| backend.with_unload_gate(unloads)).build();
    let handle = load(&world, "a").finish().unwrap();
    let mut unload = Task::new(&world.journal, None, async move { handle.unload().await });
    assert!(unload.run().is_none());
    assert_eq!(world.status().devices[0].room, Some(100 * MB));
    let mut second = load(&world, "b");
    assert!(second.run().is_none());
    gate.open();
    assert_eq!(second.finish().unwrap().info().context_length, 2048);
    unload.finish().unwrap();
}

#[test]
fn memory_comes_back_though_whoever_unloads_a_model_gives_up_waiting() {
    let giving_up: [fn(&World, Model) -> Task<()>; 4] = [
        |world, model| Task::new(&world.journal, None, async move { model.unload().await.unwrap() }),
        |world, _| {
            let engine = world.engine.clone();
            Task::new(&world.journal, None, async move { engine.unload(&spec("a")).await.unwrap() })
        },
        |world, _| {
            let engine = world.engine.clone();
            Task::new(&world.journal, None, async move { engine.relieve(PressureLevel::Critical).await })
        },
        |world, _| {
            let engine = world.engine.clone();
            Task::new(&world.journal, Some("b"), async move { drop(engine.load(&spec("b")).await) })
        },
    ];
    for gives_up in giving_up {
        let gate = Arc::new(Gate::new());
        let unloads = gate.clone();
        let setup = Setup::new(100 * MB, &["a", "b"].map(|model| (model, Size::of(60 * MB))));
        let world = setup.backend(|backend| backend.with_unload_gate(unloads)).build();
        let mut unload = gives_up(&world, load(&world, "a").finish().unwrap());
        assert!(unload.run().is_none());
        drop(unload);
        world.journal.is_over("b");
        assert_eq!((world.resident("a").phase, world.backend.held()), (ResidentPhase::Leaving, 60 * MB));
        gate.open();
        assert_eq!((world.models(), world.backend.held()), (Vec::new(), 0));
        load(&world, "a").finish().unwrap();
    }
}
