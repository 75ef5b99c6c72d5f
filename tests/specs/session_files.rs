//! Chats in files: what goes on after a restart, and what is refused.

#![cfg(all(feature = "candle", feature = "local"))]

use std::path::{Path, PathBuf};

use crate::common::{engine, fixture, fixture_ref, tiny};
use llm_local::{
    AdapterPolicy, ArtifactRef, ComputeDtype, ContextLength, Error, FinishReason, ModelSpec, Session, TurnOptions,
};
use llm_local::{BackendPreference, Completion, Engine, GenerateRequest, Message, SavedCache};
use llm_local::{
    GenerationEvent,
    core::{
        Capabilities, DeviceInfo, DeviceKind, FloatType, Generation, GenerationStats, LoadedInfo, LoadedModel,
        MemoryEstimate, MemoryReport, SessionState, SessionTensor, Support, Usage,
    },
};
use llm_local_testkit::{
    fakes::FakeBackend,
    mocks::{MockInferenceBackend, MockLoadedModel},
};
use pollster::block_on;

const QUESTIONS: [&str; 3] = ["Tell me a story about a frog.", "And then?", "Who was that?"];

fn options() -> TurnOptions {
    TurnOptions::new().with_max_tokens(24)
}

/// A chat of two turns in a file, and what a third one would say.
async fn saved(spec: &ModelSpec, folder: &Path) -> (PathBuf, Vec<Message>, Completion) {
    let path = folder.join("chat.safetensors");
    let engine = engine();
    let mut session = engine.session(spec);
    session.set_system_prompt("Tell stories.");
    for question in &QUESTIONS[..2] {
        session.complete(*question, options()).await.unwrap();
    }
    assert!(matches!(session.save(&path).await.unwrap(), SavedCache::Kept));
    let messages = session.messages().to_vec();
    let third = session.complete(QUESTIONS[2], options()).await.unwrap();
    assert!(third.usage.cached_tokens > 0);
    (path, messages, third)
}

/// A folder with the files of `model`, of which `edit` changes the weights.
fn copy(model: &str, edit: impl FnOnce(&mut Vec<u8>)) -> (tempfile::TempDir, ModelSpec) {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(fixture(model)).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let weights = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    edit(&mut bytes);
    std::fs::write(&weights, bytes).unwrap();
    let spec = ModelSpec::new(ArtifactRef::file(folder.path()).unwrap());
    (folder, spec)
}

async fn refusal(engine: &Engine, spec: &ModelSpec, path: &Path) -> String {
    let error = engine.restore_session(spec, path).await.unwrap_err();
    assert!(matches!(error, Error::InvalidSpec { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("chat.safetensors") && text.contains("restore its messages alone"), "{text}");
    text
}

#[test]
fn a_restored_chat_goes_on_in_a_new_engine_and_computes_only_what_is_new() {
    let folder = tempfile::tempdir().unwrap();
    block_on(async {
        for spec in [tiny(None), tiny(Some("peft")), tiny(None).with_dtype(ComputeDtype::Bf16)] {
            let (path, messages, third) = saved(&spec, folder.path()).await;
            let engine = engine();
            let mut session = engine.restore_session(&spec, &path).await.unwrap();
            assert_eq!((session.messages(), session.system_prompt()), (&*messages, Some("Tell stories.")));
            let model = engine.load(&spec).await.unwrap();
            assert_eq!(model.counters().forward_tokens, 0);
            let answer = session.complete(QUESTIONS[2], options()).await.unwrap();
            assert_eq!((&answer.tokens, answer.usage), (&third.tokens, third.usage));
            let new = third.usage.prompt_tokens - third.usage.cached_tokens;
            let generated = answer.tokens.len() - usize::from(answer.finish_reason == Some(FinishReason::Length));
            assert_eq!(model.counters().forward_tokens as usize, new + generated);
        }
    });
}

#[test]
fn the_same_model_in_another_folder_takes_it() {
    let folder = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, _, third) = saved(&tiny(None), folder.path()).await;
        let (_keep, moved) = copy("models/tiny-llama", |_| {});
        let mut session = engine().restore_session(&moved, &path).await.unwrap();
        let answer = session.complete(QUESTIONS[2], options()).await.unwrap();
        assert_eq!((&answer.tokens, answer.usage), (&third.tokens, third.usage));
    });
}

