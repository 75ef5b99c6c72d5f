//! The suite for sessions.

use llm_local_core::{
    CancellationToken, Capabilities, GenerateRequest, GenerationEvent, LoadedModel, LogitsRequest, Result, SessionId,
    SessionState, TrimLevel, generate::Completion,
};

/// Tokens that a turn of the chat generates.
const TOKENS: usize = 8;

/// Share of the logits' whole range by which two tokens may differ that are taken to be equally good. A cache is made
/// of other chunks than a prompt is, and quantized products may round those otherwise: the largest that was met in 360
/// turns on candle with a tiny model in Q4_0 and Q8_0 was 0.014.
const NEARLY: f32 = 0.03;

/// Checks what a loaded model makes of sessions. `capabilities` are those that its backend gave for it; `prompt` must
/// be one that [`loaded_model`](super::loaded_model) takes, and the context must hold 96 tokens. Nothing else may use
/// the model meanwhile. It stays loaded: call this suite first.
///
/// Where sessions are kept:
/// - greedy tokens are the same with a session as without, whether a prompt goes on, begins anew or branches off; up to
///   a place where the two best tokens are nearly equal;
/// - a turn that goes on computes only new tokens, and counts and counters say so;
/// - a cancelled, dropped or refused generation leaves a session that can go on, and one waits for the other;
/// - a fork goes on by itself; what is exported can be imported, and is checked;
/// - `end_session` and `trim` free memory, and the next turn computes anew;
/// - a request without a session uses and keeps nothing.
///
/// Where none are kept, each call that names one is refused by that name, and `end_session` does nothing.
///
/// # Panics
/// With what is wrong.
pub async fn sessions(model: &dyn LoadedModel, capabilities: &Capabilities, prompt: &str) {
    let context = model.info().context_length;
    assert!(context >= 96, "load the model with a context of 96 tokens or more, not of {context}");
    if !capabilities.sessions {
        return refused(model, prompt).await;
    }
    let greedy = GenerateRequest::new(prompt).with_max_tokens(2 * TOKENS).with_ignore_eos(true);
    let greedy = model.generate(greedy).complete().await.unwrap_or_else(|e| panic!("a greedy generation failed: {e}"));
    let suite = Suite { model, chat: greedy.tokens, id: SessionId::new("conformance") };
    suite.clear(&[]).await;
    suite.going_on().await;
    suite.other_ways().await;
    suite.interrupted().await;
    suite.waiting().await;
    suite.forks().await;
    suite.files().await;
    suite.trims().await;
}

/// What a model that keeps no sessions says.
async fn refused(model: &dyn LoadedModel, prompt: &str) {
    let (id, copy) = (SessionId::new("conformance"), SessionId::new("conformance-copy"));
    let empty = SessionState::new(Vec::new(), Default::default(), Vec::new());
    let generation = match model.generate(GenerateRequest::new(prompt).with_session(id.clone())).next().await {
        Some(Err(error)) => Err(error),
        other => panic!("a request with a session must fail with the first item, but it is {other:?}"),
    };
    for (what, outcome) in [
        ("a request with a session", generation),
        ("fork_session", model.fork_session(&id, copy).await),
        ("export_session", model.export_session(&id).await.map(drop)),
        ("import_session", model.import_session(&id, empty).await),
    ] {
        match outcome {
            Ok(()) => panic!("the backend says that it keeps no sessions, but {what} works"),
            Err(error) => {
                assert_eq!(error.code(), "unsupported", "{what}, where no sessions are kept: {error}");
                let named = error.to_string().contains(id.as_str());
                assert!(named, "{what} must be refused with the session's name, but the message is: {error}");
            }
        }
    }
    model.end_session(id).await.unwrap_or_else(|e| panic!("end_session, where there is nothing to end, failed: {e}"));
}

struct Suite<'a> {
    model: &'a dyn LoadedModel,
    /// Tokens to make prompts of.
    chat: Vec<u32>,
    id: SessionId,
}

/// A turn in a session, and what it computed.
struct Turn {
    done: Completion,
    computed: u64,
}

