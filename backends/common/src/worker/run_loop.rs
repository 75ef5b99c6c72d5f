//! Whose turn it is.

use std::{collections::VecDeque, future::poll_fn, sync::Arc, task::Poll};

use llm_local_core::{AdapterSet, Error, LoadedInfo, Result, TrimLevel};

use super::{
    NewTensors, StepModel,
    adapters::Sets,
    caught::{caught, discard},
    claims::Claims,
    clock::Clock,
    command::{Command, Inbox},
    generation::Generating,
    logits::Computing,
    session_call::Calling,
    sessions::Sessions,
    shared::Shared,
    shared_thread::yield_now,
    task::{Next, Task, Turn},
};
use crate::text::TextPipeline;

/// The loop of a worker, and all it works on.
pub(super) struct RunLoop<M: StepModel> {
    /// First, so that no command waits for an answer while the rest is dropped.
    inbox: Inbox,
    /// In the order of their turns.
    tasks: VecDeque<Task<M>>,
    sessions: Sessions<M::Cache>,
    claims: Claims,
    sets: Sets<M::Adapters>,
    model: M,
    text: TextPipeline,
    info: LoadedInfo,
    prefill_chunk: usize,
    shared: Arc<Shared>,
    clock: Clock,
}

/// What a loop serves.
pub(super) struct Served<M: StepModel> {
    pub(super) model: M,
    pub(super) sets: Sets<M::Adapters>,
    pub(super) text: TextPipeline,
    pub(super) info: LoadedInfo,
    pub(super) prefill_chunk: usize,
}

/// Whether the loop goes on.
#[derive(PartialEq, Eq)]
enum Flow {
    Continue,
    /// Behind others on the thread: the model was at work.
    Yield,
    Unload,
}

impl<M: StepModel> RunLoop<M> {
    pub(super) fn new(
        inbox: Inbox,
        Served { model, sets, text, info, prefill_chunk }: Served<M>,
        shared: Arc<Shared>,
        clock: Clock,
    ) -> Self {
        let prefill_chunk = prefill_chunk.max(1);
        Self {
            inbox,
            tasks: VecDeque::new(),
            sessions: Sessions::new(sets.own().digest().to_owned()),
            claims: Claims::default(),
            sets,
            model,
            text,
            info,
            prefill_chunk,
            shared,
            clock,
        }
    }

    /// Serves until it is told to unload, or nobody is left to serve; then drops the tasks, the sessions and the model.
    /// Pending while nobody can take a turn, and between turns, so that others on the thread have theirs.
    pub(super) async fn run(mut self) {
        self.serve().await;
        tracing::debug!(model = self.info.model, tasks = self.tasks.len(), "unloading");
        let Self { inbox, tasks, mut sessions, sets, model, .. } = self;
        drop(inbox);
        for task in tasks {
            discard("an unfinished request", task);
        }
        if let Err(error) = sessions.forget_all() {
            tracing::error!(%error, "the sessions of a model that is unloaded");
        }
        discard("the model's adapters", sets);
        discard("the model", model);
    }

    async fn serve(&mut self) {
        // Tasks at the front of the queue that were not ready when last looked at, one after the other.
        let mut passed_over = 0;
        loop {
            while let Some(command) = self.inbox.take() {
                match self.obey(command) {
                    Flow::Continue => {}
                    Flow::Yield => yield_now().await,
                    Flow::Unload => return,
                }
            }
            if self.tasks.is_empty() && !self.inbox.is_open() {
                return;
            }
            if passed_over >= self.tasks.len() {
                match self.wait().await {
                    Flow::Continue => {}
                    Flow::Yield => yield_now().await,
                    Flow::Unload => return,
                }
                passed_over = 0;
            }
            let Some(mut task) = self.tasks.pop_front() else { continue };
            if task.is_abandoned() {
                task.abandon(&mut self.sessions);
                continue;
            }
            if !task.is_ready() {
                passed_over += 1;
                self.tasks.push_back(task);
                continue;
            }
            passed_over = 0;
            match task.take_turn(&mut self.turn()) {
                Next::Again => self.tasks.push_back(task),
                Next::Done => discard("a finished request", task),
            }
            yield_now().await;
        }
    }