#[test]
fn another_base_or_adapter_is_refused_with_both_digests_and_takes_the_messages_alone() {
    let folder = tempfile::tempdir().unwrap();
    block_on(async {
        let engine = engine();
        let (path, messages, _) = saved(&tiny(Some("peft")), folder.path()).await;
        let (_keep, other_base) = copy("models/tiny-llama", |weights| *weights.last_mut().unwrap() ^= 1);
        let other_base = other_base.with_adapter(tiny(Some("peft")).adapters[0].reference.clone());
        let lighter = tiny(None).with_weighted_adapter(tiny(Some("peft")).adapters[0].reference.clone(), 0.5);
        let original = engine.load(&tiny(Some("peft"))).await.unwrap().digest().await.unwrap();
        for spec in [other_base, tiny(None), tiny(Some("rslora")), lighter] {
            let digest = engine.load(&spec).await.unwrap().digest().await.unwrap();
            let text = refusal(&engine, &spec, &path).await;
            let (was, is) = match digest.base == original.base {
                false => (&original.base, &digest.base),
                true => (&original.adapters, &digest.adapters),
            };
            assert_ne!(was, is);
            let is = if is.is_empty() { "has none" } else { is };
            assert!(text.contains(was.as_str()) && text.contains(is), "{text}");
            let mut session = engine.restore_messages(&spec, &path).await.unwrap();
            assert_eq!(session.messages(), messages);
            let chat = [Message::system("Tell stories.")].into_iter().chain(messages.clone());
            let chat: Vec<_> = chat.chain([Message::user(QUESTIONS[2])]).collect();
            let request = GenerateRequest::new(chat).with_max_tokens(24);
            let expected = engine.generate(&spec, request).await.unwrap().complete().await.unwrap();
            let answer = session.complete(QUESTIONS[2], options()).await.unwrap();
            assert_eq!((answer.tokens, answer.usage.cached_tokens), (expected.tokens, 0));
        }
    });
}

#[test]
fn a_cache_of_weights_that_were_quantized_again_is_not_one_of_the_same_adapters_beside_them() {
    let folder = tempfile::tempdir().unwrap();
    let with = |policy| {
        let spec = ModelSpec::new(fixture_ref("gguf/tiny-llama-q4_0.gguf")).with_adapter_policy(policy);
        spec.with_adapter(fixture_ref("adapters/tiny-llama-lora-peft"))
    };
    let specs = [AdapterPolicy::KeepUnmerged, AdapterPolicy::MergeRequantized { max_error: 1.0 }].map(with);
    block_on(async {
        for (of, other) in [(0, 1), (1, 0)] {
            let (path, ..) = saved(&specs[of], folder.path()).await;
            let text = refusal(&engine(), &specs[other], &path).await;
            assert!(text.contains("adapters are") && text.contains("+requantized"), "{text}");
            engine().restore_session(&specs[of], &path).await.unwrap();
        }
    });
}

#[test]
fn another_backend_dtype_or_shorter_context_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let registry = llm_local::builtin::registry().unwrap().with_backend(std::sync::Arc::new(FakeBackend::new("fake")));
    let engine = Engine::builder().registry(registry).cache_dir(env!("CARGO_TARGET_TMPDIR")).build().unwrap();
    block_on(async {
        let (path, ..) = saved(&tiny(None).with_dtype(ComputeDtype::F32), folder.path()).await;
        for (spec, parts) in [
            (tiny(None).with_backend(BackendPreference::Named("fake".into())), ["backend is candle", "has fake"]),
            (tiny(None).with_dtype(ComputeDtype::F16), ["dtype is f32", "has f16"]),
            (tiny(None).with_dtype(ComputeDtype::F32).with_context_length(ContextLength::Tokens(32)), ["32", "512"]),
        ] {
            let text = refusal(&engine, &spec, &path).await;
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        }
    });
}

