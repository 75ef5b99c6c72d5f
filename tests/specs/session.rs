//! Chats with a model: what a turn costs, and what stays of it.

#![cfg(feature = "local")]

use std::sync::Arc;

use crate::common::tiny;
use futures_util::StreamExt;
use llm_local::{
    ArtifactRef, BackendPreference, Engine, Error, FinishReason, GenerationEvent, Message, ModelSpec, Role,
    TurnOptions, core::CancellationToken,
};
use llm_local_testkit::fakes::FakeBackend;
use pollster::block_on;

/// An engine whose backend answers with its prompt and keeps no KV cache, and a spec for it.
fn echo() -> (Engine, ModelSpec) {
    let registry = llm_local::builtin::registry().unwrap().with_backend(Arc::new(FakeBackend::new("fake")));
    let engine = Engine::builder().registry(registry).cache_dir(env!("CARGO_TARGET_TMPDIR")).build().unwrap();
    (engine, tiny(None).with_backend(BackendPreference::Named("fake".into())))
}

fn contents(messages: &[Message]) -> Vec<&str> {
    messages.iter().map(|m| m.content.as_str()).collect()
}

#[test]
fn a_chat_works_with_a_backend_that_keeps_no_cache_by_sending_all_of_it() {
    let (engine, spec) = echo();
    let mut session = engine.session(&spec);
    session.set_system_prompt("s");
    block_on(async {
        let first = session.complete("a", TurnOptions::new()).await.unwrap();
        assert!(first.stats.load.is_some());
        assert_eq!(first.text, "s\na");
        let second = session.complete("b", TurnOptions::new()).await.unwrap();
        assert_eq!(second.stats.load, None);
        assert_eq!(second.text, "s\na\ns\na\nb");
        assert_eq!((second.usage.prompt_tokens, second.usage.cached_tokens), (9, 0));
        assert_eq!(contents(session.messages()), ["a", "s\na", "b", "s\na\ns\na\nb"]);
        assert!(session.messages().iter().map(|m| m.role).eq([
            Role::User,
            Role::Assistant,
            Role::User,
            Role::Assistant
        ]));
        let mut fork = session.fork().await.unwrap();
        assert_ne!(fork.id(), session.id());
        assert_eq!(contents(&fork.undo()), ["b", "s\na\ns\na\nb"]);
        assert_eq!(fork.system_prompt(), Some("s"));
        assert_eq!((fork.messages().len(), session.messages().len()), (2, 4));
        session.reset().await.unwrap();
        assert_eq!((session.messages().len(), session.system_prompt()), (0, Some("s")));
        assert!(session.undo().is_empty());
        session.remove_system_prompt();
        assert_eq!(session.complete("c", TurnOptions::new()).await.unwrap().text, "c");
    });
}

#[test]
fn a_turn_streams_and_the_chat_has_it_once_it_has_finished() {
    let (engine, spec) = echo();
    let mut session = engine.session(&spec);
    block_on(async {
        let mut turn = session.send("hello", TurnOptions::new()).await.unwrap();
        let mut text = String::new();
        while let Some(event) = turn.next().await {
            text.push_str(event.unwrap().text());
        }
        assert!(turn.next().await.is_none());
        drop(turn);
        assert_eq!(text, "hello");
        // As a stream, in part, and the rest at once.
        let mut turn = session.send("x", TurnOptions::new().with_max_tokens(4)).await.unwrap();
        let first = StreamExt::next(&mut turn).await.unwrap().unwrap();
        assert_eq!(turn.complete().await.unwrap().text, "ell");
        assert_eq!(first.text(), "h");
        assert_eq!(contents(session.messages()), ["hello", "hello", "x", "hell"]);
    });
}

