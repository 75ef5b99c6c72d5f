//! Chats to files and back.

use std::{path::Path, sync::Arc};

use llm_local_core::{Error, ModelSpec, Result, SessionId, SessionState};

use super::{
    Session, Used,
    file::{self, Cache, MadeBy, Saved},
    unless_unloaded,
};
use crate::{
    blocking::{blocking, blocking_while_wanted},
    engine::{Engine, Model, ModelDigest, Ready},
};

/// What a file that [`Session::save`] wrote has of the KV cache. It has the chat in any case.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum SavedCache {
    /// All of it.
    Kept,
    /// Nothing, as there was none: no turn yet, the model was unloaded or trimmed or has other adapters by now, or its
    /// backend keeps none.
    Absent,
    /// Nothing, for this reason. Where the reason is that [`Model::digest`] failed, nothing in the file tells which model
    /// answered, and only [`Engine::restore_messages`] takes it.
    Left(Error),
}

impl Session {
    /// Writes the chat and its KV cache to `path`, a safetensors file, which it replaces as a whole or not at all. The
    /// cache is in it if the model is loaded and the backend keeps KV caches, unless there is a reason against it, which
    /// is returned; the chat is always. Dropping the future leaves the file as it was, if it is not replaced already.
    ///
    /// The first save of a loaded model reads the files of its base once, for [`Model::digest`].
    ///
    /// # Errors
    /// [`Error::Io`] if the file could not be written.
    pub async fn save(&self, path: impl AsRef<Path>) -> Result<SavedCache> {
        let state = match (&self.used, self.cache()) {
            (Some(used), Some(model)) => used.computed(&model, &self.id).await,
            _ => Ok(None),
        };
        let made_by = match &self.used {
            Some(used) => used.made_by().await.map(Some),
            None => Ok(None),
        };
        let unknown = made_by.as_ref().err().map(Error::to_string);
        let (made_by, state, mut left) = match (made_by, state) {
            (Ok(made_by), Ok(state)) => (made_by, state, None),
            (Ok(made_by), Err(reason)) => (made_by, None, Some(reason)),
            (Err(reason), _) => (None, None, Some(reason)),
        };
        let (system_prompt, messages) = (self.system_prompt.clone(), self.messages.clone());
        let mut saved = Saved { system_prompt, messages, made_by, unknown, cache: None };
        let path = path.as_ref().to_owned();
        blocking_while_wanted("save session", move |wanted| {
            let state = state.filter(|state| !state.tokens.is_empty());
            let mut cached = Vec::new();
            if let Some(SessionState { tokens, metadata, tensors, .. }) = state {
                match file::views(&path, &tensors) {
                    Ok(_) => {
                        let names = tensors.iter().map(|t| t.name.clone()).collect();
                        saved.cache = Some(Cache { tokens, metadata, tensors: names });
                        cached = tensors;
                    }
                    Err(reason) => left = Some(reason),
                }
            }
            file::write(&path, &saved, &cached, wanted)?;
            Ok(match left {
                Some(reason) => SavedCache::Left(reason),
                None if saved.cache.is_some() => SavedCache::Kept,
                None => SavedCache::Absent,
            })
        })
        .await
    }
}

impl Used {
    /// What `model`, which is this, has computed of `session`; nothing if it has other adapters by now.
    async fn computed(&self, model: &Model, session: &SessionId) -> Result<Option<SessionState>> {
        let own = model.own_set();
        let state = unless_unloaded(None, model.export_session(session).await.map(Some))?;
        let is_still_own = Arc::ptr_eq(&own, &model.own_set());
        let is_same = own.settled().await.digest() == self.set.settled().await.digest();
        Ok(state.filter(|_| is_still_own && is_same))
    }

    /// What it is, with the adapters that it had.
    async fn digest(&self) -> Result<ModelDigest> {
        let base = self.identity.base().await?;
        Ok(ModelDigest { base, adapters: self.set.settled().await.digest().to_owned() })
    }

    /// It, as a file has it.
    async fn made_by(&self) -> Result<MadeBy> {
        let ModelDigest { base, adapters } = self.digest().await?;
        let (model, backend) = (self.info.model.clone(), self.info.backend.clone());
        let (dtype, context_length) = (self.info.dtype.to_string(), self.info.context_length);
        Ok(MadeBy { model, base, adapters, backend, dtype, context_length })
    }
}

