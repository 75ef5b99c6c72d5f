//! Chats to files and back.

use std::path::Path;

use llm_local_core::{Error, ModelSpec, Result, SessionState};

use super::{
    Session, Used,
    file::{self, Cache, MadeBy, Saved},
    unless_unloaded,
};
use crate::{
    blocking::blocking,
    engine::{Engine, Model, ModelDigest},
};

impl Session {
    /// Writes the chat and its KV cache to `path`, a safetensors file, which it replaces as a whole or not at all. The
    /// cache is in it if the model is loaded and the backend keeps KV caches; the chat is always.
    ///
    /// The first save of a loaded model reads the files of its base once, for [`Model::digest`].
    ///
    /// # Errors
    /// [`Error::Io`]; as [`Model::digest`] and [`llm_local_core::LoadedModel::export_session`].
    pub async fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let state = match self.cache() {
            Some(model) => unless_unloaded(None, model.export_session(&self.id).await.map(Some))?,
            None => None,
        };
        let made_by = match &self.used {
            None => None,
            Some(used) => {
                let ModelDigest { base, adapters } = used.identity.digest().await?;
                let (model, backend) = (used.info.model.clone(), used.info.backend.clone());
                let (dtype, context_length) = (used.info.dtype.to_string(), used.info.context_length);
                Some(MadeBy { model, base, adapters, backend, dtype, context_length })
            }
        };
        let (cache, tensors) = match state {
            Some(SessionState { tokens, metadata, tensors, .. }) if !tokens.is_empty() => {
                let names = tensors.iter().map(|t| t.name.clone()).collect();
                (Some(Cache { tokens, metadata, tensors: names }), tensors)
            }
            _ => (None, Vec::new()),
        };
        let saved =
            Saved { system_prompt: self.system_prompt.clone(), messages: self.messages.clone(), made_by, cache };
        let path = path.as_ref().to_owned();
        blocking("save session", move || file::write(&path, &saved, &tensors)).await
    }
}

impl Engine {
    /// The chat that [`Session::save`] wrote to `path`, with its KV cache: the next turn computes only what is new.
    /// Loads the model of `spec`.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] that names both sides if the chat was saved with another base or other adapters (by
    /// content, see [`Model::digest`]) or, where there is a KV cache, with another backend or dtype;
    /// [`Engine::restore_messages`] takes it all the same. [`Error::IntegrityFailed`] for a file that is cut off or was
    /// changed; [`Error::Io`]; as [`Engine::load`], [`Model::digest`] and
    /// [`llm_local_core::LoadedModel::import_session`].
    pub async fn restore_session(&self, spec: &ModelSpec, path: impl AsRef<Path>) -> Result<Session> {
        let path = path.as_ref().to_owned();
        let from = path.clone();
        let (saved, tensors) = blocking("restore session", move || file::read(&from)).await?;
        let mut session = self.with_messages(spec, &saved);
        if let Some(made_by) = &saved.made_by {
            let (model, _) = self.ready(spec).await?;
            let reason = made_by.misfit(&model, model.digest().await?, saved.cache.as_ref());
            if let Some(reason) = reason {
                return Err(Error::invalid_spec(format!("session file {}", path.display()), reason));
            }
            session.used = Some(Used::new(&model));
            if let Some(Cache { tokens, metadata, .. }) = saved.cache {
                model.import_session(&session.id, SessionState::new(tokens, metadata, tensors)).await?;
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
const FIX: &str = "or take its messages alone with `Engine::restore_messages`, and have the chat computed anew";

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
                "it was saved with `{}`, whose {what} {saved}, but `{}` has {found}; give the spec it was saved with, {FIX}",
                self.model, info.model
            ));
        }
        let tokens = cache?.tokens.len();
        if tokens > info.context_length {
            return Some(format!(
                "its KV cache has {tokens} tokens, but the context of `{}` holds {}; load it with a context length of {}, {FIX}",
                info.model, info.context_length, self.context_length
            ));
        }
        (!model.keeps_sessions()).then(|| {
            format!(
                "it has a KV cache, but backend `{}` keeps none for `{}`; use another, {FIX}",
                info.backend, info.model
            )
        })
    }
}