#[test]
fn what_has_no_cache_is_saved_and_restored_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.safetensors");
    let engine = engine();
    let spec = tiny(None);
    block_on(async {
        // Before the first turn: any model may answer.
        let mut session = engine.session(&spec);
        session.set_system_prompt("s");
        session.push(Message::user("a"));
        assert!(matches!(session.save(&path).await.unwrap(), SavedCache::Absent));
        let restored = engine.restore_session(&tiny(Some("peft")), &path).await.unwrap();
        assert_eq!((restored.messages(), restored.system_prompt()), (session.messages(), Some("s")));
        // After an unload.
        session.complete(QUESTIONS[0], options()).await.unwrap();
        engine.unload(&spec).await.unwrap();
        assert!(matches!(session.save(&path).await.unwrap(), SavedCache::Absent));
        let text = refusal(&engine, &tiny(Some("peft")), &path).await;
        assert!(text.contains("adapters are none"), "{text}");
        let mut restored = engine.restore_session(&spec, &path).await.unwrap();
        assert_eq!(restored.messages(), session.messages());
        let answer = restored.complete(QUESTIONS[1], options()).await.unwrap();
        assert_eq!(answer.usage.cached_tokens, 0);
    });
}

#[test]
fn a_damaged_file_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    block_on(async {
        let (path, ..) = saved(&tiny(None), folder.path()).await;
        let bytes = std::fs::read(&path).unwrap();
        let engine = engine();
        let model = engine.load(&tiny(None)).await.unwrap();
        let mut edited = bytes.clone();
        *edited.last_mut().unwrap() ^= 1;
        for damaged in [&bytes[..bytes.len() - 1], &bytes[..bytes.len() / 2], &bytes[..100], &edited] {
            std::fs::write(&path, damaged).unwrap();
            let error = engine.restore_session(&tiny(None), &path).await.unwrap_err();
            assert_eq!(error.code(), "integrity_failed", "{error}");
            assert!(error.to_string().contains("chat.safetensors"), "{error}");
            assert!(engine.restore_messages(&tiny(None), &path).await.is_err());
        }
        assert_eq!(model.memory().kv_cache, 0);
        std::fs::write(&path, &bytes).unwrap();
        engine.restore_session(&tiny(None), &path).await.unwrap();
    });
}

#[test]
fn a_chat_is_saved_without_its_cache_if_the_files_of_its_model_are_gone_or_changed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.safetensors");
    let change: fn(&Path) = |file| std::fs::write(file, "{}").unwrap();
    let remove: fn(&Path) = |file| std::fs::remove_file(file).unwrap();
    block_on(async {
        for (why, edit) in [("config.json has changed since", change), ("cannot open", remove)] {
            let (keep, spec) = copy("models/tiny-llama", |_| {});
            let engine = engine();
            let mut session: Session = engine.session(&spec);
            session.set_system_prompt("Tell stories.");
            session.complete("Hello.", options()).await.unwrap();
            let config = keep.path().join("config.json");
            let original = std::fs::read(&config).unwrap();
            edit(&config);
            let SavedCache::Left(reason) = session.save(&path).await.unwrap() else { panic!("{why}: not left") };
            assert!(reason.to_string().contains(why), "{reason}");
            // Also for the model that it was, since nothing tells.
            std::fs::write(&config, original).unwrap();
            for spec in [&spec, &tiny(None)] {
                let text = refusal(&engine, spec, &path).await;
                assert!(text.contains("which model answered") && text.contains(why), "{text}");
                let mut restored = engine.restore_messages(spec, &path).await.unwrap();
                assert_eq!(
                    (restored.messages(), restored.system_prompt()),
                    (session.messages(), Some("Tell stories."))
                );
                assert_eq!(restored.complete(QUESTIONS[1], options()).await.unwrap().usage.cached_tokens, 0);
            }
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    });
}

