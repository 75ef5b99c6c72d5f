//! Chats: messages, and the KV cache that a backend keeps for them.
//!
//! | item | what it is |
//! |---|---|
//! | [`Session`] | a chat with one model; made by [`Engine::session`] |
//! | [`Turn`] | a running answer; made by [`Session::send`] |
//! | [`TurnOptions`] | how an answer is generated |
//! | [`SavedCache`] | what a saved chat's file has of the KV cache |
//!
//! Each turn gives the backend the whole chat, put into text by the model's chat template, and the name of the session.
//! The backend computes what follows the longest prefix of tokens that the session has computed before. So nothing has
//! to be told when messages change, a cache that was freed meanwhile is computed anew, and what a turn costs is seen in
//! its [`llm_local_core::Usage`]: `prompt_tokens`, of which `cached_tokens` cost nothing.

mod file;
mod save;
#[cfg(test)]
mod tests;
mod turn;

pub use save::SavedCache;
pub use turn::{Turn, TurnOptions};

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::FutureExt;
use llm_local_core::{Completion, Error, LoadedInfo, Message, ModelSpec, Result, Role, SessionId};

use crate::engine::{Engine, Identity, Model, OwnSet, Ready, WeakModel};

/// A chat with the model of a spec. It keeps the messages; the backend keeps the KV cache.
///
/// It does not keep the model in memory: a turn after an unload loads the model again and computes the chat anew. With
/// a backend that keeps no KV caches ([`Model::keeps_sessions`]) it works too, and each turn computes the whole chat.
///
/// A turn of a chat that has outgrown the context fails with [`Error::ContextLengthExceeded`], and one that leaves no
/// room for a token ends with [`FinishReason::Length`](llm_local_core::FinishReason::Length) and none; both leave the
/// chat as it was. Which messages to give up ([`Session::undo`], [`Session::truncate`], [`Session::reset`]) is the
/// application's choice.
///
/// # Memory
///
/// From its first turn on it holds a KV cache, which grows with the chat, until it is dropped or
/// [reset](Session::reset) or the model is unloaded. A memory plan counts the cache of one full context: how many
/// sessions there are is for the application to bound. [`Model::trim`] with [`TrimLevel::Sessions`](llm_local_core::TrimLevel::Sessions) frees the
/// caches of all sessions of a model without a running turn; the chats stay, and the next turn of each computes its
/// chat anew. [`Model::memory`] tells how much they take.
///
/// ```no_run
/// use llm_local::{Engine, ModelSpec, TurnOptions};
/// # pollster::block_on(async {
/// let engine = Engine::new()?;
/// let mut session = engine.session(&ModelSpec::new("/models/SmolLM2-135M-Instruct".parse()?));
/// session.set_system_prompt("You answer in one sentence.");
/// let mut turn = session.send("Who are you?", TurnOptions::new().with_max_tokens(40)).await?;
/// while let Some(event) = turn.next().await {
///     print!("{}", event?.text());
/// }
/// drop(turn);
/// let answer = session.complete("And who am I?", TurnOptions::new()).await?;
/// println!("{} of {} prompt tokens cost nothing", answer.usage.cached_tokens, answer.usage.prompt_tokens);
/// session.save("chat.safetensors").await?;
/// # Ok::<(), llm_local::Error>(()) }).unwrap();
/// ```
pub struct Session {
    engine: Engine,
    spec: ModelSpec,
    id: SessionId,
    system_prompt: Option<String>,
    messages: Vec<Message>,
    /// Where it ran last.
    used: Option<Used>,
}

/// The model that a session ran on.
#[derive(Clone)]
struct Used {
    model: WeakModel,
    /// Known also when the model is gone.
    identity: Arc<Identity>,
    info: LoadedInfo,
    /// The adapters that it had.
    set: Arc<OwnSet>,
}

impl Used {
    fn new(model: &Model, set: Arc<OwnSet>) -> Self {
        Self { model: model.downgrade(), identity: model.identity().clone(), info: model.info(), set }
    }
}

impl Engine {
    /// A new chat with the model of `spec`, which is loaded by the first turn.
    pub fn session(&self, spec: &ModelSpec) -> Session {
        Session::new(self.clone(), spec.clone())
    }
}

impl Session {
    fn new(engine: Engine, spec: ModelSpec) -> Self {
        Self { engine, spec, id: new_id(), system_prompt: None, messages: Vec::new(), used: None }
    }

    /// The spec of its model.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The name by which the backend knows it.
    pub fn id(&self) -> &SessionId {
        &self.id
    }

    /// What the model is told before the chat.
    pub fn system_prompt(&self) -> Option<&str> {
        self.system_prompt.as_deref()
    }

    /// The chat so far, without the system prompt.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Sets what the model is told before the chat. The next turn computes the chat anew, from where it differs.
    pub fn set_system_prompt(&mut self, text: impl Into<String>) {
        self.system_prompt = Some(text.into());
    }

