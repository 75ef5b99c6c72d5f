//! What a generation gives: tokens, text, counts and times.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use llm_local_core::{
    AdapterSet, Completion, Counters, Error, FinishReason, GenerateRequest, GenerationStats, Input, LoadedModel,
    LogitsRequest, Message, Result, Sampling, SessionId, Usage,
};
use pollster::block_on;

use super::fake::{Setup, best, next, next_id, prompt, text};

fn complete(model: &Arc<dyn LoadedModel>, request: GenerateRequest) -> Result<Completion> {
    block_on(model.generate(request).complete())
}

fn ids(text_of_them: &str) -> Vec<u32> {
    text().encode(&text_of_them.into()).unwrap()
}

#[test]
fn tokens_follow_each_other_until_max_tokens_and_the_last_is_not_computed() {
    let model = Setup::default().load();
    let done = complete(&model, GenerateRequest::new(prompt(200, 20)).with_max_tokens(3)).unwrap();
    let first = next_id(&[5]);
    let second = next_id(&[first]);
    assert_eq!(done.tokens, [first, second, next_id(&[second])]);
    assert_eq!(done.finish_reason, Some(FinishReason::Length));
    assert_eq!(done.usage, Usage::new(20, 3));
    // 8 + 8 + 4 tokens of the prompt, and two of the answer.
    assert_eq!(model.counters(), Counters::new(5, 22));
}

#[test]
fn text_is_that_of_the_tokens() {
    let story = "Once upon a time, a frog said “hi” – 123.";
    let script = ids(story);
    let model = Setup::default().script(4, script.clone()).load();
    let request = GenerateRequest::new(prompt(200, 4)).with_max_tokens(script.len());
    let done = complete(&model, request).unwrap();
    assert_eq!(done.text, story);
    assert_eq!(done.tokens, script);
}

#[test]
fn a_text_prompt_and_messages_are_encoded() {
    let model = Setup::default().load();
    let done = complete(&model, GenerateRequest::new("Once upon a time").with_max_tokens(1)).unwrap();
    assert_eq!(done.usage.prompt_tokens, ids("Once upon a time").len());
    assert!(model.info().has_chat_template);
    let chat = vec![Message::user("Hello")];
    let expected = text().encode(&Input::Messages(chat.clone())).unwrap().len();
    let done = complete(&model, GenerateRequest::new(chat).with_max_tokens(1)).unwrap();
    assert_eq!(done.usage.prompt_tokens, expected);
}

#[test]
fn an_end_of_sequence_token_ends_it_and_is_not_counted() {
    let eos = text().eos_ids()[0];
    let model = Setup::default().script(4, vec![300, eos, 301, 302]).load();
    let done = complete(&model, GenerateRequest::new(prompt(200, 4))).unwrap();
    assert_eq!((done.tokens, done.finish_reason), (vec![300], Some(FinishReason::Eos)));
    assert_eq!(done.usage, Usage::new(4, 1));
    assert_eq!(model.counters(), Counters::new(2, 5));
    let request = GenerateRequest::new(prompt(200, 4)).with_ignore_eos(true).with_max_tokens(3);
    assert_eq!(complete(&model, request).unwrap().tokens, [300, eos, 301]);
}

#[test]
fn a_stop_text_across_tokens_ends_it_and_is_not_output() {
    let script = ids("Once upon a time there was");
    let model = Setup::default().script(4, script.clone()).load();
    // It begins within one token and ends within another.
    let done = complete(&model, GenerateRequest::new(prompt(200, 4)).with_stop("ce upon a ti")).unwrap();
    assert_eq!((done.text.as_str(), done.finish_reason), ("On", Some(FinishReason::Stop)));
    assert!(done.tokens.len() > 2 && script.starts_with(&done.tokens), "{:?}", done.tokens);
    assert_eq!(done.usage, Usage::new(4, done.tokens.len()));
}

#[test]
fn text_held_back_for_a_stop_text_comes_at_the_end() {
    let script = ids("Once upon");
    let model = Setup::default().script(4, script.clone()).load();
    let request = GenerateRequest::new(prompt(200, 4)).with_stop("Once upon a time").with_max_tokens(script.len());
    let done = complete(&model, request).unwrap();
    assert_eq!((done.text.as_str(), done.finish_reason), ("Once upon", Some(FinishReason::Length)));
}

#[test]
fn generation_stops_at_the_context() {
    let model = Setup { context_length: 10, ..Setup::default() }.load();
    let done = complete(&model, GenerateRequest::new(prompt(200, 7))).unwrap();
    assert_eq!((done.tokens.len(), done.finish_reason), (3, Some(FinishReason::Length)));
    // The token in the last position is not computed.
    assert_eq!(model.counters().forward_tokens, 9);
}