#[test]
fn a_renamed_gguf_file_takes_it() {
    let folder = tempfile::tempdir().unwrap();
    let spec = |name: &str| ModelSpec::new(ArtifactRef::file(folder.path().join(name)).unwrap());
    std::fs::copy(fixture("gguf/tiny-llama-q8_0.gguf"), folder.path().join("model.gguf")).unwrap();
    block_on(async {
        let (path, _, third) = saved(&spec("model.gguf"), folder.path()).await;
        std::fs::rename(folder.path().join("model.gguf"), folder.path().join("other.gguf")).unwrap();
        let mut session = engine().restore_session(&spec("other.gguf"), &path).await.unwrap();
        let answer = session.complete(QUESTIONS[2], options()).await.unwrap();
        assert_eq!((&answer.tokens, answer.usage), (&third.tokens, third.usage));
    });
}

/// An engine whose backend answers "hi" and exports `state`.
fn exporting(state: impl Fn() -> llm_local::Result<SessionState> + Clone + Send + Sync + 'static) -> Engine {
    let device = || DeviceInfo::new("cpu", DeviceKind::Cpu, "a processor");
    let mut backend = MockInferenceBackend::new();
    backend.expect_name().return_const("mock".to_owned());
    backend.expect_devices().returning(move || Ok(vec![device()]));
    backend.expect_supports().returning(|_, _| Support::Yes(Capabilities::new().with_sessions(true)));
    backend.expect_estimate().returning(|_, _| Ok(MemoryEstimate::new(1, 1)));
    backend.expect_load().returning(move |_, _| {
        let mut model = MockLoadedModel::new();
        let info = LoadedInfo::new("m", "mock", device(), FloatType::F32, 64, 2);
        model.expect_info().returning(move || info.clone());
        model.expect_generate().returning(|_| {
            let end = GenerationEvent::finished(FinishReason::Eos, Usage::new(1, 1), GenerationStats::default());
            Generation::new(futures_util::stream::iter([GenerationEvent::token(1, "hi"), end].map(Ok)))
        });
        let state = state.clone();
        model.expect_export_session().returning(move |_| state());
        model.expect_end_session().returning(|_| Ok(()));
        model.expect_memory().returning(|| MemoryReport::new(1, 1));
        Ok(std::sync::Arc::new(model) as std::sync::Arc<dyn LoadedModel>)
    });
    let registry = llm_local::builtin::registry().unwrap().with_backend(std::sync::Arc::new(backend));
    Engine::builder().registry(registry).cache_dir(env!("CARGO_TARGET_TMPDIR")).build().unwrap()
}

#[test]
fn a_chat_whose_backend_cannot_give_its_cache_is_saved_and_restored_without() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.safetensors");
    let spec = tiny(None).with_backend(BackendPreference::Named("mock".into()));
    let broken = || {
        let short = SessionTensor::new("keys", FloatType::F32, vec![2], vec![0; 7]);
        Ok(SessionState::new(vec![1], Default::default(), vec![short]))
    };
    let engines = [(exporting(|| Err(Error::generation("on purpose"))), "on purpose"), (exporting(broken), "7 bytes")];
    for (engine, why) in engines {
        block_on(async {
            let mut session = engine.session(&spec);
            session.complete("Hello.", options()).await.unwrap();
            let SavedCache::Left(reason) = session.save(&path).await.unwrap() else { panic!("{why}: not left") };
            assert!(reason.to_string().contains(why), "{reason}");
            let restored = engine.restore_session(&spec, &path).await.unwrap();
            assert_eq!(restored.messages(), [Message::user("Hello."), Message::assistant("hi")]);
            // It still tells its model.
            refusal(&engine, &tiny(Some("peft")), &path).await;
        });
    }
}
