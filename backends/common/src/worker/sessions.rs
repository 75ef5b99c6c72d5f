//! What sessions have computed.

use std::{collections::HashMap, sync::Arc};

use llm_local_core::{Error, LoadedInfo, Result, SessionId, SessionState};

use super::{
    StepModel,
    sequence::{Cached, Kept},
    shared::Shared,
};

/// For how many sets of adapters that requests name a session keeps what it has computed, beside the model's own set: those
/// that it used last. A set more would cost a KV cache more, for as long as the session lasts.
pub const NAMED_SETS: usize = 4;

/// Whose KV cache it is: a session has one for each set of adapters, since the same tokens give another with others.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    session: SessionId,
    /// [`AdapterSet::digest`](llm_local_core::AdapterSet::digest); empty for the base alone.
    adapters: String,
    /// How often tensors of the base had been replaced.
    weights: u64,
}

/// The sessions that no generation is using now.
pub(super) struct Sessions<C> {
    /// Each with when it was kept.
    kept: HashMap<Key, (Kept<C>, u64)>,
    /// The digest of the model's own set of adapters.
    own: String,
    /// How often tensors of the base were replaced.
    weights: u64,
    /// How often something was kept.
    keeps: u64,
}

impl<C> Sessions<C> {
    /// Those of a model whose own set of adapters has the digest `own`.
    pub(super) fn new(own: String) -> Self {
        Self { kept: HashMap::new(), own, weights: 0, keeps: 0 }
    }

    /// Says that the model's own set of adapters has the digest `own` from now on. Caches of the one before are
    /// forgotten: each new weight of an adapter would leave one behind.
    pub(super) fn set_own(&mut self, own: String) -> Result<()> {
        if own == self.own {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.own, own);
        self.forget(|key| key.adapters == before).map(drop)
    }

    /// Says that tensors of the base were replaced: nothing that was computed with it is of use any more.
    pub(super) fn set_weights(&mut self) -> Result<()> {
        self.weights += 1;
        self.forget_all().map(drop)
    }

    /// The key of the session `s` with the set of adapters `named`, or else with the model's own.
    pub(super) fn key(&self, s: &SessionId, named: Option<String>) -> Key {
        let adapters = named.unwrap_or_else(|| self.own.clone());
        Key { session: s.clone(), adapters, weights: self.weights }
    }

    /// Takes out what is computed, for a generation to go on from.
    pub(super) fn take(&mut self, key: &Key) -> Option<Kept<C>> {
        self.kept.remove(key).map(|(kept, _)| kept)
    }

    /// Keeps what was computed with a set that the request did not name, unless the model has another by now.
    pub(super) fn keep_own(&mut self, key: Key, kept: Kept<C>) -> Result<()> {
        if key.adapters == self.own { self.keep(key, kept) } else { kept.cached.free() }
    }

    /// Keeps what is computed, in place of what there was, unless the base has other weights by now. What the session keeps
    /// too much then is forgotten.
    pub(super) fn keep(&mut self, key: Key, kept: Kept<C>) -> Result<()> {
        if key.weights != self.weights {
            return kept.cached.free();
        }
        let session = key.session.clone();
        self.keeps += 1;
        let old = self.kept.insert(key, (kept, self.keeps)).map_or(Ok(()), |(old, _)| old.cached.free());
        let named = |key: &Key| key.session == session && key.adapters != self.own;
        let mut times: Vec<_> = self.kept.iter().filter(|(key, _)| named(key)).map(|(_, (_, at))| *at).collect();
        times.sort_unstable_by_key(|at| std::cmp::Reverse(*at));
        let Some(oldest) = times.get(NAMED_SETS - 1).copied().filter(|_| times.len() > NAMED_SETS) else { return old };
        let own = self.own.clone();
        let too_many = |key: &Key, at: u64| key.session == session && key.adapters != own && at < oldest;
        old.and(self.forget_if(too_many).map(drop))
    }

    /// Forgets a session, whatever its adapters.
    pub(super) fn end(&mut self, s: &SessionId) -> Result<()> {
        self.forget(|key| key.session == *s).map(drop)
    }