    fn turn(&mut self) -> Turn<'_, M> {
        Turn {
            model: &mut self.model,
            sessions: &mut self.sessions,
            sets: &mut self.sets,
            text: &self.text,
            info: &self.info,
            prefill_chunk: self.prefill_chunk,
            shared: &self.shared,
            clock: &self.clock,
        }
    }

    fn obey(&mut self, command: Command) -> Flow {
        match command {
            Command::Generate(requested) => {
                let task = Generating::new(*requested, &self.claims, self.sets.own(), &self.sessions);
                self.tasks.push_back(Task::Generate(Box::new(task)));
            }
            Command::Logits(request, reply) => {
                self.tasks.push_back(Task::Logits(Box::new(Computing::new(request, reply, self.sets.own()))));
            }
            Command::Session(session, asked) => {
                let call = Calling::new(session, asked, &self.claims, &self.sessions);
                self.tasks.push_back(Task::Session(Box::new(call)));
            }
            // Whoever has given up does not want it any more.
            Command::SetAdapters(_, reply) | Command::ReplaceTensors(_, reply) if reply.is_abandoned() => {}
            Command::SetAdapters(set, mut reply) => {
                reply.answer(self.set_adapters(&set));
                return Flow::Yield;
            }
            Command::ReplaceTensors(new, mut reply) => {
                reply.answer(self.replace_tensors(new));
                return Flow::Yield;
            }
            Command::Trim(level, mut reply) => {
                reply.answer(self.trim(level));
                return Flow::Yield;
            }
            Command::Unload => return Flow::Unload,
        }
        Flow::Continue
    }

    fn set_adapters(&mut self, set: &AdapterSet) -> Result<()> {
        let before = self.sets.replace_own(set, &mut self.model)?;
        let forgotten = self.sessions.set_own(self.sets.own().digest().to_owned());
        tracing::debug!(model = self.info.model, from = before.digest(), to = self.sets.own().digest(), "adapters set");
        discard("adapters that were replaced", before);
        self.log_forgotten(forgotten);
        Ok(())
    }

    fn replace_tensors(&mut self, new: NewTensors) -> Result<()> {
        self.sets.replace_tensors(&new, &mut self.model)?;
        self.shared.set_weights(self.model.weight_bytes());
        tracing::debug!(model = self.info.model, tensors = new.names.len(), "tensors replaced");
        // What the source has mapped or made, before the heap is given back.
        discard("the source of new tensors", new);
        let forgotten = self.sessions.set_weights();
        self.log_forgotten(forgotten);
        if let Err(error) = self.trim(TrimLevel::Caches) {
            tracing::error!(%error, "trimming behind tensors that were replaced");
        }
        Ok(())
    }

    /// The change has taken effect, whatever became of the caches of what was before.
    fn log_forgotten(&self, forgotten: Result<()>) {
        if let Err(error) = forgotten {
            tracing::error!(model = self.info.model, %error, "a KV cache of what was replaced");
        }
    }

    fn trim(&mut self, level: TrimLevel) -> Result<u64> {
        // First, so that the model can give up the memory that they had.
        let of_sessions = if level == TrimLevel::Sessions { self.sessions.forget_all()? } else { 0 };
        let of_model = caught(|| self.model.trim(level))
            .unwrap_or_else(|panic| Err(Error::generation(format!("trimming the model panicked: {panic}"))))?;
        Ok(of_sessions + of_model)
    }

    /// Sleeps until a command comes or a task may be ready.
    async fn wait(&mut self) -> Flow {
        let Self { inbox, tasks, .. } = self;
        let mut woken: Vec<_> = tasks.iter_mut().map(Task::woken).collect();
        let mut by_task = false;
        let command = poll_fn(|cx| {
            if let Poll::Ready(command) = inbox.poll(cx) {
                return Poll::Ready(command);
            }
            if woken.iter_mut().any(|task| task.as_mut().poll(cx).is_ready()) {
                by_task = true;
                return Poll::Ready(None);
            }
            Poll::Pending
        })
        .await;
        drop(woken);
        debug_assert!(
            !by_task || tasks.iter().any(|task| task.is_ready() || task.is_abandoned()),
            "woken by a task that can do nothing: the loop would not sleep but spin"
        );
        command.map_or(Flow::Continue, |command| self.obey(command))
    }
}
