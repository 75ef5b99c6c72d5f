//! What the handle asks of the thread.

use std::task::{Context, Poll};

use llm_local_core::{AdapterSet, LogitsRequest, Result, SessionId, TrimLevel};
use tokio::sync::{
    mpsc::{self, error::TryRecvError},
    oneshot,
};

use super::{NewTensors, generation::Requested, session_call::Asked};

/// A request to the thread. Dropped unanswered, each tells its caller that the model is not loaded.
#[derive(Debug)]
pub(super) enum Command {
    Generate(Box<Requested>),
    Logits(LogitsRequest, Reply<Vec<f32>>),
    Session(SessionId, Asked),
    SetAdapters(AdapterSet, Reply<()>),
    ReplaceTensors(NewTensors, Reply<()>),
    Trim(TrimLevel, Reply<u64>),
    Unload,
}

/// Where the answer to a caller goes. Only the first answer counts.
#[derive(Debug)]
pub(super) struct Reply<T>(Option<oneshot::Sender<Result<T>>>);

impl<T> Reply<T> {
    pub(super) fn new(answer: oneshot::Sender<Result<T>>) -> Self {
        Self(Some(answer))
    }

    /// Whether nobody waits for the answer.
    pub(super) fn is_abandoned(&self) -> bool {
        self.0.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    /// Ready when nobody waits for the answer any more.
    pub(super) async fn abandoned(&mut self) {
        if let Some(answer) = &mut self.0 {
            answer.closed().await;
        }
    }

    pub(super) fn answer(&mut self, outcome: Result<T>) {
        if let Some(answer) = self.0.take() {
            // The caller may have given up; then nobody is left to tell.
            let _ = answer.send(outcome);
        }
    }
}

/// The thread's end of the commands.
#[derive(Debug)]
pub(super) struct Inbox {
    commands: mpsc::UnboundedReceiver<Command>,
    /// Whether a handle is left that could send.
    open: bool,
}

impl Inbox {
    pub(super) fn new(commands: mpsc::UnboundedReceiver<Command>) -> Self {
        Self { commands, open: true }
    }

    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// A command that is there already.
    pub(super) fn take(&mut self) -> Option<Command> {
        match self.commands.try_recv() {
            Ok(command) => Some(command),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => {
                self.open = false;
                None
            }
        }
    }

    /// Ready with a command, or with `None` once when the last handle is gone.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Command>> {
        if !self.open {
            return Poll::Pending;
        }
        self.commands.poll_recv(cx).map(|command| {
            self.open = command.is_some();
            command
        })
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        // A plain drop could miss a command whose sender is between taking its place in the queue and filling it; its
        // caller would then wait for ever. Receiving until the end misses none.
        self.commands.close();
        pollster::block_on(async { while self.commands.recv().await.is_some() {} });
    }
}
