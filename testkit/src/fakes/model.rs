//! A loaded model that repeats its prompt.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use llm_local_core::{
    CancellationToken, Counters, Error, GenerateRequest, Generation, LoadedInfo, LoadedModel, LogitsRequest,
    MemoryReport, Result, SessionId, SessionState, TrimLevel, async_trait,
};

use super::{
    echo::{self, VOCAB},
    generation::Echo,
    machine::Tenancy,
    sessions::{self, Held},
};

/// Tokens of a prompt that are "computed" in one forward step.
const PREFILL_CHUNK: usize = 64;

/// A model that answers with its prompt, byte by byte, and then ends. It computes nothing ahead: each event is made
/// when it is asked for, so a generation that nobody polls takes no step. Sampling is checked and has no effect.
///
/// It keeps sessions if its backend says so: the tokens that a session has computed, at 16 bytes of "KV cache" each.
pub struct FakeModel {
    info: LoadedInfo,
    state: Arc<State>,
    keeps_sessions: bool,
}

/// What the generations of a model share with it.
pub(super) struct State {
    pub(super) unloaded: CancellationToken,
    pub(super) tenancy: Arc<Tenancy>,
    steps: AtomicU64,
    tokens: AtomicU64,
}

impl State {
    /// Counts the steps that `tokens` take.
    pub(super) fn compute(&self, tokens: &[u32]) {
        for chunk in tokens.chunks(PREFILL_CHUNK) {
            self.steps.fetch_add(1, Ordering::SeqCst);
            self.tokens.fetch_add(chunk.len() as u64, Ordering::SeqCst);
        }
    }
}

impl FakeModel {
    /// Number of logits: one per byte, and the end of the text.
    pub const VOCAB_SIZE: usize = VOCAB;

    pub(super) fn new(info: LoadedInfo, keeps_sessions: bool, tenancy: Arc<Tenancy>) -> Self {
        let (steps, tokens) = (AtomicU64::new(0), AtomicU64::new(0));
        let state = State { unloaded: CancellationToken::new(), tenancy, steps, tokens };
        Self { info, state: Arc::new(state), keeps_sessions }
    }

    fn check(&self) -> Result<()> {
        if self.state.unloaded.is_cancelled() {
            return Err(Error::ModelNotLoaded { model: self.info.model.clone() });
        }
        Ok(())
    }

    fn check_session(&self, s: &SessionId) -> Result<()> {
        self.check()?;
        if self.keeps_sessions {
            return Ok(());
        }
        Err(Error::unsupported(
            format!("session `{}`", s.as_str()),
            format!("the fake backend `{}` does not say that it keeps sessions", self.info.backend),
        ))
    }

    fn start(&self, request: GenerateRequest) -> Result<Echo> {
        self.check()?;
        request.validate()?;
        if let Some(s) = &request.session {
            self.check_session(s)?;
        }
        if request.adapters.is_some() {
            return Err(Error::unsupported("adapters of a request", "a fake model has none"));
        }
        Echo::new(request, &self.info, self.state.clone())
    }

    /// Waits for a session.
    async fn hold(&self, s: &SessionId) -> Result<Held> {
        self.check()?;
        let State { tenancy, unloaded, .. } = &*self.state;
        let held = tenancy.sessions.wait_for(s, &self.info.model, unloaded, &CancellationToken::new()).await?;
        held.ok_or(Error::Cancelled)
    }

    fn end(&self) {
        self.state.unloaded.cancel();
        self.state.tenancy.leave();
    }
}

#[async_trait]
impl LoadedModel for FakeModel {
    fn info(&self) -> LoadedInfo {
        self.info.clone()
    }

    fn generate(&self, r: GenerateRequest) -> Generation {
        self.state.tenancy.machine.calls.send_modify(|c| c.generations += 1);
        match self.start(r) {
            Ok(echo) => Generation::new(echo),
            Err(error) => Generation::failed(error),
        }
    }

    /// 1 for the token that comes next, 0 for the others.
    async fn logits(&self, r: LogitsRequest) -> Result<Vec<f32>> {
        self.check()?;
        if r.adapters.is_some() {
            return Err(Error::unsupported("adapters of a request", "a fake model has none"));
        }
        let prompt = echo::tokenize(&r.input, self.info.context_length)?;
        self.state.compute(&prompt);
        let mut logits = vec![0.0; VOCAB];
        logits[echo::answer(&prompt, 0) as usize] = 1.0;
        Ok(logits)
    }

    async fn end_session(&self, s: SessionId) -> Result<()> {
        self.hold(&s).await?.set(&[]);
        Ok(())
    }

    async fn fork_session(&self, from: &SessionId, to: SessionId) -> Result<()> {
        self.check_session(from)?;
        if *from == to {
            return Ok(());
        }
        // In one order whoever forks what, so that no two wait for each other.
        let (source, mut copy) = if *from < to {
            let source = self.hold(from).await?;
            (source, self.hold(&to).await?)
        } else {
            let copy = self.hold(&to).await?;
            (self.hold(from).await?, copy)
        };
        copy.set(source.tokens());
        Ok(())
    }

    async fn export_session(&self, s: &SessionId) -> Result<SessionState> {
        self.check_session(s)?;
        Ok(sessions::export(&*self.hold(s).await?))
    }

    async fn import_session(&self, s: &SessionId, state: SessionState) -> Result<()> {
        self.check_session(s)?;
        let tokens = sessions::import(s, state, &self.info)?;
        self.hold(s).await?.set(&tokens);
        Ok(())
    }

    fn memory(&self) -> MemoryReport {
        if self.check().is_err() {
            return MemoryReport::default();
        }
        MemoryReport::new(self.state.tenancy.weights, self.state.tenancy.kv_bytes())
    }

    fn counters(&self) -> Counters {
        Counters::new(self.state.steps.load(Ordering::SeqCst), self.state.tokens.load(Ordering::SeqCst))
    }

    async fn trim(&self, level: TrimLevel) -> Result<u64> {
        self.check()?;
        Ok(if level == TrimLevel::Sessions { self.state.tenancy.sessions.forget_idle() } else { 0 })
    }

    async fn unload(&self) -> Result<()> {
        self.end();
        self.state.tenancy.gone().await;
        Ok(())
    }
}

impl Drop for FakeModel {
    fn drop(&mut self) {
        self.end();
    }
}
