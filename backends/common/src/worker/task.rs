//! One participant: a generation, a request for logits, or a call about a session.

use std::{pin::Pin, sync::Arc};

use llm_local_core::{Error, LoadedInfo, Result};

use super::{
    StepModel,
    adapters::Sets,
    caught::{caught, discard},
    clock::Clock,
    generation::Generating,
    logits::Computing,
    session_call::Calling,
    sessions::Sessions,
    shared::Shared,
};
use crate::text::TextPipeline;

/// Whoever takes turns.
pub(super) enum Task<M: StepModel> {
    Generate(Box<Generating<M>>),
    Logits(Box<Computing<M>>),
    Session(Box<Calling>),
}

/// What a task may use in its turn.
pub(super) struct Turn<'a, M: StepModel> {
    pub(super) model: &'a mut M,
    pub(super) sessions: &'a mut Sessions<M::Cache>,
    pub(super) sets: &'a mut Sets<M::Adapters>,
    pub(super) text: &'a TextPipeline,
    pub(super) info: &'a LoadedInfo,
    pub(super) prefill_chunk: usize,
    pub(super) shared: &'a Arc<Shared>,
    pub(super) clock: &'a Clock,
}

/// What follows a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Another turn.
    Again,
    /// The task has told its consumer how it ended.
    Done,
}

impl<M: StepModel> Task<M> {
    /// Whether nobody waits for the outcome.
    pub(super) fn is_abandoned(&self) -> bool {
        match self {
            Self::Generate(task) => task.is_abandoned(),
            Self::Logits(task) => task.is_abandoned(),
            Self::Session(task) => task.is_abandoned(),
        }
    }

    /// Whether it can take a turn now. One that cannot is waiting for [`Task::woken`].
    pub(super) fn is_ready(&self) -> bool {
        match self {
            Self::Generate(task) => task.is_ready(),
            Self::Logits(_) => true,
            Self::Session(task) => task.is_ready(),
        }
    }

    /// Ready when it may be able to take a turn, or is abandoned.
    pub(super) fn woken(&mut self) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        match self {
            Self::Generate(task) => Box::pin(task.woken()),
            Self::Logits(_) => Box::pin(std::future::ready(())),
            Self::Session(task) => Box::pin(task.woken()),
        }
    }

    /// Ends without an outcome, because nobody waits for it. What is computed stays with its session.
    pub(super) fn abandon(self, sessions: &mut Sessions<M::Cache>) {
        let mut task = self;
        if let Self::Generate(task) = &mut task
            && let Err(error) = task.keep(sessions)
        {
            tracing::error!(%error, "an abandoned generation");
        }
        discard("an abandoned request", task);
    }

    /// Takes one turn. An error or panic in it ends this task alone.
    pub(super) fn take_turn(&mut self, turn: &mut Turn<'_, M>) -> Next {
        let outcome = caught(|| self.step(turn));
        let outcome = outcome.unwrap_or_else(|panic| Err(Error::generation(format!("the backend panicked: {panic}"))));
        outcome.unwrap_or_else(|error| {
            tracing::debug!(model = turn.info.model, %error, "request failed");
            match self {
                Self::Generate(task) => task.fail(error),
                Self::Logits(task) => task.fail(error),
                Self::Session(task) => task.fail(error),
            }
            Next::Done
        })
    }

    fn step(&mut self, turn: &mut Turn<'_, M>) -> Result<Next> {
        match self {
            Self::Generate(task) => task.step(turn),
            Self::Logits(task) => task.step(turn),
            Self::Session(task) => task.step(turn),
        }
    }
}