impl Engine {
    /// The chat that [`Session::save`] wrote to `path`, with its KV cache: the next turn computes only what is new.
    /// Loads the model of `spec`.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] that names both sides if the chat was saved with another base or other adapters than the
    /// model has now (by content, see [`Model::digest`]) or, where there is a KV cache, with another backend or dtype, and if the model
    /// that answered could not be told when it was saved; [`Engine::restore_messages`] takes it all the same.
    /// [`Error::IntegrityFailed`] for a file that is cut off or was changed; [`Error::Io`]; as [`Engine::load`],
    /// [`Model::digest`] and [`llm_local_core::LoadedModel::import_session`].
    pub async fn restore_session(&self, spec: &ModelSpec, path: impl AsRef<Path>) -> Result<Session> {
        let path = path.as_ref().to_owned();
        let from = path.clone();
        let (saved, tensors) = blocking("restore session", move || file::read(&from)).await?;
        let refused = |reason: String| Error::invalid_spec(format!("session file {}", path.display()), reason);
        if let Some(reason) = &saved.unknown {
            return Err(refused(format!(
                "nothing in it tells which model answered, because that could not be told when it was saved ({reason}); {FIX}"
            )));
        }
        let mut session = self.with_messages(spec, &saved);
        if let Some(made_by) = &saved.made_by {
            let Ready { model, lease: _lease, .. } = self.ready(spec).await?;
            let used = Used::new(&model, model.own_set());
            let reason = made_by.misfit(&model, used.digest().await?, saved.cache.as_ref());
            if let Some(reason) = reason {
                return Err(refused(reason));
            }
            let set = used.set.clone();
            session.used = Some(used);
            if let Some(Cache { tokens, metadata, .. }) = saved.cache {
                model.import_session(&session.id, SessionState::new(tokens, metadata, tensors)).await?;
                // With others meanwhile, it is to compute the chat anew.
                if !Arc::ptr_eq(&set, &model.own_set()) {
                    model.end_session(session.id.clone()).await?;
                }
            }
        }
        Ok(session)
    }

    /// The chat that [`Session::save`] wrote to `path`, for any model: its messages and system prompt alone. The first
    /// turn loads the model of `spec` and computes the whole chat.
    ///
    /// # Errors
    /// [`Error::IntegrityFailed`] for a file that is cut off or was changed; [`Error::InvalidSpec`] for one that is no
    /// saved chat; [`Error::Io`].
    pub async fn restore_messages(&self, spec: &ModelSpec, path: impl AsRef<Path>) -> Result<Session> {
        let path = path.as_ref().to_owned();
        let (saved, _) = blocking("restore session", move || file::read(&path)).await?;
        Ok(self.with_messages(spec, &saved))
    }

    fn with_messages(&self, spec: &ModelSpec, saved: &Saved) -> Session {
        let mut session = self.session(spec);
        session.system_prompt.clone_from(&saved.system_prompt);
        session.messages.clone_from(&saved.messages);
        session
    }
}

/// What to do about every mismatch.
const FIX: &str = "restore its messages alone, and have the chat computed anew";

impl MadeBy {
    /// Why a chat that this made cannot go on with `model`, whose digest is `found`.
    fn misfit(&self, model: &Model, found: ModelDigest, cache: Option<&Cache>) -> Option<String> {
        let info = model.info();
        let adapters = |digest: &str| if digest.is_empty() { "none".to_owned() } else { digest.to_owned() };
        let mut pairs = vec![
            ("base is", self.base.clone(), found.base),
            ("adapters are", adapters(&self.adapters), adapters(&found.adapters)),
        ];
        if cache.is_some() {
            pairs.push(("backend is", self.backend.clone(), info.backend.clone()));
            pairs.push(("dtype is", self.dtype.clone(), info.dtype.to_string()));
        }
        if let Some((what, saved, found)) = pairs.into_iter().find(|(_, saved, found)| saved != found) {
            return Some(format!(
                "it was saved with `{}`, whose {what} {saved}, but `{}` has {found}; give the spec it was saved with, or {FIX}",
                self.model, info.model
            ));
        }
        let tokens = cache?.tokens.len();
        if tokens > info.context_length {
            return Some(format!(
                "its KV cache has {tokens} tokens, but the context of `{}` holds {}; load it with a context length of {}, or {FIX}",
                info.model, info.context_length, self.context_length
            ));
        }
        (!model.keeps_sessions()).then(|| {
            format!(
                "it has a KV cache, but backend `{}` keeps none for `{}`; use another, or {FIX}",
                info.backend, info.model
            )
        })
    }
}
