//! The `LoadedModel` that callers hold.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
};

use llm_local_core::{
    AdapterSet, Counters, Error, GenerateRequest, Generation, LoadedInfo, LoadedModel, LogitsRequest, MemoryReport,
    ModelInfo, Result, SessionId, SessionState, TensorSource, TrimLevel, async_trait,
};
use tokio::sync::{mpsc, oneshot};

use super::{
    NewTensors,
    clock::Clock,
    command::{Command, Reply},
    events,
    generation::Requested,
    session_call::Asked,
    shared::Shared,
};

/// Talks to a worker. Dropping it closes the commands, and with that ends the worker.
pub(super) struct Handle {
    pub(super) info: LoadedInfo,
    /// [`StepModel::keeps_sessions`](super::StepModel::keeps_sessions).
    pub(super) keeps_sessions: bool,
    /// [`StepModel::runs_adapters`](super::StepModel::runs_adapters).
    pub(super) runs_adapters: bool,
    /// [`StepModel::replaces_tensors`](super::StepModel::replaces_tensors).
    pub(super) replaces_tensors: bool,
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) shared: Arc<Shared>,
    pub(super) clock: Clock,
    /// Of the worker's own, until it is joined.
    pub(super) thread: Mutex<Option<JoinHandle<()>>>,
}

impl Handle {
    fn not_loaded(&self) -> Error {
        Error::ModelNotLoaded { model: self.info.model.clone() }
    }

    fn send(&self, command: Command) -> Result<()> {
        self.commands.send(command).map_err(|_| self.not_loaded())
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.send(command(Reply::new(reply)))?;
        answer.await.unwrap_or_else(|_| Err(self.not_loaded()))
    }

    fn start(&self, request: GenerateRequest) -> Result<Generation> {
        let at = (self.clock)();
        request.validate()?;
        if let Some(session) = &request.session {
            self.check_sessions(session)?;
        }
        if request.adapters.is_some() {
            self.check_adapters("`adapters` of a request")?;
        }
        let (outlet, events) = events::channel(self.info.model.clone());
        self.send(Command::Generate(Box::new(Requested { request, outlet, at })))?;
        Ok(Generation::new(events))
    }

    async fn ask_session<T>(&self, s: SessionId, asked: impl FnOnce(Reply<T>) -> Asked) -> Result<T> {
        self.check_sessions(&s)?;
        self.ask(|reply| Command::Session(s, asked(reply))).await
    }

    fn check_sessions(&self, s: &SessionId) -> Result<()> {
        if self.keeps_sessions {
            return Ok(());
        }
        Err(Error::unsupported(
            format!("session `{}`", s.as_str()),
            format!(
                "backend `{}` keeps no KV cache of `{}` between requests; send the whole chat",
                self.info.backend, self.info.model
            ),
        ))
    }

    fn check_adapters(&self, what: &str) -> Result<()> {
        if self.runs_adapters {
            return Ok(());
        }
        Err(Error::unsupported(
            what,
            format!(
                "backend `{}` has the adapters of `{}` merged into its weights; name others in a spec and load that",
                self.info.backend, self.info.model
            ),
        ))
    }
}

impl Drop for Handle {
    /// New tensors that are being read are for nobody.
    fn drop(&mut self) {
        self.shared.unloading.cancel();
    }
}

#[async_trait]
impl LoadedModel for Handle {
    fn info(&self) -> LoadedInfo {
        self.info.clone()
    }

    fn generate(&self, r: GenerateRequest) -> Generation {
        self.start(r).unwrap_or_else(Generation::failed)
    }

    async fn logits(&self, r: LogitsRequest) -> Result<Vec<f32>> {
        if r.adapters.is_some() {
            self.check_adapters("`adapters` of a request")?;
        }
        self.ask(|reply| Command::Logits(r, reply)).await
    }

    async fn set_adapters(&self, a: AdapterSet) -> Result<()> {
        self.check_adapters("set_adapters")?;
        self.ask(|reply| Command::SetAdapters(a, reply)).await
    }

    async fn replace_tensors(
        &self,
        tensors: Arc<dyn TensorSource>,
        info: Arc<ModelInfo>,
        names: Vec<String>,
    ) -> Result<()> {
        if !self.replaces_tensors {
            return Err(Error::unsupported(
                "replace_tensors",
                format!(
                    "backend `{}` keeps the weights of `{}` as they were loaded; load another spec",
                    self.info.backend, self.info.model
                ),
            ));
        }
        let cancel = self.shared.unloading.clone();
        match self.ask(|reply| Command::ReplaceTensors(NewTensors { tensors, info, names, cancel }, reply)).await {
            Err(Error::Cancelled) if self.shared.unloading.is_cancelled() => Err(self.not_loaded()),
            outcome => outcome,
        }
    }

    async fn end_session(&self, s: SessionId) -> Result<()> {
        // Where none is kept, there is none to forget, and no error.
        self.ask(|reply| Command::Session(s, Asked::End(reply))).await
    }

    async fn fork_session(&self, from: &SessionId, to: SessionId) -> Result<()> {
        self.ask_session(from.clone(), |reply| Asked::Fork(to, reply)).await
    }

    async fn export_session(&self, s: &SessionId) -> Result<SessionState> {
        self.ask_session(s.clone(), Asked::Export).await
    }

    async fn import_session(&self, s: &SessionId, state: SessionState) -> Result<()> {
        self.ask_session(s.clone(), |reply| Asked::Import(state, reply)).await
    }

    fn memory(&self) -> MemoryReport {
        self.shared.memory()
    }

    fn counters(&self) -> Counters {
        self.shared.counters()
    }

    async fn trim(&self, level: TrimLevel) -> Result<u64> {
        self.ask(|reply| Command::Trim(level, reply)).await
    }

    async fn unload(&self) -> Result<()> {
        self.shared.unloading.cancel();
        // Where nobody receives it, the worker has ended or is about to.
        let _ = self.commands.send(Command::Unload);
        self.shared.ended.cancelled().await;
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // All that the thread has left to do is to return, so this does not block.
        if let Some(Err(_)) = thread.map(JoinHandle::join) {
            tracing::error!(model = self.info.model, "the worker thread panicked");
        }
        Ok(())
    }
}