    /// Forgets every session. Returns the bytes that their caches took.
    pub(super) fn forget_all(&mut self) -> Result<u64> {
        self.forget(|_| true)
    }

    /// Gives `to` copies of what `from` has. If one cannot be made, `to` is as before.
    pub(super) fn fork<M: StepModel<Cache = C>>(
        &mut self,
        from: &SessionId,
        to: &SessionId,
        model: &mut M,
        shared: &Arc<Shared>,
    ) -> Result<()> {
        if from == to {
            return Ok(());
        }
        let mut copies = Vec::new();
        for (key, (Kept { tokens, cached }, at)) in self.kept.iter().filter(|(key, _)| key.session == *from) {
            let cache = model.copy_cache(&cached.cache)?;
            let cached = Cached::new(cache, tokens.len(), model, shared.clone());
            let key = Key { session: to.clone(), ..key.clone() };
            copies.push((key, (Kept { tokens: tokens.clone(), cached }, *at)));
        }
        self.end(to)?;
        self.kept.extend(copies);
        Ok(())
    }

    /// What is kept at `key`; empty if that is nothing.
    pub(super) fn export<M: StepModel<Cache = C>>(&self, key: &Key, model: &mut M) -> Result<SessionState> {
        let Some((Kept { tokens, cached }, _)) = self.kept.get(key) else {
            return Ok(SessionState::new(Vec::new(), Default::default(), Vec::new()));
        };
        let (metadata, tensors) = model.export_cache(&cached.cache)?;
        Ok(SessionState::new(tokens.clone(), metadata, tensors))
    }

    /// Gives the session of `key`, made when this was asked for, what was exported, as computed with the model's own set of
    /// adapters of then. If the model has another by now, nobody comes back to it, and the session has nothing. If the state
    /// cannot be taken, the session is as before.
    pub(super) fn import<M: StepModel<Cache = C>>(
        &mut self,
        key: Key,
        state: SessionState,
        model: &mut M,
        info: &LoadedInfo,
        shared: &Arc<Shared>,
    ) -> Result<()> {
        check(&key.session, &state, info)?;
        if state.tokens.is_empty() {
            return self.end(&key.session);
        }
        let cached = Cached::new(model.import_cache(&state)?, state.tokens.len(), model, shared.clone());
        self.end(&key.session)?;
        self.keep_own(key, Kept { tokens: state.tokens, cached })
    }

    fn forget(&mut self, which: impl Fn(&Key) -> bool) -> Result<u64> {
        self.forget_if(|key, _| which(key))
    }

    /// Every cache is dropped, even if dropping one panics; the first panic is the error. Asked for each key with when it was
    /// kept.
    fn forget_if(&mut self, which: impl Fn(&Key, u64) -> bool) -> Result<u64> {
        let mut outcome = Ok(0);
        // One at a time: two panics at once would end the process.
        for (_, (kept, _)) in self.kept.extract_if(|key, (_, at)| which(key, *at)) {
            let bytes = kept.cached.bytes.get();
            let freed = kept.cached.free();
            outcome = outcome.and_then(|sum| freed.map(|()| sum + bytes));
        }
        outcome
    }
}

/// Checks what holds for any model.
fn check(s: &SessionId, state: &SessionState, info: &LoadedInfo) -> Result<()> {
    let wrong = |reason: String| Err(Error::invalid_spec(format!("state of session `{}`", s.as_str()), reason));
    let (count, model) = (state.tokens.len(), &info.model);
    if count == 0 && !state.tensors.is_empty() {
        return wrong(format!("it has {} tensors but no tokens; give it as it was exported", state.tensors.len()));
    }
    if count > info.context_length {
        return wrong(format!(
            "it has {count} tokens, but `{model}` was loaded with a context of {}; load it with a longer one, or begin anew",
            info.context_length
        ));
    }
    match state.tokens.iter().enumerate().find(|(_, id)| **id as usize >= info.vocab_size) {
        Some((position, id)) => wrong(format!(
            "token {position} has the id {id}, but the vocabulary of `{model}` has {} ids; it is the state of another model",
            info.vocab_size
        )),
        None => Ok(()),
    }
}
