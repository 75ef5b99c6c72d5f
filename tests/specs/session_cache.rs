//! Chats with tiny-llama: a turn computes what is new and nothing else, and says what it would without a session.

#![cfg(all(feature = "candle", feature = "local"))]

use crate::common::{engine, tiny};
use llm_local::{
    Completion, Engine, FinishReason, GenerateRequest, Message, Model, ModelSpec, Session, TurnOptions,
    core::{SessionId, TrimLevel},
};
use pollster::block_on;

const QUESTIONS: [&str; 3] = ["Tell me a story about a frog.", "And then?", "Who was that?"];

fn options() -> TurnOptions {
    TurnOptions::new().with_max_tokens(24)
}

/// The chat that a session has now, as it is sent.
fn chat(session: &Session) -> Vec<Message> {
    session.system_prompt().map(Message::system).into_iter().chain(session.messages().iter().cloned()).collect()
}

/// Tokens that a turn has computed: of its answer all but the last, unless that was followed by the model's end.
fn generated(turn: &Completion) -> usize {
    turn.tokens.len() - usize::from(turn.finish_reason == Some(FinishReason::Length))
}

/// Says `text`. The answer must be the one without a session, and the tokens computed exactly those that its usage says
/// were not cached, and those of the answer.
async fn turn(session: &mut Session, engine: &Engine, text: &str) -> Completion {
    let model = engine.load(session.spec()).await.unwrap();
    let whole: Vec<_> = chat(session).into_iter().chain([Message::user(text)]).collect();
    let alone = model.generate(GenerateRequest::new(whole).with_max_tokens(24)).complete().await.unwrap();
    assert_eq!(alone.usage.cached_tokens, 0);
    let before = model.counters().forward_tokens;
    let answer = session.complete(text, options()).await.unwrap();
    let computed = (model.counters().forward_tokens - before) as usize;
    assert_eq!((&answer.tokens, &answer.text), (&alone.tokens, &alone.text), "after `{text}`");
    assert_eq!(answer.usage.prompt_tokens, alone.usage.prompt_tokens);
    assert_eq!(computed, answer.usage.prompt_tokens - answer.usage.cached_tokens + generated(&answer), "`{text}`");
    answer
}

/// What a turn leaves computed.
fn computed(turn: &Completion) -> usize {
    turn.usage.prompt_tokens + generated(turn)
}

/// Bytes of KV caches, once what was asked for before has been done.
async fn cache_bytes(model: &Model) -> u64 {
    // It waits for its turn behind them.
    model.end_session(SessionId::new("nobody")).await.unwrap();
    model.memory().kv_cache
}

#[test]
fn each_turn_computes_its_new_tokens_alone() {
    let engine = engine();
    for spec in [tiny(None), tiny(Some("peft"))] {
        let mut session = engine.session(&spec);
        session.set_system_prompt("You are a pirate.");
        block_on(async {
            let first = turn(&mut session, &engine, QUESTIONS[0]).await;
            assert_eq!(first.usage.cached_tokens, 0);
            let second = turn(&mut session, &engine, QUESTIONS[1]).await;
            assert_eq!(second.usage.cached_tokens, computed(&first));
            let third = turn(&mut session, &engine, QUESTIONS[2]).await;
            assert_eq!(third.usage.cached_tokens, computed(&second));
        });
        assert_eq!(session.messages().len(), 6);
    }
}

#[test]
fn a_cache_that_was_trimmed_or_unloaded_is_computed_anew() {
    let engine = engine();
    let spec = tiny(None);
    let mut session = engine.session(&spec);
    block_on(async {
        turn(&mut session, &engine, QUESTIONS[0]).await;
        let model = engine.load(&spec).await.unwrap();
        let held = cache_bytes(&model).await;
        assert!(held > 0);
        assert!(model.trim(TrimLevel::Sessions).await.unwrap() >= held);
        assert_eq!(model.memory().kv_cache, 0);
        let second = turn(&mut session, &engine, QUESTIONS[1]).await;
        assert_eq!(second.usage.cached_tokens, 0);
        drop(model);
        engine.unload(&spec).await.unwrap();
        let third = session.complete(QUESTIONS[2], options()).await.unwrap();
        assert!(third.stats.load.is_some());
        assert_eq!(third.usage.cached_tokens, 0);
        session.undo();
        let again = turn(&mut session, &engine, QUESTIONS[2]).await;
        assert_eq!(again.tokens, third.tokens);
        assert_eq!(again.usage.cached_tokens, again.usage.prompt_tokens - 1);
    });
}

#[test]
fn a_fork_goes_its_own_way_from_what_is_computed() {
    let engine = engine();
    let spec = tiny(None);
    let mut one = engine.session(&spec);
    block_on(async {
        let first = turn(&mut one, &engine, QUESTIONS[0]).await;
        let mut other = one.fork().await.unwrap();
        let (here, there) = (
            turn(&mut one, &engine, QUESTIONS[1]).await,
            turn(&mut other, &engine, "Who was the frog's friend?").await,
        );
        assert_eq!([&here, &there].map(|t| t.usage.cached_tokens), [computed(&first); 2]);
        assert_ne!(one.messages(), other.messages());
        let there = (turn(&mut other, &engine, QUESTIONS[2]).await, there);
        assert_eq!(there.0.usage.cached_tokens, computed(&there.1));
        let next = turn(&mut one, &engine, QUESTIONS[2]).await;
        assert_eq!(next.usage.cached_tokens, computed(&here));
        // Of one that was never asked anything.
        let mut new = engine.session(&spec).fork().await.unwrap();
        assert_eq!(turn(&mut new, &engine, QUESTIONS[0]).await.tokens, first.tokens);
    });
}

