//! A worker that the test itself drives, poll by poll, on its own thread: everything happens in an order that the test
//! chooses.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};

use llm_local_core::{Completion, GenerateRequest, Generation, GenerationEvent, LoadedModel, Result};
use tokio::sync::mpsc;

use super::fake::Setup;
use crate::worker::{
    Built, StepModel,
    adapters::Sets,
    clock,
    command::Inbox,
    handle::Handle,
    run_loop::{RunLoop, Served},
    shared::{EndOfWorker, Shared},
};

/// A handle, and the worker behind it.
pub(super) struct Driven {
    pub(super) model: Arc<Handle>,
    worker: Pin<Box<dyn Future<Output = ()>>>,
    wakes: Arc<Wakes>,
}

/// How often the worker was woken.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

impl Driven {
    pub(super) fn new(setup: Setup) -> Self {
        let (keeps_sessions, runs_adapters) = (setup.keeps_sessions, setup.runs_adapters);
        let replaces_tensors = setup.replaces_tensors;
        let Built { mut model, info, text, prefill_chunk, adapters, reservation } = setup.build();
        let (commands, receiver) = mpsc::unbounded_channel();
        let (shared, clock) = (Arc::new(Shared::default()), clock::monotonic());
        shared.set_weights(model.weight_bytes());
        let sets = Sets::new(&adapters, &mut model, &shared).unwrap();
        let served = Served { model, sets, text, info: info.clone(), prefill_chunk };
        let run_loop = RunLoop::new(Inbox::new(receiver), served, shared.clone(), clock.clone());
        let end = EndOfWorker(shared.clone());
        let worker = async move {
            let (_end, _reservation) = (end, reservation);
            run_loop.run().await;
        };
        let thread = Mutex::new(None);
        let handle = Handle { info, keeps_sessions, runs_adapters, replaces_tensors, commands, shared, clock, thread };
        let mut driven = Self { model: Arc::new(handle), worker: Box::pin(worker), wakes: Arc::default() };
        // Now it sleeps, and what is asked of it wakes it.
        driven.drive();
        driven
    }

    /// Lets the worker do all that it can, turn by turn. If it did not sleep then, this would not return.
    pub(super) fn drive(&mut self) {
        let waker = Waker::from(self.wakes.clone());
        loop {
            self.wakes.0.store(0, SeqCst);
            let ended = self.worker.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
            if ended {
                self.worker = Box::pin(std::future::pending());
            }
            if !self.is_woken() {
                return;
            }
        }
    }

    /// Whether something has woken it since it was driven.
    pub(super) fn is_woken(&self) -> bool {
        self.wakes.0.load(SeqCst) > 0
    }

    /// What `future` gives once the worker has done its part, if that is enough.
    pub(super) fn try_ask<T>(&mut self, future: &mut (impl Future<Output = T> + Unpin)) -> Option<T> {
        loop {
            if let Poll::Ready(answer) = Pin::new(&mut *future).poll(&mut Context::from_waker(Waker::noop())) {
                return Some(answer);
            }
            if !self.is_woken() {
                return None;
            }
            self.drive();
        }
    }

    /// What `call` gives. It must need nobody but the worker.
    pub(super) fn ask<T>(
        &mut self,
        call: impl for<'a> FnOnce(&'a Handle) -> Pin<Box<dyn Future<Output = T> + Send + 'a>>,
    ) -> T {
        let model = self.model.clone();
        self.drive();
        self.try_ask(&mut call(&model)).expect("an answer")
    }

    /// The next event of `generation`, if it comes without more being read elsewhere.
    pub(super) fn read(&mut self, generation: &mut Generation) -> Option<Option<Result<GenerationEvent>>> {
        self.drive();
        self.try_ask(&mut Box::pin(generation.next()))
    }

    /// A whole generation. It must need nobody but the worker.
    pub(super) fn complete(&mut self, request: GenerateRequest) -> Result<Completion> {
        let generation = self.model.generate(request);
        self.finish(generation)
    }

    /// The rest of a generation.
    pub(super) fn finish(&mut self, generation: Generation) -> Result<Completion> {
        self.drive();
        self.try_ask(&mut Box::pin(generation.complete())).expect("the end of the generation")
    }
}