    /// Tells the model nothing before the chat; some chat templates then put a prompt of their own.
    pub fn remove_system_prompt(&mut self) {
        self.system_prompt = None;
    }

    /// Adds a message without asking for an answer: an example, or the result of a tool call.
    pub fn push(&mut self, message: Message) {
        self.messages.push(message);
    }

    /// Says `text` as the user, and starts the answer. The model is loaded first if it is not.
    ///
    /// # Errors
    /// As [`Engine::load`]. What is wrong with the request is the turn's first item: a model without a chat template,
    /// a chat longer than the context, options out of range. Whatever fails leaves the chat as it was, and so does what generates nothing, see [`Turn`].
    pub async fn send(&mut self, text: impl Into<String>, options: TurnOptions) -> Result<Turn<'_>> {
        self.send_messages([Message::user(text)], options).await
    }

    /// As [`Session::send`], with any messages: several, those of tools, or none, to have the model go on from
    /// [`Session::messages`].
    ///
    /// # Errors
    /// As [`Session::send`].
    pub async fn send_messages(
        &mut self,
        messages: impl IntoIterator<Item = Message>,
        options: TurnOptions,
    ) -> Result<Turn<'_>> {
        let asked: Vec<_> = messages.into_iter().collect();
        let Ready { model, load, lease: _lease } = self.engine.ready(&self.spec).await?;
        let system = self.system_prompt.as_ref().map(Message::system);
        let chat = system.into_iter().chain(self.messages.iter().cloned()).chain(asked.iter().cloned()).collect();
        let mut request = options.request(chat);
        if model.keeps_sessions() {
            request = request.with_session(self.id.clone());
        }
        let (generation, set) = model.start(request, load);
        // The spec may mean another model by now, while somebody still holds the one before.
        if self.cache().is_some_and(|before| !before.is_same(&model)) {
            self.end();
        }
        self.used = Some(Used::new(&model, set));
        Ok(Turn::new(self, generation, asked))
    }

    /// Says `text` as the user, and gives the whole answer.
    ///
    /// # Errors
    /// As [`Session::send`] and [`Turn::complete`].
    pub async fn complete(&mut self, text: impl Into<String>, options: TurnOptions) -> Result<Completion> {
        self.send(text, options).await?.complete().await
    }

    /// Forgets all but the first `messages` messages.
    pub fn truncate(&mut self, messages: usize) {
        self.messages.truncate(messages);
    }

    /// Takes the last turn back: the last message of the user and what follows it. Without one, nothing.
    pub fn undo(&mut self) -> Vec<Message> {
        let last = self.messages.iter().rposition(|m| m.role == Role::User);
        last.map(|at| self.messages.split_off(at)).unwrap_or_default()
    }

    /// Forgets everything but the system prompt, and frees the KV cache.
    ///
    /// # Errors
    /// As [`llm_local_core::LoadedModel::end_session`]. The messages are forgotten in any case.
    pub async fn reset(&mut self) -> Result<()> {
        self.messages.clear();
        match self.cache() {
            Some(model) => unless_unloaded((), model.end_session(self.id.clone()).await),
            None => Ok(()),
        }
    }

    /// A chat that goes on from here by itself. What this one has computed, the other need not.
    ///
    /// # Errors
    /// As [`llm_local_core::LoadedModel::fork_session`].
    pub async fn fork(&self) -> Result<Self> {
        let fork = Self {
            engine: self.engine.clone(),
            spec: self.spec.clone(),
            id: new_id(),
            system_prompt: self.system_prompt.clone(),
            messages: self.messages.clone(),
            used: self.used.clone(),
        };
        if let Some(model) = self.cache() {
            unless_unloaded((), model.fork_session(&self.id, fork.id.clone()).await)?;
        }
        Ok(fork)
    }

    /// The model that may hold its KV cache: the one it ran on, if that is still loaded.
    fn cache(&self) -> Option<Model> {
        self.used.as_ref()?.model.upgrade().filter(Model::keeps_sessions)
    }

    /// Frees its KV cache, without waiting.
    fn end(&self) {
        if let Some(model) = self.cache() {
            // The first poll sends the request; nobody waits for the answer. A model that is gone has no cache either.
            let _ = model.end_session(self.id.clone()).now_or_never();
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.id.as_str())
            .field("base", &self.spec.base)
            .field("messages", &self.messages.len())
            .finish_non_exhaustive()
    }
}

const _: fn() = || {
    fn send_and_sync<T: Send + Sync + 'static>() {}
    send_and_sync::<Session>();
};

/// A model that was unloaded meanwhile has no KV cache, which is then `nothing`.
fn unless_unloaded<T>(nothing: T, result: Result<T>) -> Result<T> {
    match result {
        Err(Error::ModelNotLoaded { .. }) => Ok(nothing),
        other => other,
    }
}

/// A name that no other session of this process has, and none that an application would choose.
fn new_id() -> SessionId {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    SessionId::new(format!("llm-local-{count}-{:016x}", RandomState::new().hash_one(count)))
}