#[test]
fn what_is_taken_back_or_said_otherwise_keeps_what_comes_before_it() {
    let engine = engine();
    let spec = tiny(None);
    let mut session = engine.session(&spec);
    session.set_system_prompt("Tell stories.");
    block_on(async {
        let first = turn(&mut session, &engine, QUESTIONS[0]).await;
        let second = turn(&mut session, &engine, QUESTIONS[1]).await;
        session.undo();
        let other = turn(&mut session, &engine, "Stop.").await;
        let common = computed(&first)..second.usage.prompt_tokens;
        assert!(common.contains(&other.usage.cached_tokens), "{:?}", other.usage);
        session.set_system_prompt("Tell nothing.");
        let strict = turn(&mut session, &engine, QUESTIONS[2]).await;
        // What stands before the first word that differs.
        assert!((1..10).contains(&strict.usage.cached_tokens), "{:?}", strict.usage);
        let again = turn(&mut session, &engine, QUESTIONS[1]).await;
        assert_eq!(again.usage.cached_tokens, computed(&strict));
    });
}

#[test]
fn reset_and_drop_free_the_cache() {
    let engine = engine();
    let spec = tiny(None);
    block_on(async {
        let model = engine.load(&spec).await.unwrap();
        let (mut one, mut other) = (engine.session(&spec), engine.session(&spec));
        one.set_system_prompt("Tell stories.");
        turn(&mut one, &engine, QUESTIONS[0]).await;
        let alone = cache_bytes(&model).await;
        turn(&mut other, &engine, QUESTIONS[0]).await;
        let both = cache_bytes(&model).await;
        assert!(0 < alone && alone < both);
        one.reset().await.unwrap();
        assert_eq!(model.memory().kv_cache, both - alone);
        assert_eq!((one.messages().len(), one.system_prompt()), (0, Some("Tell stories.")));
        assert_eq!(turn(&mut one, &engine, QUESTIONS[0]).await.usage.cached_tokens, 0);
        drop(other);
        assert_eq!(cache_bytes(&model).await, alone);
        // In the middle of a turn.
        let mut running = one.send(QUESTIONS[1], options()).await.unwrap();
        running.next().await.unwrap().unwrap();
        drop(running);
        drop(one);
        assert_eq!(cache_bytes(&model).await, 0);
    });
}

#[test]
fn a_turn_that_is_dropped_or_cancelled_leaves_a_cache_that_is_right() {
    let engine = engine();
    let mut session = engine.session(&tiny(None));
    block_on(async {
        turn(&mut session, &engine, QUESTIONS[0]).await;
        for taken in 0..6 {
            let mut running = session.send("Tell me something else.", options()).await.unwrap();
            for _ in 0..taken {
                running.next().await.unwrap().unwrap();
            }
        }
        let second = turn(&mut session, &engine, QUESTIONS[1]).await;
        assert!(second.usage.cached_tokens > 0);
        let how = options();
        let cancel = how.cancel.clone();
        let mut running = session.send(QUESTIONS[2], how).await.unwrap();
        let mut text = String::new();
        for _ in 0..3 {
            text += running.next().await.unwrap().unwrap().text();
        }
        cancel.cancel();
        let rest = running.complete().await.unwrap();
        assert_eq!(rest.finish_reason, Some(FinishReason::Cancelled));
        assert_eq!(session.messages().last(), Some(&Message::assistant(text + &rest.text)));
        turn(&mut session, &engine, "Go on.").await;
    });
}

#[test]
fn a_chat_longer_than_the_context_is_refused_and_can_go_on_shorter() {
    let engine = engine();
    let spec = tiny(None).with_context_length(llm_local::ContextLength::Tokens(96));
    let mut session = engine.session(&spec);
    block_on(async {
        turn(&mut session, &engine, QUESTIONS[0]).await;
        let error = session.complete("word ".repeat(100), options()).await.unwrap_err();
        assert_eq!(error.code(), "context_length_exceeded", "{error}");
        assert_eq!(session.messages().len(), 2);
        turn(&mut session, &engine, QUESTIONS[1]).await;
    });
}

#[test]
fn a_model_without_a_chat_template_says_so() {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(crate::common::fixture("models/tiny-llama")).unwrap() {
        let file = file.unwrap();
        if file.file_name() != "tokenizer_config.json" {
            std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
        }
    }
    let engine = engine();
    let mut session = engine.session(&ModelSpec::new(llm_local::ArtifactRef::file(folder.path()).unwrap()));
    let error = block_on(session.complete("Hello.", options())).unwrap_err();
    assert!(error.to_string().contains("chat template"), "{error}");
    assert!(session.messages().is_empty());
}
