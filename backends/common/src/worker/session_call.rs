//! What is asked of a session outside a generation, and what that does in its turn.

use std::pin::Pin;

use llm_local_core::{Error, Result, SessionId, SessionState};

use super::{
    StepModel,
    claims::{Claim, Claims},
    command::Reply,
    sessions::{Key, Sessions},
    task::{Next, Turn},
};

/// What is asked, with who waits for the answer.
#[derive(Debug)]
pub(super) enum Asked {
    End(Reply<()>),
    Fork(SessionId, Reply<()>),
    Export(Reply<SessionState>),
    Import(SessionState, Reply<()>),
}

impl Asked {
    /// Never that a session ends: whoever drops one asks for it and waits for no answer.
    fn is_abandoned(&self) -> bool {
        match self {
            Self::End(_) => false,
            Self::Fork(_, reply) | Self::Import(_, reply) => reply.is_abandoned(),
            Self::Export(reply) => reply.is_abandoned(),
        }
    }

    fn abandoned(&mut self) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        match self {
            Self::End(_) => Box::pin(std::future::pending()),
            Self::Fork(_, reply) | Self::Import(_, reply) => Box::pin(reply.abandoned()),
            Self::Export(reply) => Box::pin(reply.abandoned()),
        }
    }

    fn fail(&mut self, error: Error) {
        match self {
            Self::End(reply) | Self::Fork(_, reply) | Self::Import(_, reply) => reply.answer(Err(error)),
            Self::Export(reply) => reply.answer(Err(error)),
        }
    }
}

/// A call that waits for its sessions, and then takes one turn.
pub(super) struct Calling {
    session: SessionId,
    /// With the model's own set of adapters of the moment when it was asked for.
    key: Key,
    asked: Asked,
    claim: Claim,
}

impl Calling {
    pub(super) fn new<C>(session: SessionId, asked: Asked, claims: &Claims, all: &Sessions<C>) -> Self {
        let mut sessions = vec![session.clone()];
        if let Asked::Fork(to, _) = &asked {
            sessions.push(to.clone());
        }
        Self { key: all.key(&session, None), session, asked, claim: claims.claim(sessions) }
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.asked.is_abandoned()
    }

    pub(super) fn is_ready(&self) -> bool {
        self.claim.is_granted()
    }

    /// Ready when it has its sessions, which only this thread can bring about, or when the caller has given up.
    pub(super) async fn woken(&mut self) {
        if !self.is_ready() {
            self.asked.abandoned().await;
        }
    }

    pub(super) fn step<M: StepModel>(&mut self, turn: &mut Turn<'_, M>) -> Result<Next> {
        let session = &self.session;
        match &mut self.asked {
            Asked::End(reply) => {
                turn.sessions.end(session)?;
                reply.answer(Ok(()));
            }
            Asked::Fork(to, reply) => {
                turn.sessions.fork(session, to, turn.model, turn.shared)?;
                reply.answer(Ok(()));
            }
            Asked::Export(reply) => {
                let state = turn.sessions.export(&self.key, turn.model)?;
                reply.answer(Ok(state));
            }
            Asked::Import(state, reply) => {
                let state = std::mem::replace(state, SessionState::new(Vec::new(), Default::default(), Vec::new()));
                turn.sessions.import(self.key.clone(), state, turn.model, turn.info, turn.shared)?;
                reply.answer(Ok(()));
            }
        }
        Ok(Next::Done)
    }

    pub(super) fn fail(&mut self, error: Error) {
        self.asked.fail(error);
    }
}
