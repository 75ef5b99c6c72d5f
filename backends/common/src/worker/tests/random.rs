//! Random interleavings: whatever else happens, a session changes no answer, no bytes are lost or counted twice, and
//! every call is answered.

use std::pin::Pin;

use llm_local_core::{
    CancellationToken, FinishReason, GenerateRequest, Generation, GenerationEvent, LoadedModel, Result, SessionId,
    SessionState, TrimLevel, Usage,
};
use proptest::{
    prelude::*,
    sample::Index,
    test_runner::{RngSeed, TestCaseResult},
};

use super::{
    driven::Driven,
    fake::{CACHE_BYTES_PER_TOKEN, Setup, answer, best, id_after, tensor},
};
use crate::worker::handle::Handle;

const SESSIONS: usize = 3;
const CONTEXT: usize = 96;
/// A cache can forget so many tokens, as one with a window can.
const CUT: usize = 12;
/// The tokens up to which a sequence is short, where a cache is for short ones or for long ones.
const LIMIT: usize = 40;
/// A step with this token panics, and one with the next fails. No answer has either.
const PANICS: u32 = 800;
const FAILS: u32 = 801;

#[derive(Debug, Clone)]
enum Action {
    /// A request that goes on from what the session's last one was, less `cut` tokens, with `extra` ones.
    Generate {
        session: Option<usize>,
        cut: usize,
        extra: Vec<u32>,
        count: usize,
    },
    Read(Index),
    Drop(Index),
    Cancel(Index),
    Fork(usize, usize),
    End(usize),
    Export(usize),
    Import(usize, Index),
    /// Gives a call up.
    Abandon(Index),
    Trim(TrimLevel),
    Drive,
}

fn action() -> impl Strategy<Value = Action> {
    let session = || 0..SESSIONS;
    let token = prop_oneof![200 => 0..3_u32, 1 => Just(PANICS), 1 => Just(FAILS)];
    let generate =
        (prop::option::weighted(0.9, session()), 0..30_usize, prop::collection::vec(token, 1..12), 0..6_usize)
            .prop_map(|(session, cut, extra, count)| Action::Generate { session, cut, extra, count });
    prop_oneof![
        8 => generate,
        16 => any::<Index>().prop_map(Action::Read),
        2 => any::<Index>().prop_map(Action::Drop),
        2 => any::<Index>().prop_map(Action::Cancel),
        2 => (session(), session()).prop_map(|(from, to)| Action::Fork(from, to)),
        1 => session().prop_map(Action::End),
        2 => session().prop_map(Action::Export),
        1 => (session(), any::<Index>()).prop_map(|(to, state)| Action::Import(to, state)),
        1 => any::<Index>().prop_map(Action::Abandon),
        1 => prop_oneof![Just(TrimLevel::Caches), Just(TrimLevel::Sessions)].prop_map(Action::Trim),
        4 => Just(Action::Drive),
    ]
}

/// A generation that is not over.
struct Live {
    generation: Generation,
    prompt: Vec<u32>,
    expected: Vec<u32>,
    cancel: CancellationToken,
    read: usize,
    /// [`LIMIT`], where there is one.
    limit: usize,
}

impl Live {
    /// Reads an event, if there is one. Gives whether it was the last.
    fn read(&mut self, worker: &mut Driven) -> Result<bool, TestCaseError> {
        let prompt = self.prompt.len();
        match worker.read(&mut self.generation) {
            None => Ok(false),
            Some(Some(Ok(GenerationEvent::Token { id, .. }))) => {
                prop_assert_eq!(Some(&id), self.expected.get(self.read), "token {} after {:?}", self.read, self.prompt);
                self.read += 1;
                Ok(false)
            }
            Some(Some(Ok(GenerationEvent::Text(_)))) => Ok(false),
            Some(Some(Ok(GenerationEvent::Finished { reason, usage, stats, .. }))) => {
                let cancelled = reason == FinishReason::Cancelled;
                prop_assert!(cancelled || (reason == FinishReason::Length && self.read == self.expected.len()));
                prop_assert!(!cancelled || self.cancel.is_cancelled());
                prop_assert_eq!(usage, Usage::new(prompt, self.read).with_cached_tokens(usage.cached_tokens));
                prop_assert!(usage.cached_tokens < prompt);
                if self.read > 0 {
                    prop_assert_eq!(stats.prefill_tokens, prompt - usage.cached_tokens);
                    let decoded = self.decoded();
                    let partly = cancelled && prompt <= self.limit && prompt + self.read == self.limit + 1;
                    let most = decoded + if partly { self.limit } else { 0 };
                    prop_assert!((decoded..=most).contains(&stats.decode_tokens), "{:?}: {}", stats, decoded);
                }
                Ok(true)
            }
            Some(Some(Err(error))) => {
                let breaks = self.prompt.iter().any(|id| [PANICS, FAILS].contains(id));
                prop_assert!(breaks && error.code() == "generation_failed", "{}", error);
                Ok(true)
            }
            other => Err(TestCaseError::fail(format!("expected an event, found {other:?}"))),
        }
    }
}