impl Suite<'_> {
    fn request(&self, prompt: &[u32]) -> GenerateRequest {
        GenerateRequest::new(prompt.to_vec()).with_max_tokens(TOKENS).with_ignore_eos(true)
    }

    fn in_session(&self, id: &SessionId, prompt: &[u32]) -> GenerateRequest {
        self.request(prompt).with_session(id.clone())
    }

    /// The tokens without a session, which must use and keep nothing.
    async fn plain(&self, prompt: &[u32]) -> Vec<u32> {
        let before = self.model.memory().kv_cache;
        let done = self.model.generate(self.request(prompt)).complete().await;
        let done = done.unwrap_or_else(|e| panic!("a generation without a session failed: {e}"));
        assert_eq!(done.usage.cached_tokens, 0, "a request without a session found tokens in a cache");
        let after = self.model.memory().kv_cache;
        assert_eq!(after, before, "a request without a session changed the bytes of KV caches");
        done.tokens
    }

    /// Checks that the tokens are the same, up to the first place where two tokens are equally good to [`NEARLY`].
    async fn same(&self, prompt: &[u32], expected: &[u32], found: &[u32], what: &str) {
        assert_eq!(found.len(), expected.len(), "{what}: number of tokens generated");
        let Some(place) = (0..found.len()).find(|&i| found[i] != expected[i]) else { return };
        let before = LogitsRequest::new([prompt, &expected[..place]].concat());
        let logits = self.model.logits(before).await.unwrap_or_else(|e| panic!("logits failed: {e}"));
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let worst = logits.iter().copied().fold(f32::INFINITY, f32::min);
        let apart = (logits[expected[place] as usize] - logits[found[place] as usize]).abs();
        assert!(
            apart <= NEARLY * (best - worst),
            "{what} gave other tokens than the same request without a session: {found:?}, not {expected:?}; of logits from {worst} to {best}, those at place {place} are {apart} apart"
        );
    }

    /// A turn in the session `id`, whose answer must be that without a session.
    async fn turn_of(&self, id: &SessionId, prompt: &[u32], what: &str) -> Turn {
        let expected = self.plain(prompt).await;
        let before = self.model.counters().forward_tokens;
        let done = self.model.generate(self.in_session(id, prompt)).complete().await;
        let done = done.unwrap_or_else(|e| panic!("{what} failed: {e}"));
        let computed = self.model.counters().forward_tokens - before;
        self.same(prompt, &expected, &done.tokens, what).await;
        let (all, cached) = (done.usage.prompt_tokens, done.usage.cached_tokens);
        assert_eq!(all, prompt.len(), "{what} counts its prompt wrongly");
        assert!(cached < all, "{what} says that {cached} of {all} tokens were cached; the last one never is");
        assert_eq!(done.stats.prefill_tokens, all - cached, "{what}: tokens of the prompt that were computed");
        // Whether the last token generated is computed at once is the backend's choice.
        let decoded = done.stats.decode_tokens;
        assert!(decoded + 1 == TOKENS || decoded == TOKENS, "{what} counts {decoded} decoded tokens of {TOKENS}");
        let said = (all - cached + decoded) as u64;
        assert_eq!(computed, said, "{what}: by the counters {computed} tokens were computed, by its statistics {said}");
        Turn { done, computed }
    }

    async fn turn(&self, prompt: &[u32], what: &str) -> Turn {
        self.turn_of(&self.id, prompt, what).await
    }

    /// A turn that finds at least `cached` tokens.
    async fn cached(&self, id: &SessionId, prompt: &[u32], cached: usize, what: &str) -> Turn {
        let turn = self.turn_of(id, prompt, what).await;
        let found = turn.done.usage.cached_tokens;
        assert!(found >= cached, "{what}: {cached} tokens were computed before, but {found} were found in the cache");
        turn
    }

    /// A turn that finds nothing. Gives its answer.
    async fn anew(&self, id: &SessionId, prompt: &[u32], what: &str) -> Vec<u32> {
        let done = self.turn_of(id, prompt, what).await.done;
        let found = done.usage.cached_tokens;
        assert_eq!(found, 0, "{what}: nothing may be left, but {found} tokens were found in the cache");
        done.tokens
    }

    fn bytes(&self) -> u64 {
        self.model.memory().kv_cache
    }

    /// Ends all sessions of this suite, after which no bytes are held.
    async fn clear(&self, others: &[&SessionId]) {
        for id in others.iter().copied().chain([&self.id]) {
            let ended = self.model.end_session(id.clone()).await;
            ended.unwrap_or_else(|e| panic!("end_session failed: {e}"));
        }
        assert_eq!(self.bytes(), 0, "bytes of KV caches after every session was ended");
    }

    /// A chat of the session: the prompt and the answer of a first turn.
    async fn begin(&self) -> Vec<u32> {
        let mut chat = self.chat.clone();
        let first = self.turn(&chat, "the first turn of a session").await;
        assert_eq!(first.done.usage.cached_tokens, 0, "the first turn of a session found tokens in a cache");
        assert!(self.bytes() > 0, "a session is kept, but memory() has no bytes of KV caches");
        chat.extend(first.done.tokens);
        chat
    }

    async fn going_on(&self) {
        let mut chat = self.begin().await;
        for what in ["a second turn", "a third turn"] {
            let cached = chat.len() - 1;
            chat.extend(&self.chat[..5]);
            let turn = self.cached(&self.id, &chat, cached, what).await;
            let new = (5 + 1 + TOKENS) as u64;
            assert!(turn.computed <= new, "{what} computed {} tokens, at most {new} are new", turn.computed);
            chat.extend(turn.done.tokens);
        }
        let state = self.export(&self.id).await;
        assert!(chat.starts_with(&state.tokens), "the session exports other tokens than those of its chat");
        assert!(state.tokens.len() + 1 >= chat.len(), "of {} tokens, only {} are kept", chat.len(), state.tokens.len());
        self.clear(&[]).await;
        self.anew(&self.id, &chat, "a turn after end_session").await;
        self.clear(&[]).await;
    }

    async fn other_ways(&self) {
        let chat = self.begin().await;
        self.turn(&chat[..self.chat.len()], "the same prompt once more").await;
        self.turn(&chat[..self.chat.len() / 2], "a part of the prompt").await;
        self.turn(&chat[..1], "one token of the prompt").await;
        self.turn(&chat, "the chat again").await;
        let mut branch = chat.clone();
        let middle = chat.len() / 2;
        branch.truncate(middle);
        branch.extend(chat[1..6].iter().rev());
        self.turn(&branch, "a branch from the middle").await;
        self.turn(&chat, "the chat after a branch").await;
        let other: Vec<_> = chat.iter().rev().copied().collect();
        self.turn(&other, "another chat").await;
        self.clear(&[]).await;
    }

    async fn interrupted(&self) {
        let mut chat = self.begin().await;
        let mut kept = 0;
        for (cancelled, what) in [(true, "a cancelled generation"), (false, "a dropped generation")] {
            chat.extend(&self.chat[..3]);
            let cancel = CancellationToken::new();
            let mut generation = self.model.generate(self.in_session(&self.id, &chat).with_cancel(cancel.clone()));
            match generation.next().await {
                Some(Ok(GenerationEvent::Token { .. } | GenerationEvent::Text(_))) => {}
                other => panic!("expected a token in a session, found {other:?}"),
            }
            if cancelled {
                cancel.cancel();
                generation.complete().await.unwrap_or_else(|e| panic!("{what} in a session failed: {e}"));
            } else {
                drop(generation);
            }
            let computed = self.export(&self.id).await.tokens;
            let whole = computed.starts_with(&chat);
            assert!(whole, "{what} gave a token, but its session has not kept the whole prompt");
            // What is kept beyond the prompt is gone on from, since not every cache can be cut.
            chat = computed;
            kept = chat.len();
        }
        chat.push(self.chat[0]);
        let vocab = self.model.info().vocab_size as u32;
        let wrong = self.model.generate(self.in_session(&self.id, &[vocab])).complete().await;
        assert!(wrong.is_err(), "a token id outside the vocabulary in a session must be an error");
        self.cached(&self.id, &chat, kept, "a turn after a cancelled, a dropped and a refused one").await;
        self.clear(&[]).await;
    }

    async fn waiting(&self) {
        let chat = self.begin().await;
        let expected = self.plain(&chat).await;
        let first = self.model.generate(self.in_session(&self.id, &chat));
        let cancel = CancellationToken::new();
        let cancelled = self.model.generate(self.in_session(&self.id, &chat).with_cancel(cancel.clone()));
        let last = self.model.generate(self.in_session(&self.id, &chat));
        // The first one is not read, and what needs no session goes on beside.
        let beside = self.model.generate(self.request(&chat)).complete().await;
        let beside = beside.unwrap_or_else(|e| panic!("a generation beside one in a session failed: {e}"));
        self.same(&chat, &expected, &beside.tokens, "a generation beside one in a session").await;
        cancel.cancel();
        let cancelled = cancelled.complete().await;
        cancelled.unwrap_or_else(|e| panic!("cancelled while another generation has its session, it failed: {e}"));
        drop(first);
        let last =
            last.complete().await.unwrap_or_else(|e| panic!("a generation that waited for its session failed: {e}"));
        self.same(&chat, &expected, &last.tokens, "a generation that waited for its session").await;
        self.clear(&[]).await;
    }

    async fn forks(&self) {
        let copy = SessionId::new("conformance-copy");
        let chat = self.begin().await;
        let bytes = self.bytes();
        self.fork(&self.id, &copy).await;
        assert!(self.bytes() >= bytes, "a fork took bytes away");
        let with = |token: u32| {
            let mut chat = chat.clone();
            chat.push(token);
            chat
        };
        let cached = chat.len() - 1;
        let (here, mut there) = (with(self.chat[0]), with(self.chat[1]));
        let new = (2 + TOKENS) as u64;
        let mut answers = Vec::new();
        for (id, prompt, what) in [(&copy, &there, "a turn in a fork"), (&self.id, &here, "a turn beside a fork")] {
            let Turn { done, computed } = self.cached(id, prompt, cached, what).await;
            assert!(computed <= new, "{what} computed {computed} tokens, at most {new} are new");
            answers.push(done.tokens);
        }
        let cached = there.len() + TOKENS - 1;
        there.extend(&answers[0]);
        there.push(self.chat[0]);
        self.model.end_session(self.id.clone()).await.unwrap_or_else(|e| panic!("end_session failed: {e}"));
        self.cached(&copy, &there, cached, "a turn in a fork whose origin was ended").await;
        self.fork(&SessionId::new("conformance-none"), &copy).await;
        self.anew(&copy, &there, "a turn in a fork of a session that has computed nothing").await;
        self.clear(&[&copy]).await;
    }

    async fn files(&self) {
        let copy = SessionId::new("conformance-copy");
        let nothing = self.export(&copy).await;
        assert_eq!(nothing.tokens.len(), 0, "tokens of a session that has computed nothing");
        let mut chat = self.begin().await;
        let state = self.export(&self.id).await;
        assert!(state.metadata.contains_key("format"), "the metadata of an exported session has no `format`");
        let same = self.export(&self.id).await == state;
        assert!(same, "two exports of a session that nobody used in between differ");
        self.clear(&[]).await;
        self.import(&copy, state.clone()).await.unwrap_or_else(|e| panic!("importing what was exported failed: {e}"));
        let same = self.export(&copy).await == state;
        assert!(same, "what was imported is exported differently");
        chat.push(self.chat[0]);
        self.cached(&copy, &chat, state.tokens.len(), "a turn in an imported session").await;

        let info = self.model.info();
        let mut outside = state.clone();
        outside.tokens[0] = info.vocab_size as u32;
        let mut unknown = state.clone();
        unknown.metadata.insert("format".into(), "conformance".into());
        let mut short = state.clone();
        short.tokens.pop();
        let mut long = state.clone();
        long.tokens.resize(info.context_length + 1, state.tokens[0]);
        let mut empty = state.clone();
        empty.tensors.clear();
        for (what, wrong) in [
            ("a token id outside the vocabulary", outside),
            ("an unknown format", unknown),
            ("one token less than its cache", short),
            ("more tokens than the context", long),
            ("no tensors", empty),
        ] {
            match self.import(&copy, wrong).await {
                Ok(()) => panic!("a state with {what} was imported"),
                Err(e) => assert_eq!(e.code(), "invalid_spec", "a state with {what} gave another error: {e}"),
            }
        }
        let left = self.import(&copy, nothing).await;
        left.unwrap_or_else(|e| panic!("importing a session that has computed nothing failed: {e}"));
        self.anew(&copy, &chat, "a turn after importing a session that has computed nothing").await;
        self.clear(&[&copy]).await;
    }

    async fn trims(&self) {
        let mut chat = self.begin().await;
        let bytes = self.bytes();
        self.trim(TrimLevel::Caches).await;
        assert_eq!(self.bytes(), bytes, "trim(Caches) must leave the KV caches of sessions");
        let freed = self.trim(TrimLevel::Sessions).await;
        assert_eq!(self.bytes(), 0, "trim(Sessions) must free the KV caches of idle sessions");
        assert!(freed >= bytes, "trim(Sessions) freed {bytes} bytes of KV caches, but says {freed}");
        chat.extend(self.anew(&self.id, &chat, "a turn after trim(Sessions)").await);
        let cached = chat.len() - 1;
        chat.push(self.chat[0]);
        self.cached(&self.id, &chat, cached, "a second turn after trim(Sessions)").await;
        self.clear(&[]).await;
    }

    async fn fork(&self, from: &SessionId, to: &SessionId) {
        let forked = self.model.fork_session(from, to.clone()).await;
        forked.unwrap_or_else(|e| panic!("fork_session failed: {e}"));
    }

    async fn export(&self, id: &SessionId) -> SessionState {
        self.model.export_session(id).await.unwrap_or_else(|e| panic!("export_session failed: {e}"))
    }

    async fn import(&self, id: &SessionId, state: SessionState) -> Result<()> {
        self.model.import_session(id, state).await
    }

    async fn trim(&self, level: TrimLevel) -> u64 {
        self.model.trim(level).await.unwrap_or_else(|e| panic!("trim({level:?}) failed: {e}"))
    }
}

#[cfg(test)]
mod tests;
