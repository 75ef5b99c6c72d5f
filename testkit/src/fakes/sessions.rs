//! The sessions of a fake model: the tokens that each has "computed", counted as bytes of a KV cache.

use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Waker},
};

use llm_local_core::{CancellationToken, Error, FloatType, LoadedInfo, Result, SessionId, SessionState, SessionTensor};
use tokio::sync::{Mutex as Turns, OwnedMutexGuard};

use super::echo::VOCAB;

/// Bytes that a token takes in a KV cache.
pub(super) const BYTES_PER_TOKEN: u64 = 16;
/// The metadata of an exported session.
const FORMAT: (&str, &str) = ("format", "fake-1");

/// What a session has computed.
pub(super) struct Kept {
    tokens: Vec<u32>,
    /// Bytes of all sessions.
    total: Arc<AtomicU64>,
}

impl Kept {
    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub(super) fn set(&mut self, tokens: &[u32]) {
        self.total.fetch_add(tokens.len() as u64 * BYTES_PER_TOKEN, SeqCst);
        self.total.fetch_sub(self.tokens.len() as u64 * BYTES_PER_TOKEN, SeqCst);
        self.tokens = tokens.to_vec();
    }
}

/// A session that belongs to whoever has this.
pub(super) type Held = OwnedMutexGuard<Kept>;

/// A place in the line for a session. Gives `None` if `cancel` is cancelled first.
pub(super) type Waiting = Pin<Box<dyn Future<Output = Result<Option<Held>>> + Send>>;

/// All sessions of a model.
#[derive(Default)]
pub(super) struct Sessions {
    slots: Mutex<HashMap<SessionId, Arc<Turns<Kept>>>>,
    total: Arc<AtomicU64>,
}

impl Sessions {
    /// Bytes that their KV caches take.
    pub(super) fn bytes(&self) -> u64 {
        self.total.load(SeqCst)
    }

    /// Gets in line for a session, now. Once `unloaded` is cancelled, there is none.
    pub(super) fn wait_for(
        &self,
        s: &SessionId,
        model: &str,
        unloaded: &CancellationToken,
        cancel: &CancellationToken,
    ) -> Waiting {
        let (slot, model) = (self.slot(s), model.to_owned());
        let (unloaded, cancel) = (unloaded.clone(), cancel.clone());
        let mut waiting: Waiting = Box::pin(async move {
            let held = unloaded.run_until_cancelled(cancel.run_until_cancelled(slot.lock_owned())).await;
            held.ok_or(Error::ModelNotLoaded { model })
        });
        // The first poll takes the place in the line, so that the order is that of the calls.
        match waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            std::task::Poll::Ready(held) => Box::pin(std::future::ready(held)),
            std::task::Poll::Pending => waiting,
        }
    }

    /// Forgets all sessions that nobody has. Returns the bytes freed.
    pub(super) fn forget_idle(&self) -> u64 {
        let before = self.bytes();
        for slot in self.slots.lock().unwrap_or_else(PoisonError::into_inner).values() {
            if let Ok(mut kept) = slot.try_lock() {
                kept.set(&[]);
            }
        }
        before.saturating_sub(self.bytes())
    }

    fn slot(&self, s: &SessionId) -> Arc<Turns<Kept>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let empty = || Arc::new(Turns::new(Kept { tokens: Vec::new(), total: self.total.clone() }));
        slots.entry(s.clone()).or_insert_with(empty).clone()
    }
}

/// What [`import`] takes back.
pub(super) fn export(kept: &Kept) -> SessionState {
    if kept.tokens.is_empty() {
        return SessionState::new(Vec::new(), BTreeMap::new(), Vec::new());
    }
    let metadata = BTreeMap::from([(FORMAT.0.to_owned(), FORMAT.1.to_owned())]);
    SessionState::new(kept.tokens.clone(), metadata, vec![cache(&kept.tokens)])
}

/// The tokens of `state`, which is checked.
pub(super) fn import(s: &SessionId, state: SessionState, info: &LoadedInfo) -> Result<Vec<u32>> {
    let wrong = |reason: String| Err(Error::invalid_spec(format!("state of session `{}`", s.as_str()), reason));
    let SessionState { tokens, metadata, tensors, .. } = state;
    if let Some(id) = tokens.iter().find(|id| **id as usize >= VOCAB) {
        return wrong(format!("token id {id} is not below the vocabulary's size {VOCAB}"));
    }
    if tokens.len() > info.context_length {
        return wrong(format!("it has {} tokens, more than the context of {}", tokens.len(), info.context_length));
    }
    if tokens.is_empty() && tensors.is_empty() {
        return Ok(tokens);
    }
    match metadata.get(FORMAT.0) {
        Some(format) if format == FORMAT.1 => {}
        format => return wrong(format!("its format is {format:?}, expected `{}`", FORMAT.1)),
    }
    if tensors != [cache(&tokens)] {
        return wrong(format!("its tensors {tensors:?} are not those of its {} tokens", tokens.len()));
    }
    Ok(tokens)
}

/// The KV cache of a fake: its tokens as floats.
fn cache(tokens: &[u32]) -> SessionTensor {
    let data = tokens.iter().flat_map(|&id| (id as f32).to_le_bytes()).collect();
    SessionTensor::new("tokens", FloatType::F32, vec![tokens.len()], data)
}
