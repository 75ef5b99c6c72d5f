//! Frequencies that change with the length: the original context of this variant, 40 tokens, is between the lengths of
//! the reference's two prompts.

use std::{collections::BTreeMap, sync::Arc};

use llm_local_core::{
    Completion, GenerateRequest, InferenceBackend, LoadedModel, LogitsRequest, ModelWeights, SessionId, SessionState,
};
use pollster::block_on;

use super::*;
use crate::MlxBackend;

const ORIGINAL: usize = 40;
const NAME: &str = "arch-phi3.longrope";
/// A cache that grew token by token against one chunk: 1.4e-5 was measured. Other factors make more than 0.1.
const SAME: f32 = 4e-5;

fn model() -> Decoder {
    load(&checkpoint("arch-phi3", Some(NAME)), ComputeDtype::F32)
}

/// The same behind a worker.
fn served() -> Arc<dyn LoadedModel> {
    let folder = fixture("models/arch-phi3");
    let mut files: BTreeMap<_, _> = ["model.safetensors", "tokenizer.json", "tokenizer_config.json"]
        .map(|name| (name.to_owned(), folder.join(name)))
        .into();
    files.insert("config.json".into(), fixture(&format!("models/variants/{NAME}.config.json")));
    let checkpoint = Checkpoint::open(NAME, &files).unwrap();
    let weights = ModelWeights::new(checkpoint.info, Some(checkpoint.tensors), checkpoint.text);
    block_on(MlxBackend::new().load(weights, options(256, ComputeDtype::F32))).unwrap()
}

fn rows() -> [Row; 2] {
    Reference::open(NAME).rows.try_into().ok().unwrap()
}

fn request(prompt: &[u32], count: usize) -> GenerateRequest {
    GenerateRequest::new(prompt.to_vec()).with_max_tokens(count).with_ignore_eos(true)
}

/// A turn of a session, with the tokens that it computed.
fn turn(model: &Arc<dyn LoadedModel>, prompt: &[u32], count: usize) -> (Completion, usize) {
    let before = model.counters().forward_tokens;
    let done =
        block_on(model.generate(request(prompt, count).with_session(SessionId::new("chat"))).complete()).unwrap();
    fresh(model, prompt, &done.tokens);
    let uses = done.stats.prefill_tokens + done.stats.decode_tokens;
    let computed = (model.counters().forward_tokens - before) as usize;
    // Those of the check above, each computed alone.
    let checked: usize = (0..count).map(|i| prompt.len() + i).sum();
    assert_eq!(computed - checked, uses);
    (done, uses)
}

/// Checks that each of `generated` is the best after the tokens before it, computed on their own.
#[track_caller]
fn fresh(model: &Arc<dyn LoadedModel>, prompt: &[u32], generated: &[u32]) {
    let mut tokens = prompt.to_vec();
    for id in generated {
        let logits = block_on(model.logits(LogitsRequest::new(tokens.clone()))).unwrap();
        assert_eq!(best(&logits), *id, "after {} tokens", tokens.len());
        tokens.push(*id);
    }
}

#[test]
fn logits_are_those_of_a_fresh_computation_at_every_length() {
    on_thread(|| {
        let (mut model, [_, long]) = (model(), rows());
        let vocab = long.logits.len();
        let all = long.all.unwrap();
        let mut cache = model.new_cache(35).unwrap();
        prefill(&mut model, &mut cache, &long.prompt[..35], 0, 7, None);
        for position in 35..long.prompt.len() {
            let length = position + 1;
            if !model.holds(&cache, length) {
                assert_eq!(length, ORIGINAL + 1);
                // Not in silence: whoever has the tokens decides when to compute them.
                let error = model.forward(&mut cache, &[1], position, None).unwrap_err().to_string();
                assert!(error.contains("41 tokens") && error.contains("new one"), "{error}");
                cache = model.new_cache(length).unwrap();
                prefill(&mut model, &mut cache, &long.prompt[..position], 0, 7, None);
            }
            let logits = model.forward(&mut cache, &[long.prompt[position]], position, None).unwrap();
            let mut alone = model.new_cache(length).unwrap();
            let expected = prefill(&mut model, &mut alone, &long.prompt[..length], 0, usize::MAX, None);
            let error = difference(&logits, &expected);
            assert!(error < SAME, "{length} tokens: {error}");
            if length > ORIGINAL {
                assert!(difference(&logits, &all[position * vocab..][..vocab]) < 1e-3, "{length} tokens");
            } else {
                assert!(difference(&logits, &all[position * vocab..][..vocab]) > 0.1, "short ones are others");
            }
        }
    });
}