#[test]
fn a_prompt_as_long_as_the_context_leaves_no_room_for_a_token() {
    let model = Setup { context_length: 10, ..Setup::default() }.load();
    let done = complete(&model, GenerateRequest::new(prompt(200, 10))).unwrap();
    assert_eq!((done.usage, done.finish_reason), (Usage::new(10, 0), Some(FinishReason::Length)));
    let error = complete(&model, GenerateRequest::new(prompt(200, 11))).unwrap_err();
    assert!(matches!(error, Error::ContextLengthExceeded { prompt_tokens: 11, context_length: 10 }), "{error}");
    assert_eq!(model.counters(), Counters::default());
    // Logits need no room after the prompt.
    assert_eq!(block_on(model.logits(LogitsRequest::new(prompt(200, 10)))).unwrap(), best(next_id(&[5])));
    let error = block_on(model.logits(LogitsRequest::new(prompt(200, 11)))).unwrap_err();
    assert_eq!(error.code(), "context_length_exceeded");
}

#[test]
fn no_tokens_are_generated_where_none_are_asked_for() {
    let model = Setup::default().load();
    let done = complete(&model, GenerateRequest::new(prompt(200, 7)).with_max_tokens(0)).unwrap();
    assert_eq!((done.usage, done.finish_reason), (Usage::new(7, 0), Some(FinishReason::Length)));
    assert_eq!(done.stats, GenerationStats::default());
    assert_eq!(model.counters(), Counters::default());
}

#[test]
fn prompts_that_cannot_be_computed_are_refused() {
    let model = Setup::default().load();
    for (input, found) in [(vec![], "no tokens"), (vec![5, 896], "token 1 has the id 896")] {
        let error = complete(&model, GenerateRequest::new(input.clone())).unwrap_err();
        assert_eq!(error.code(), "invalid_spec");
        assert!(error.to_string().contains(found), "{error}");
        let error = block_on(model.logits(LogitsRequest::new(input))).unwrap_err();
        assert!(error.to_string().contains(found), "{error}");
    }
    let invalid = GenerateRequest::new(prompt(200, 2)).with_sampling(Sampling::default().with_top_p(2.0));
    assert!(complete(&model, invalid).unwrap_err().to_string().contains("top_p"));
    assert_eq!(model.counters(), Counters::default());
}

#[test]
fn ids_that_the_tokenizer_does_not_have_are_not_generated() {
    let logits = |_: &[u32]| {
        let mut logits = best(300);
        logits[text().token_count()] = 20.0;
        logits
    };
    let model = Setup { logits: Box::new(logits), ..Setup::default() }.load();
    let done = complete(&model, GenerateRequest::new(prompt(200, 2)).with_max_tokens(1)).unwrap();
    assert_eq!(done.tokens, [300]);
    // Logits are given as the model computed them.
    assert_eq!(block_on(model.logits(LogitsRequest::new(prompt(200, 2)))).unwrap(), logits(&[]));
}

#[test]
fn the_same_seed_gives_the_same_tokens() {
    let model = Setup::default().load();
    let tokens = |seed| {
        let sampling = Sampling::default().with_temperature(9.0).with_seed(seed);
        let request = GenerateRequest::new(prompt(200, 2)).with_ignore_eos(true).with_max_tokens(30);
        complete(&model, request.with_sampling(sampling)).unwrap().tokens
    };
    assert_eq!(tokens(1), tokens(1));
    assert_ne!(tokens(1), tokens(2));
}

#[test]
fn times_are_those_of_its_own_steps() {
    let clock = Arc::new(AtomicU64::new(77));
    let ticking = clock.clone();
    let setup = Setup { clock, ..Setup::default() };
    // Ten milliseconds a token.
    let model = setup
        .hook(move |step| {
            ticking.fetch_add(10 * step.tokens as u64, Relaxed);
            Ok(())
        })
        .load();
    let done = complete(&model, GenerateRequest::new(prompt(200, 20)).with_max_tokens(4)).unwrap();
    assert_eq!(done.stats.time_to_first_token, Some(Duration::from_millis(200)));
    assert_eq!((done.stats.prefill, done.stats.prefill_tokens), (Duration::from_millis(200), 20));
    assert_eq!((done.stats.decode, done.stats.decode_tokens), (Duration::from_millis(30), 3));
    assert_eq!(done.stats.load, None);
}

#[test]
fn what_the_worker_does_not_offer_is_refused_by_name() {
    let model = Setup::default().load();
    let session = GenerateRequest::new("x").with_session(SessionId::new("chat-1"));
    let error = next(&mut model.generate(session)).unwrap().unwrap_err();
    assert!(matches!(&error, Error::Unsupported { what, .. } if what.contains("chat-1")), "{error}");
    let adapters = GenerateRequest::new("x").with_adapters(AdapterSet::new());
    let error = next(&mut model.generate(adapters)).unwrap().unwrap_err();
    assert!(matches!(&error, Error::Unsupported { what, .. } if what.contains("adapters")), "{error}");
    let adapters = LogitsRequest::new("x").with_adapters(AdapterSet::new());
    assert_eq!(block_on(model.logits(adapters)).unwrap_err().code(), "unsupported");
    assert_eq!(block_on(model.set_adapters(AdapterSet::new())).unwrap_err().code(), "unsupported");
    block_on(model.end_session(SessionId::new("chat-1"))).unwrap();
}