impl Live {
    /// Tokens computed after the first one. The one that made a sequence too long cost all before it too.
    fn decoded(&self) -> usize {
        let prompt = self.prompt.len();
        let anew = prompt <= self.limit && prompt + self.read - 1 > self.limit;
        self.read - 1 + if anew { self.limit } else { 0 }
    }
}

/// A call that is not answered; an export gives a state.
type Call<'a> = Pin<Box<dyn Future<Output = Result<Option<SessionState>>> + Send + 'a>>;

struct Run<'a> {
    worker: Driven,
    model: &'a Handle,
    ids: &'a [SessionId],
    /// What the last request of each session, and of none, was meant to compute.
    chats: [Vec<u32>; SESSIONS + 1],
    live: Vec<Live>,
    calls: Vec<Call<'a>>,
    exported: Vec<SessionState>,
    limit: usize,
}

impl Run<'_> {
    fn take(&mut self, action: &Action) -> TestCaseResult {
        let (model, ids) = (self.model, self.ids);
        let done = |outcome: Result<()>| outcome.map(|()| None);
        match action {
            Action::Generate { session, cut, extra, count } => self.generate(*session, *cut, extra, *count),
            Action::Read(at) if !self.live.is_empty() => {
                let at = at.index(self.live.len());
                if self.live[at].read(&mut self.worker)? {
                    self.live.remove(at);
                }
            }
            Action::Drop(at) if !self.live.is_empty() => drop(self.live.remove(at.index(self.live.len()))),
            Action::Cancel(at) if !self.live.is_empty() => self.live[at.index(self.live.len())].cancel.cancel(),
            Action::Fork(from, to) => {
                let fork = model.fork_session(&ids[*from], ids[*to].clone());
                self.call(Box::pin(async move { done(fork.await) }))?;
            }
            Action::End(at) => {
                let end = model.end_session(ids[*at].clone());
                self.call(Box::pin(async move { done(end.await) }))?;
            }
            Action::Export(at) => {
                let export = model.export_session(&ids[*at]);
                self.call(Box::pin(async move { export.await.map(Some) }))?;
            }
            Action::Import(to, state) if !self.exported.is_empty() => {
                let state = state.get(&self.exported).clone();
                let import = model.import_session(&ids[*to], state);
                self.call(Box::pin(async move { done(import.await) }))?;
            }
            Action::Abandon(at) if !self.calls.is_empty() => drop(self.calls.remove(at.index(self.calls.len()))),
            Action::Trim(level) => {
                let before = model.memory().kv_cache;
                let freed = self.worker.ask(|model| model.trim(*level)).unwrap();
                // Requests go on before the trim is looked at, so the sum before says little; but what was idle is
                // gone.
                prop_assert!(*level == TrimLevel::Sessions || freed == 7, "{} of {}", freed, before);
            }
            Action::Drive => self.worker.drive(),
            _ => {}
        }
        Ok(())
    }

    fn generate(&mut self, session: Option<usize>, cut: usize, extra: &[u32], count: usize) {
        let chat = &mut self.chats[session.unwrap_or(SESSIONS)];
        chat.truncate(chat.len().saturating_sub(cut));
        chat.extend(extra);
        chat.truncate(CONTEXT);
        let prompt = chat.clone();
        let expected = answer(&prompt, count.min(CONTEXT - prompt.len()));
        chat.extend(&expected);
        // A broken request is not gone on from.
        if let Some(broken) = chat.iter().position(|id| [PANICS, FAILS].contains(id)) {
            chat.truncate(broken);
        }
        let cancel = CancellationToken::new();
        let mut request = GenerateRequest::new(prompt.clone()).with_max_tokens(count).with_cancel(cancel.clone());
        request.session = session.map(|at| self.ids[at].clone());
        let generation = self.model.generate(request);
        self.live.push(Live { generation, prompt, expected, cancel, read: 0, limit: self.limit });
    }
}