#[test]
fn a_turn_that_fails_or_is_dropped_leaves_the_chat_as_it_was() {
    let (engine, spec) = echo();
    let mut session = engine.session(&spec);
    block_on(async {
        session.complete("a", TurnOptions::new()).await.unwrap();
        let before = session.messages().to_vec();
        let error = session.complete("x".repeat(600), TurnOptions::new()).await.unwrap_err();
        assert!(matches!(error, Error::ContextLengthExceeded { .. }), "{error}");
        assert_eq!(session.messages(), before);
        let error = session.complete("x", TurnOptions::new().with_stop("")).await.unwrap_err();
        assert!(error.to_string().contains("stop"), "{error}");
        assert_eq!(session.messages(), before);
        let mut turn = session.send("x", TurnOptions::new()).await.unwrap();
        turn.next().await.unwrap().unwrap();
        drop(turn);
        assert_eq!(session.messages(), before);
        drop(session.send("x", TurnOptions::new()).await.unwrap().complete());
        assert_eq!(session.messages(), before);
        // A model that cannot be loaded, either.
        let mut nowhere = engine.session(&ModelSpec::new(ArtifactRef::file("/no/such/model").unwrap()));
        nowhere.push(Message::user("a"));
        assert!(matches!(nowhere.send("b", TurnOptions::new()).await, Err(Error::NotFound { .. })));
        assert_eq!(contents(nowhere.messages()), ["a"]);
        // And then it goes on.
        assert_eq!(session.complete("b", TurnOptions::new()).await.unwrap().text, "a\na\nb");
    });
}

#[test]
fn a_cancelled_turn_keeps_what_there_is_of_the_answer() {
    let (engine, spec) = echo();
    let mut session = engine.session(&spec);
    let cancel = CancellationToken::new();
    block_on(async {
        let mut turn = session.send("hello", TurnOptions::new().with_cancel(cancel.clone())).await.unwrap();
        turn.next().await.unwrap().unwrap();
        turn.next().await.unwrap().unwrap();
        cancel.cancel();
        let mut reason = None;
        while let Some(event) = turn.next().await {
            if let GenerationEvent::Finished { reason: why, .. } = event.unwrap() {
                reason = Some(why);
            }
        }
        drop(turn);
        assert_eq!(reason, Some(FinishReason::Cancelled));
        assert_eq!(contents(session.messages()), ["hello", "he"]);
        assert_eq!(session.complete("b", TurnOptions::new()).await.unwrap().text, "hello\nhe\nb");
    });
}

#[test]
fn a_turn_that_generates_nothing_leaves_the_chat_as_it_was() {
    let (engine, spec) = echo();
    let mut session = engine.session(&spec);
    block_on(async {
        let mut ended = async |text: String, options: TurnOptions, reason| {
            let before = session.messages().to_vec();
            let turn = session.complete(text, options).await.unwrap();
            assert_eq!((turn.finish_reason, turn.usage.generated_tokens), (Some(reason), 0));
            assert_eq!(session.messages(), before);
        };
        ended("hello".into(), TurnOptions::new().with_max_tokens(0), FinishReason::Length).await;
        // A prompt that leaves no room.
        ended("x".repeat(512), TurnOptions::new(), FinishReason::Length).await;
        let cancel = CancellationToken::new();
        cancel.cancel();
        ended("hello".into(), TurnOptions::new().with_cancel(cancel), FinishReason::Cancelled).await;
        // One token is an answer.
        session.complete("x".repeat(511), TurnOptions::new()).await.unwrap();
        assert_eq!(contents(session.messages()), ["x".repeat(511).as_str(), "x"]);
    });
}

#[test]
fn messages_can_be_added_given_up_and_gone_on_from() {
    let (engine, spec) = echo();
    let mut session = engine.session(&spec);
    session.push(Message::user("1"));
    session.push(Message::assistant("2"));
    block_on(async {
        let answer = session
            .send_messages([Message::user("3"), Message::new(Role::Tool, "4")], TurnOptions::new())
            .await
            .unwrap()
            .complete()
            .await
            .unwrap();
        assert_eq!(answer.text, "1\n2\n3\n4");
        assert_eq!(session.messages().len(), 5);
        session.truncate(4);
        let again = session.send_messages([], TurnOptions::new()).await.unwrap().complete().await.unwrap();
        assert_eq!(again.text, answer.text);
        assert_eq!(contents(&session.undo()), ["3", "4", "1\n2\n3\n4"]);
        assert_eq!(contents(session.messages()), ["1", "2"]);
        session.truncate(0);
        let error = session.send_messages([], TurnOptions::new()).await.unwrap().complete().await.unwrap_err();
        assert!(error.to_string().contains("no messages"), "{error}");
    });
}

#[test]
fn no_two_sessions_have_one_name() {
    let (engine, spec) = echo();
    let sessions: Vec<_> = (0..100).map(|_| engine.session(&spec)).collect();
    let names: std::collections::HashSet<_> = sessions.iter().map(|s| s.id().clone()).collect();
    assert_eq!(names.len(), 100);
}