#[test]
fn a_chat_over_the_original_context_is_computed_anew_once() {
    let (model, [_, long]) = (served(), rows());
    let mut chat = long.prompt[..35].to_vec();
    // Within an answer: 35, then 5 one by one, then 41 for the next, and 3.
    let (done, computed) = turn(&model, &chat, 10);
    assert_eq!((done.usage.cached_tokens, computed), (0, 35 + 5 + 41 + 3));
    chat.extend(&done.tokens);
    chat.extend([9, 8, 7]);
    let (done, computed) = turn(&model, &chat, 4);
    assert_eq!((done.usage.cached_tokens, computed), (44, 4 + 3));
    // Cut, and still long.
    let other = [&chat[..30], &long.prompt[..12]].concat();
    let (done, computed) = turn(&model, &other, 4);
    assert_eq!((done.usage.cached_tokens, computed), (30, 12 + 3));
    // Between two answers, and back.
    let (done, computed) = turn(&model, &chat[..20], 2);
    assert_eq!((done.usage.cached_tokens, computed), (0, 20 + 1));
    let (done, computed) = turn(&model, &chat, 2);
    assert_eq!((done.usage.cached_tokens, computed), (0, chat.len() + 1));
    assert_eq!(turn(&model, &chat, 2).1, 1 + 1);
}

/// What is left of a long prompt that was cancelled, as a session keeps it: computed as a part of it.
#[test]
fn a_short_prompt_after_a_long_one_that_was_cancelled_has_the_logits_of_a_short_one() {
    let [short, long] = rows();
    let tokens = [&short.prompt[..4], &long.prompt[..38]].concat();
    let prompt = tokens.clone();
    let left = on_thread(move || left_of(&prompt));

    let model = served();
    let session = SessionId::new("chat");
    let import = || block_on(model.import_session(&session, left.clone())).unwrap();
    import();
    let (done, computed) = turn(&model, &short.prompt, 32);
    assert_eq!((done.tokens, done.usage.cached_tokens, computed), (short.greedy, 0, 5 + 31));
    // As a part of the long one, it is of use.
    import();
    let (done, computed) = turn(&model, &tokens, 2);
    assert_eq!((done.usage.cached_tokens, computed), (16, 26 + 1));
}

/// What a long prompt that was cancelled after 16 tokens leaves. Whatever becomes of its cache, it is one of a long sequence.
fn left_of(tokens: &[u32]) -> SessionState {
    let mut model = model();
    let mut cache = model.new_cache(tokens.len()).unwrap();
    prefill(&mut model, &mut cache, &tokens[..16], 0, 8, None);
    let (metadata, tensors) = model.export_cache(&cache).unwrap();
    let left = SessionState::new(tokens[..16].to_vec(), metadata, tensors);

    assert!(model.truncate(&mut cache, 4).unwrap());
    assert!(!model.holds(&cache, 5) && model.holds(&cache, 41));
    let restored = model.import_cache(&left).unwrap();
    let copy = model.copy_cache(&restored).unwrap();
    for cache in [&cache, &restored, &copy] {
        assert!(!model.holds(cache, ORIGINAL) && model.holds(cache, ORIGINAL + 1));
    }
    left
}