impl<'a> Run<'a> {
    /// Begins a call. Its place in the line is that of now.
    fn call(&mut self, call: Call<'a>) -> TestCaseResult {
        self.calls.push(call);
        self.answers()
    }

    /// Takes the answers that are there.
    fn answers(&mut self) -> TestCaseResult {
        for mut call in std::mem::take(&mut self.calls) {
            match self.worker.try_ask(&mut call) {
                None => self.calls.push(call),
                Some(Ok(None)) => {}
                Some(Ok(Some(state))) => {
                    prop_assert!(state.tokens.is_empty() || state.tensors == [tensor(&state.tokens)]);
                    self.exported.push(state);
                }
                Some(Err(error)) => return Err(TestCaseError::fail(error.to_string())),
            }
        }
        Ok(())
    }

    /// Reads everything to its end, in no order that the worker could rely on, and looks at what is left.
    fn finish(mut self) -> TestCaseResult {
        let mut rounds = 0;
        while !self.live.is_empty() {
            rounds += 1;
            prop_assert!(rounds < 1000, "{} generations do not end", self.live.len());
            for mut live in std::mem::take(&mut self.live).into_iter().rev() {
                if !live.read(&mut self.worker)? {
                    self.live.push(live);
                }
            }
        }
        self.answers()?;
        prop_assert_eq!(self.calls.len(), 0, "calls that are not answered");
        let mut stored = 0;
        for id in self.ids {
            self.exported.clear();
            let export = self.model.export_session(id);
            self.call(Box::pin(async move { export.await.map(Some) }))?;
            stored += self.exported[0].tokens.len() as u64 * CACHE_BYTES_PER_TOKEN;
        }
        prop_assert_eq!(self.model.memory().kv_cache, stored);
        let freed = self.worker.ask(|model| model.trim(TrimLevel::Sessions)).unwrap();
        prop_assert_eq!((freed, self.model.memory().kv_cache), (stored + 7, 0));
        Ok(())
    }
}

fn setup(limit: usize) -> Setup {
    let logits = |tokens: &[u32]| {
        assert!(!tokens.contains(&PANICS), "on purpose");
        if tokens.contains(&FAILS) { Vec::new() } else { best(id_after(tokens)) }
    };
    let truncate = |held, to| Ok(held - to <= CUT);
    Setup {
        context_length: CONTEXT,
        prefill_chunk: 4,
        logits: Box::new(logits),
        truncate: Box::new(truncate),
        holds: Box::new(move |made_for, tokens| (made_for > limit) == (tokens > limit)),
        ..Setup::with_sessions()
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        rng_seed: RngSeed::Fixed(3),
        failure_persistence: None,
        ..ProptestConfig::with_cases(256)
    })]

    #[test]
    fn sessions_change_no_answer_whatever_happens(
        actions in prop::collection::vec(action(), 1..80),
        limited in any::<bool>(),
    ) {
        let limit = if limited { LIMIT } else { usize::MAX - CONTEXT };
        let worker = Driven::new(setup(limit));
        let model = worker.model.clone();
        let ids: Vec<_> = (0..SESSIONS).map(|at| SessionId::new(format!("s{at}"))).collect();
        let mut run = Run {
            worker,
            model: &model,
            ids: &ids,
            chats: Default::default(),
            live: Vec::new(),
            calls: Vec::new(),
            exported: Vec::new(),
            limit,
        };
        for action in &actions {
            run.take(action)?;
        }
        run.finish()?;
    }
}
