//! What sessions have computed.

use std::{collections::HashMap, sync::Arc};

use llm_local_core::{Error, LoadedInfo, Result, SessionId, SessionState};

use super::{
    StepModel,
    sequence::{Cached, Kept},
    shared::Shared,
};

/// Whose KV cache it is: a session has one for each set of adapters, since the same tokens give another with others.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) session: SessionId,
    /// [`AdapterSet::digest`](llm_local_core::AdapterSet::digest); empty for the base alone.
    pub(super) adapters: String,
}

/// The sessions that no generation is using now.
pub(super) struct Sessions<C> {
    kept: HashMap<Key, Kept<C>>,
    /// The digest of the model's own set of adapters.
    own: String,
}

impl<C> Sessions<C> {
    /// Those of a model whose own set of adapters has the digest `own`.
    pub(super) fn new(own: String) -> Self {
        Self { kept: HashMap::new(), own }
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

    /// The key of the session `s` with the model's own set of adapters.
    fn own_key(&self, s: &SessionId) -> Key {
        Key { session: s.clone(), adapters: self.own.clone() }
    }

    /// Takes out what is computed, for a generation to go on from.
    pub(super) fn take(&mut self, key: &Key) -> Option<Kept<C>> {
        self.kept.remove(key)
    }

    /// Keeps what was computed with a set that the request did not name, unless the model has another by now.
    pub(super) fn keep_own(&mut self, key: Key, kept: Kept<C>) -> Result<()> {
        if key.adapters == self.own { self.keep(key, kept) } else { kept.cached.free() }
    }

    /// Keeps what is computed, in place of what there was.
    pub(super) fn keep(&mut self, key: Key, kept: Kept<C>) -> Result<()> {
        self.kept.insert(key, kept).map_or(Ok(()), |old| old.cached.free())
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
        for (key, Kept { tokens, cached }) in self.kept.iter().filter(|(key, _)| key.session == *from) {
            let cache = model.copy_cache(&cached.cache)?;
            let cached = Cached::new(cache, tokens.len(), model, shared.clone());
            let key = Key { session: to.clone(), adapters: key.adapters.clone() };
            copies.push((key, Kept { tokens: tokens.clone(), cached }));
        }
        self.end(to)?;
        self.kept.extend(copies);
        Ok(())
    }

    /// What `s` has computed with the model's own set of adapters; empty if that is nothing.
    pub(super) fn export<M: StepModel<Cache = C>>(&self, s: &SessionId, model: &mut M) -> Result<SessionState> {
        let Some(Kept { tokens, cached }) = self.kept.get(&self.own_key(s)) else {
            return Ok(SessionState::new(Vec::new(), Default::default(), Vec::new()));
        };
        let (metadata, tensors) = model.export_cache(&cached.cache)?;
        Ok(SessionState::new(tokens.clone(), metadata, tensors))
    }

    /// Gives `s` what was exported, as computed with the model's own set of adapters. If that cannot be taken, `s` is as before.
    pub(super) fn import<M: StepModel<Cache = C>>(
        &mut self,
        s: &SessionId,
        state: SessionState,
        model: &mut M,
        info: &LoadedInfo,
        shared: &Arc<Shared>,
    ) -> Result<()> {
        check(s, &state, info)?;
        if state.tokens.is_empty() {
            return self.end(s);
        }
        let cached = Cached::new(model.import_cache(&state)?, state.tokens.len(), model, shared.clone());
        self.end(s)?;
        self.keep(self.own_key(s), Kept { tokens: state.tokens, cached })
    }

    /// Every cache is dropped, even if dropping one panics; the first panic is the error.
    fn forget(&mut self, which: impl Fn(&Key) -> bool) -> Result<u64> {
        let mut outcome = Ok(0);
        // One at a time: two panics at once would end the process.
        for (_, kept) in self.kept.extract_if(|key, _| which(key)) {
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
