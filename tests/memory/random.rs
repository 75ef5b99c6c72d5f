//! Random sequences of everything that can happen, in an order that is chosen by the sequence, compared with a
//! [reference](crate::reference) after each step.

use std::{
    collections::{BTreeMap, VecDeque},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use llm_local::{
    Error, FinishReason, GenerateRequest, Generation, GenerationEvent, Model, Result,
    core::{KeepAlive, Stream},
    memory::{Budget, Pinned, ResidentPhase, WhenShort},
};
use llm_local_testkit::fakes::Gate;
use proptest::{
    collection::vec,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use crate::{
    executor::Task,
    operations::{Op, Rules, op, rules},
    reference::{Cause, Phase, Reference},
    world::{MB, Setup, Size, World, lock, spec},
};

const CASES: u32 = 256;
pub(crate) const MODELS: [&str; 5] = ["a", "b", "c", "d", "e"];
/// Bytes of the machine, what models may be promised of them, and what a load leaves free.
const MACHINE: (u64, u64, u64) = (100 * MB, 80 * MB, 5 * MB);
const PROMPT: &str = "abc";

fn sizes() -> [(&'static str, Size); 5] {
    [
        ("a", Size::of(10 * MB)),
        ("b", Size::of(20 * MB)),
        ("c", Size::of(30 * MB).with_peak(10 * MB)),
        // 36 MB with the context that it has by itself, and 18 with the shortest.
        ("d", Size::of(15 * MB).with_token(10_000)),
        ("e", Size::of(60 * MB)),
    ]
}

enum Outcome {
    Loaded(Result<Model>),
    Generating(Result<Generation>),
    Done(Result<()>),
}

struct Job {
    cause: Cause,
    model: Option<&'static str>,
    task: Task<Outcome>,
}

struct Running {
    number: usize,
    model: &'static str,
    generation: Generation,
    tokens: usize,
}

struct Run {
    rules: Rules,
    world: World,
    reference: Reference,
    jobs: Vec<Job>,
    handles: Vec<(&'static str, Model)>,
    /// Each with the use at which its model was let in.
    pins: Vec<(&'static str, u64, Pinned)>,
    generations: Vec<Running>,
    numbers: usize,
    gates: [Arc<Gate>; 2],
    failures: Arc<Mutex<VecDeque<Option<Error>>>>,
    contexts: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Run {
    fn new(rules: Rules) -> Self {
        let gates = [Arc::new(Gate::new()), Arc::new(Gate::new())];
        let [of_loads, of_unloads] = gates.clone();
        let failures = Arc::new(Mutex::new(VecDeque::<Option<Error>>::new()));
        let contexts = Arc::new(Mutex::new(BTreeMap::new()));
        let (failing, seen) = (failures.clone(), contexts.clone());
        let world = Setup::new(MACHINE.0, &sizes())
            .policy(|policy| {
                let policy = policy.with_budget(Budget::Share(0.8)).with_headroom(0.05).with_enough(0.5);
                let policy = policy.when_in_use(rules.when_in_use).with_keep_alive(KeepAlive::For(AUTO));
                match rules.max_models {
                    Some(most) => policy.with_max_models(most),
                    None => policy,
                }
            })
            .backend(move |backend| {
                backend.with_gate(of_loads).with_unload_gate(of_unloads).with_failure_fn(move |model, options, _| {
                    lock(&seen).insert(model.to_owned(), options.context_length);
                    lock(&failing).pop_front().flatten()
                })
            })
            .build();
        let reference = Reference::new(&sizes(), MACHINE, rules.max_models);
        let (jobs, handles, pins, generations) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { rules, world, reference, jobs, handles, pins, generations, numbers: 0, gates, failures, contexts }
    }

    /// Does a step, and compares.
    fn apply(&mut self, op: &Op) {
        let model = |at: &usize| MODELS[*at];
        match op {
            Op::Load(at) => {
                let (engine, spec) = (self.world.engine.clone(), specified(model(at)));
                self.begin(Cause::Load, Some(model(at)), async move { Outcome::Loaded(engine.load(&spec).await) });
            }
            Op::Generate(at) => {
                let (engine, spec) = (self.world.engine.clone(), specified(model(at)));
                let request = GenerateRequest::new(PROMPT);
                self.begin(Cause::Load, Some(model(at)), async move {
                    Outcome::Generating(engine.generate(&spec, request).await)
                });
            }
            Op::Step(at) => drop(chosen(*at, self.jobs.len()).map(|at| self.step(at))),
            Op::Run(at) => drop(chosen(*at, self.jobs.len()).map(|at| while !self.step(at) && self.is_due(at) {})),
            Op::Cancel(at) => {
                if let Some(at) = chosen(*at, self.jobs.len()) {
                    self.cancel(at);
                }
            }
            Op::GenerateOn(at) => {
                if let Some(at) = chosen(*at, self.handles.len()) {
                    let (model, handle) = self.handles[at].clone();
                    let generation = handle.generate(GenerateRequest::new(PROMPT));
                    self.generates(model, generation, handle.is_loaded());
                }
            }
            Op::Tokens(at, count) => {
                if let Some(at) = chosen(*at, self.generations.len()) {
                    for _ in 0..*count {
                        if self.token(at) {
                            break;
                        }
                    }
                }
            }
            Op::DropGeneration(at) => {
                if let Some(at) = chosen(*at, self.generations.len()) {
                    let Running { number, model, .. } = self.generations.swap_remove(at);
                    self.ended(model, number);
                }
            }
            Op::Pin(at) if !self.rules.calm => {
                if let Some(at) = chosen(*at, self.handles.len()) {
                    let (model, handle) = self.handles[at].clone();
                    match (handle.is_loaded(), handle.pin()) {
                        (true, Ok(pinned)) => {
                            self.reference.used(model, self.world.now());
                            let tenant = self.reference.tenants.get_mut(model).unwrap();
                            tenant.pins += 1;
                            self.pins.push((model, tenant.since, pinned));
                        }
                        (false, Err(Error::ModelNotLoaded { .. })) => {}
                        (is_loaded, pinned) => panic!("{is_loaded}, but {pinned:?}"),
                    }
                }
            }
            Op::Unpin(at) => {
                if let Some(at) = chosen(*at, self.pins.len()) {
                    self.unpin(at);
                }
            }
            Op::Others(bytes) if !self.rules.calm => self.set_others(*bytes),
            Op::Pin(_) | Op::Others(_) => {}
            Op::Relieve(level) => {
                let (engine, level) = (self.world.engine.clone(), *level);
                self.begin(Cause::Relief, None, async move {
                    engine.relieve(level).await;
                    Outcome::Done(Ok(()))
                });
            }
            Op::Fail(after, of_memory) => {
                let error =
                    if *of_memory { Error::out_of_memory("cpu", "on purpose") } else { Error::load("m", "on purpose") };
                let mut failures = lock(&self.failures);
                failures.resize(*after, None);
                failures.push_back(Some(error));
            }
            Op::LetLoad(count) => self.gates[0].let_through(*count),
            Op::LetUnload(count) => self.gates[1].let_through(*count),
            Op::Pass(seconds) => self.world.pass(Duration::from_secs(*seconds)),
            Op::UnloadIdle => {
                let engine = self.world.engine.clone();
                self.begin(Cause::Expiry, None, async move {
                    engine.unload_idle().await;
                    Outcome::Done(Ok(()))
                });
            }
            Op::Unload(at) => {
                let (engine, spec) = (self.world.engine.clone(), specified(model(at)));
                let unload = async move { Outcome::Done(engine.unload(&spec).await) };
                self.begin(Cause::Unload(model(at).to_owned()), None, unload);
            }
            Op::UnloadModel(at) => {
                if let Some(at) = chosen(*at, self.handles.len()) {
                    let (model, handle) = self.handles.swap_remove(at);
                    let unload = async move { Outcome::Done(handle.unload().await) };
                    self.begin(Cause::Unload(model.to_owned()), None, unload);
                }
            }
            Op::DropHandles => self.handles.clear(),
        }
        self.compare(&Cause::Nothing);
    }

    fn begin(
        &mut self,
        cause: Cause,
        model: Option<&'static str>,
        future: impl Future<Output = Outcome> + Send + 'static,
    ) {
        let task = Task::new(&self.world.journal, model, future);
        self.jobs.push(Job { cause, model, task });
    }

    fn is_due(&self, at: usize) -> bool {
        let Job { model, task, .. } = &self.jobs[at];
        task.is_woken() || model.is_some_and(|model| self.world.journal.is_preparing(model))
    }

    /// Polls a task once, if that may get it on. Whether it has ended.
    fn step(&mut self, at: usize) -> bool {
        let Some(outcome) = self.jobs[at].task.step() else {
            let cause = self.jobs[at].cause.clone();
            self.compare(&cause);
            return false;
        };
        let Job { cause, model, task } = self.jobs.swap_remove(at);
        self.take(&cause);
        match outcome {
            Outcome::Loaded(Ok(handle)) => {
                let model = model.unwrap();
                self.delivered(model);
                self.handles.push((model, handle));
            }
            Outcome::Generating(Ok(generation)) => {
                let model = model.unwrap();
                self.delivered(model);
                self.reference.used(model, self.world.now());
                self.generates(model, generation, true);
            }
            Outcome::Loaded(Err(error)) | Outcome::Generating(Err(error)) => self.check_failure(&error),
            Outcome::Done(Ok(()) | Err(Error::LoadInProgress { .. })) => {}
            Outcome::Done(Err(error)) => panic!("{cause:?}: {error}"),
        }
        drop(task);
        self.compare(&cause);
        true
    }

    /// Somebody has the model now.
    fn delivered(&mut self, model: &str) {
        let keeps = if model == "a" { None } else { Some(AUTO) };
        if let Some(tenant) = self.reference.tenants.get_mut(model) {
            tenant.keeps = keeps;
            if tenant.phase == Phase::Fresh {
                self.reference.used(model, self.world.now());
            }
        }
    }

    fn check_failure(&self, error: &Error) {
        let may_be = match error {
            Error::InsufficientMemory { .. } => !(self.rules.calm && self.rules.when_in_use == WhenShort::Wait),
            Error::OutOfMemory { .. } | Error::LoadFailed { .. } => error.to_string().contains("on purpose"),
            _ => false,
        };
        assert!(may_be, "with {:?}: {error}", self.rules);
    }

    fn cancel(&mut self, at: usize) {
        let Job { model, task, .. } = self.jobs.swap_remove(at);
        drop(task);
        if let Some(model) = model.filter(|model| self.jobs.iter().all(|job| job.model != Some(model))) {
            self.world.journal.is_over(model);
        }
        self.compare(&Cause::Nothing);
    }

    fn generates(&mut self, model: &'static str, generation: Generation, is_loaded: bool) {
        self.numbers += 1;
        let number = self.numbers;
        if is_loaded {
            self.reference.tenants.get_mut(model).unwrap().generations.push(number);
        }
        self.generations.push(Running { number, model, generation, tokens: 0 });
    }

    /// Takes the next event of a generation. Whether it has ended.
    fn token(&mut self, at: usize) -> bool {
        let running = &mut self.generations[at];
        let event = match Pin::new(&mut running.generation).poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(event) => event.unwrap(),
            Poll::Pending => panic!("a generation of `{}` waits", running.model),
        };
        let is_leased = self
            .reference
            .tenants
            .get(running.model)
            .is_some_and(|tenant| tenant.phase == Phase::Ready && tenant.generations.contains(&running.number));
        match event {
            Ok(GenerationEvent::Token { .. }) => {
                running.tokens += 1;
                assert!(is_leased, "`{}` answers, and is not there", running.model);
                return false;
            }
            Ok(GenerationEvent::Finished { reason, .. }) => {
                assert_eq!((reason, running.tokens), (FinishReason::Eos, PROMPT.len()), "{}", running.model);
            }
            Err(Error::ModelNotLoaded { .. }) => {
                assert!(!is_leased, "`{}` was unloaded under a generation", running.model);
            }
            other => panic!("{other:?}"),
        }
        let Running { number, model, .. } = self.generations.swap_remove(at);
        self.ended(model, number);
        true
    }

    fn ended(&mut self, model: &str, number: usize) {
        let Some(tenant) = self.reference.tenants.get_mut(model) else { return };
        let before = tenant.generations.len();
        tenant.generations.retain(|running| *running != number);
        if tenant.generations.len() < before {
            self.reference.used(model, self.world.now());
        }
    }

    fn unpin(&mut self, at: usize) {
        let (model, since, pinned) = self.pins.swap_remove(at);
        drop(pinned);
        if let Some(tenant) = self.reference.tenants.get_mut(model).filter(|tenant| tenant.since == since) {
            tenant.pins -= 1;
        }
    }

    fn set_others(&mut self, bytes: u64) {
        self.world.set_others(bytes);
        self.reference.others = bytes;
    }

    fn take(&mut self, cause: &Cause) {
        self.reference.contexts.clone_from(&lock(&self.contexts));
        self.reference.takes(&self.world.journal.take(), cause, self.world.now());
    }

    /// Compares what the engine says with the reference.
    fn compare(&mut self, cause: &Cause) {
        self.take(cause);
        let status = self.world.status();
        let device = &status.devices[0];
        let limit = MACHINE.1;
        assert!(device.promised <= limit, "{} bytes are promised of {limit}", device.promised);
        assert!(self.rules.max_models.is_none_or(|most| status.models.len() <= most), "{:?}", status.models);
        // One whose memory is back is gone once those have looked who wait for it.
        let are_all_asleep = self.jobs.iter().all(|job| !job.task.is_woken());
        let is_known = |model: &String| self.reference.tenants.contains_key(model);
        let listed = status.models.iter();
        let listed: Vec<_> = listed.filter(|m| are_all_asleep || is_known(&m.model)).collect();
        let names: Vec<_> = listed.iter().map(|resident| &resident.model).collect();
        let expected = &self.reference.tenants;
        assert_eq!(names.len(), expected.len(), "{names:?} and {:?}", expected.keys());
        for resident in listed {
            let tenant = expected.get(&resident.model).unwrap_or_else(|| panic!("{resident:?} is gone"));
            let phase = match tenant.phase {
                Phase::Loading => ResidentPhase::Loading,
                Phase::Fresh | Phase::Ready => ResidentPhase::Ready,
                Phase::Leaving => ResidentPhase::Leaving,
            };
            assert_eq!((resident.phase, resident.promised), (phase, tenant.promised), "{resident:?}, {tenant:?}");
            if phase == ResidentPhase::Ready {
                assert_eq!(resident.in_use, tenant.generations.len(), "{resident:?}, {tenant:?}");
                assert_eq!(resident.pinned, tenant.pins > 0, "{resident:?}, {tenant:?}");
            }
        }
    }

    /// Lets everything come to its end, and looks whether it does.
    fn finish(mut self) {
        lock(&self.failures).clear();
        self.gates.iter().for_each(|gate| gate.open());
        self.compare(&Cause::Nothing);
        while !self.pins.is_empty() {
            self.unpin(0);
        }
        self.set_others(0);
        while !self.generations.is_empty() || (0..self.jobs.len()).any(|at| self.is_due(at)) {
            while !self.generations.is_empty() {
                self.token(0);
            }
            if let Some(at) = (0..self.jobs.len()).find(|at| self.is_due(*at)) {
                self.step(at);
            }
        }
        let waiting: Vec<_> = self.jobs.iter().map(|job| (&job.cause, job.model)).collect();
        assert!(waiting.is_empty(), "nothing runs any more, and these wait: {waiting:?}");
        let calls = self.world.backend.calls();
        assert_eq!(calls.live(), self.reference.tenants.len());
        assert!(self.reference.tenants.values().all(|tenant| tenant.phase == Phase::Ready));
        for model in MODELS {
            self.apply(&Op::Load(MODELS.iter().position(|m| *m == model).unwrap()));
            while !self.step(0) {
                assert!(self.is_due(0), "a load of `{model}` waits, and nothing is in use");
            }
            assert!(self.reference.is_ready(model), "`{model}` cannot be loaded, and nothing is in use");
        }
        let Self { world: World { engine, backend, .. }, handles, jobs, .. } = self;
        drop((engine, handles, jobs));
        assert_eq!((backend.calls().live(), backend.held()), (0, 0));
    }
}

/// How long models stay, but `a`, which stays.
const AUTO: Duration = Duration::from_secs(10);

fn specified(model: &str) -> llm_local::ModelSpec {
    if model == "a" { spec(model).with_keep_alive(KeepAlive::Forever) } else { spec(model) }
}

/// Which of `count` is meant.
fn chosen(at: usize, count: usize) -> Option<usize> {
    (count > 0).then(|| at % count)
}

#[test]
fn no_sequence_exceeds_the_budget_takes_a_model_in_use_or_leaves_anybody_waiting() {
    let config = Config { cases: CASES, failure_persistence: None, max_shrink_iters: 4000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let seen = Mutex::new((0, 0, 0));
    let outcome = runner.run(&(rules(), vec(op(), 10..120)), |(rules, ops)| {
        let mut run = Run::new(rules);
        for op in &ops {
            run.apply(op);
        }
        let mut seen = lock(&seen);
        let calls = run.world.backend.calls();
        *seen = (seen.0 + calls.loaded, seen.1 + run.reference.evictions, seen.2 + run.reference.refused);
        drop(seen);
        run.finish();
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    let (loaded, evictions, refused) = *lock(&seen);
    // Sequences in which nothing happens would prove nothing.
    assert!(
        loaded > 500 && evictions > 100 && refused > 20,
        "{loaded} loads, {evictions} evictions, {refused} refused"
    );
}
