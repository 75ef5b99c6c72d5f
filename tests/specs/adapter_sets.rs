//! Adapters of a model that is loaded: swapped, added, given other weights, taken away, and named by requests, against
//! transformers + PEFT in f32.

#![cfg(all(feature = "candle", feature = "local"))]

use std::sync::Arc;

use crate::common::{engine, fixture, fixture_ref, max_difference, reference, tiny};
use llm_local::{
    AdapterLimits, AdapterPolicy, AdapterSet, AdapterSpec, ArtifactRef, BackendPreference, ComputeDtype, Engine, Error,
    GenerateRequest, LogitsRequest, Model, ModelSpec, SavedCache, TurnOptions, UsedAdapter,
    core::{Allowance, Generation, SessionId},
};
use pollster::block_on;
use safetensors::{SafeTensors, tensor::TensorView};

/// The largest difference that there may be to a reference, or to the same sum computed in another order.
const BOUND: f32 = 2e-5;

const PEFT: &str = "tiny-llama__tiny-llama-lora-peft";
const RSLORA: &str = "tiny-llama__tiny-llama-lora-rslora";

fn adapter(name: &str) -> AdapterSpec {
    AdapterSpec::new(fixture_ref(&format!("adapters/tiny-llama-lora-{name}")))
}

/// tiny-llama with adapters beside its weights.
fn beside(adapter: Option<&str>) -> ModelSpec {
    tiny(adapter).with_dtype(ComputeDtype::F32).with_adapter_policy(AdapterPolicy::KeepUnmerged)
}

fn load(engine: &Engine, spec: &ModelSpec) -> Model {
    block_on(engine.load(spec)).unwrap()
}

fn set(engine: &Engine, model: &Model, adapters: &[AdapterSpec]) -> AdapterSet {
    block_on(engine.adapter_set(model, adapters)).unwrap()
}

/// The logits after the first prompt of the references, with the model's own adapters or those of `set`.
fn logits(model: &Model, set: Option<&AdapterSet>) -> Vec<f32> {
    let request = LogitsRequest::new(reference(PEFT).cases[0].prompt_ids.clone());
    let request = match set {
        Some(set) => request.with_adapters(set.clone()),
        None => request,
    };
    block_on(model.logits(request)).unwrap()
}

/// Checks all prompts of the reference `name`.
fn is_as(name: &str, model: &Model, set: Option<&AdapterSet>) {
    for case in reference(name).cases {
        let request = LogitsRequest::new(case.prompt_ids);
        let request = match set {
            Some(set) => request.with_adapters(set.clone()),
            None => request,
        };
        let difference = max_difference(&block_on(model.logits(request)).unwrap(), &case.logits);
        assert!(difference <= BOUND, "{name}: {difference}");
    }
}

fn is_near(found: &[f32], expected: &[f32]) {
    let difference = max_difference(found, expected);
    assert!(difference <= BOUND, "{difference}");
}

fn prompt() -> GenerateRequest {
    GenerateRequest::new(reference(PEFT).cases[2].prompt_ids.clone()).with_max_tokens(24).with_ignore_eos(true)
}

fn named(used: &[UsedAdapter]) -> Vec<(String, f32)> {
    used.iter().map(|used| (used.reference.to_string(), used.weight)).collect()
}

fn names(adapters: &[AdapterSpec]) -> Vec<(String, f32)> {
    adapters.iter().map(|adapter| (adapter.reference.to_string(), adapter.weight)).collect()
}

/// The adapters that a generation says it ran with.
fn ran(generation: Generation) -> Vec<(String, f32)> {
    named(&block_on(generation.complete()).unwrap().stats.adapters)
}

fn refused(error: Error, parts: &[&str]) {
    assert!(matches!(error, Error::AdapterMergeFailed { .. }), "{error}");
    let text = error.to_string();
    assert!(parts.iter().all(|part| text.contains(part)), "{text}");
}

#[test]
fn a_swap_gives_the_other_adapter_and_back() {
    let engine = engine();
    let model = load(&engine, &beside(Some("peft")));
    is_as(PEFT, &model, None);
    for (name, reference) in [("rslora", RSLORA), ("peft", PEFT)] {
        block_on(engine.set_adapters(&model, &[adapter(name)])).unwrap();
        is_as(reference, &model, None);
        assert_eq!(named(&block_on(model.adapters())), names(&[adapter(name)]));
    }
    // What is swapped in was not loaded again.
    assert!(load(&engine, &beside(Some("peft"))).is_same(&model));
}

#[test]
fn no_adapters_give_the_logits_of_the_base_bit_for_bit() {
    let engine = engine();
    let base = logits(&load(&engine, &beside(None)), None);
    let model = load(&engine, &beside(Some("peft")));
    assert_eq!(logits(&model, Some(&AdapterSet::new())), base);
    block_on(model.set_adapters(AdapterSet::new())).unwrap();
    assert_eq!(logits(&model, None), base);
    assert!(block_on(model.adapters()).is_empty());
    is_as("tiny-llama", &model, None);
}

#[test]
fn adapters_are_added_and_given_other_weights() {
    let engine = engine();
    let model = load(&engine, &beside(Some("peft")));
    for all in [
        vec![adapter("peft"), adapter("rslora")],
        vec![adapter("peft").with_weight(0.5), adapter("rslora").with_weight(-0.25)],
        vec![adapter("rslora").with_weight(2.0)],
    ] {
        block_on(engine.set_adapters(&model, &all)).unwrap();
        // Merged, the same sum goes another way.
        let spec = tiny(None).with_dtype(ComputeDtype::F32);
        let merged = all.iter().fold(spec, |spec, a| spec.with_weighted_adapter(a.reference.clone(), a.weight));
        is_near(&logits(&model, None), &logits(&load(&engine, &merged), None));
        assert_eq!(ran(model.generate(prompt())), names(&all));
    }
    // Of the set that there is, without reading anything again.
    let both = set(&engine, &model, &[adapter("peft"), adapter("rslora")]);
    let alone = AdapterSet::new().with(both.adapters[0].0.clone(), 1.0);
    block_on(model.set_adapters(alone)).unwrap();
    is_as(PEFT, &model, None);
    assert_eq!(ran(model.generate(prompt())), names(&[adapter("peft")]));
}

#[test]
fn a_base_that_was_loaded_alone_takes_adapters() {
    let engine = engine();
    let model = load(&engine, &tiny(None).with_dtype(ComputeDtype::F32));
    block_on(engine.set_adapters(&model, &[adapter("rslora")])).unwrap();
    is_as(RSLORA, &model, None);
}

#[test]
fn adapters_of_every_format_are_set_on_bases_of_every_format() {
    let engine = engine();
    for base in [beside(None), ModelSpec::new(fixture_ref("gguf/tiny-llama-bf16.gguf")).with_dtype(ComputeDtype::F32)] {
        let model = load(&engine, &base);
        for path in
            ["adapters/tiny-llama-lora-peft", "adapters/tiny-llama-lora-mlx", "gguf/tiny-llama-lora-peft-f32.gguf"]
        {
            let spec = [AdapterSpec::new(fixture_ref(path))];
            is_as(PEFT, &model, Some(&set(&engine, &model, &spec)));
            block_on(engine.set_adapters(&model, &spec)).unwrap();
            is_as(PEFT, &model, None);
        }
    }
}

#[test]
fn a_request_has_the_set_that_it_names_while_the_model_has_another() {
    let engine = engine();
    let model = load(&engine, &beside(Some("peft")));
    let half = [adapter("rslora").with_weight(0.5)];
    let (rslora, halved) = (set(&engine, &model, &[adapter("rslora")]), set(&engine, &model, &half));
    is_as(RSLORA, &model, Some(&rslora));
    is_as("tiny-llama", &model, Some(&AdapterSet::new()));
    is_as(PEFT, &model, None);
    // All at once.
    let generations = [
        (model.generate(prompt().with_adapters(rslora.clone())), names(&[adapter("rslora")])),
        (model.generate(prompt()), names(&[adapter("peft")])),
        (model.generate(prompt().with_adapters(halved)), names(&half)),
        (model.generate(prompt().with_adapters(AdapterSet::new())), names(&[])),
    ];
    for (generation, expected) in generations {
        assert_eq!(ran(generation), expected);
    }
    let greedy = |request| block_on(model.generate(request).complete()).unwrap().tokens;
    let alone = load(&engine, &beside(Some("rslora")));
    let expected = block_on(alone.generate(prompt()).complete()).unwrap().tokens;
    assert_eq!(greedy(prompt().with_adapters(rslora)), expected);
    assert_ne!(greedy(prompt()), expected);
}

#[test]
fn a_running_generation_keeps_its_adapters_while_others_are_set() {
    let engine = engine();
    let model = load(&engine, &beside(Some("peft")));
    let expected = |adapter: &str| {
        // By another engine: in this one, the spec means the model whose adapters are replaced.
        let model = load(&crate::common::engine(), &beside(Some(adapter)));
        block_on(model.generate(prompt()).complete()).unwrap().tokens
    };
    assert_ne!(expected("peft"), expected("rslora"));
    block_on(async {
        let mut running = model.generate(prompt());
        let mut tokens = crate::common::first_tokens(&mut running, 4).await;
        engine.set_adapters(&model, &[adapter("rslora")]).await.unwrap();
        let after = model.generate(prompt()).complete().await.unwrap();
        let rest = running.complete().await.unwrap();
        tokens.extend(rest.tokens);
        assert_eq!((tokens, named(&rest.stats.adapters)), (expected("peft"), names(&[adapter("peft")])));
        assert_eq!((after.tokens, named(&after.stats.adapters)), (expected("rslora"), names(&[adapter("rslora")])));
    });
}

#[test]
fn a_swap_that_nobody_waits_for_is_made_in_its_place_of_the_line() {
    let engine = engine();
    let model = load(&engine, &beside(Some("peft")));
    let rslora = set(&engine, &model, &[adapter("rslora")]);
    let before = model.generate(prompt());
    let mut swap = Box::pin(model.set_adapters(rslora));
    // Once: it is in line, and given up.
    let polled = block_on(std::future::poll_fn(|cx| std::task::Poll::Ready(swap.as_mut().poll(cx).is_ready())));
    drop(swap);
    let after = model.generate(prompt());
    assert_eq!(ran(before), names(&[adapter("peft")]), "{polled}");
    assert_eq!(ran(after), names(&[adapter("rslora")]), "{polled}");
    is_as(RSLORA, &model, None);
}

#[test]
fn a_session_computes_its_chat_anew_under_other_adapters() {
    let engine = engine();
    let model = load(&engine, &beside(Some("peft")));
    let options = || TurnOptions::new().with_max_tokens(8);
    let mut session = engine.session(&beside(Some("peft")));
    block_on(async {
        session.complete("Tell me a story.", options()).await.unwrap();
        assert!(session.complete("And then?", options()).await.unwrap().usage.cached_tokens > 0);
        engine.set_adapters(&model, &[adapter("rslora")]).await.unwrap();
        let anew = session.complete("And then?", options()).await.unwrap();
        assert_eq!(anew.usage.cached_tokens, 0);
        assert_eq!(named(&anew.stats.adapters), names(&[adapter("rslora")]));
        assert!(session.complete("And then?", options()).await.unwrap().usage.cached_tokens > 0);
        // Nor one that a request of the session named.
        let id = SessionId::new("s");
        let half = set(&engine, &model, &[adapter("rslora").with_weight(0.5)]);
        for (set, cached) in [(None, false), (Some(&half), false), (None, true), (Some(&half), true)] {
            let request = prompt().with_session(id.clone());
            let request = set.iter().fold(request, |request, set| request.with_adapters((*set).clone()));
            let usage = model.generate(request).complete().await.unwrap().usage;
            assert_eq!(usage.cached_tokens > 0, cached, "{set:?}");
        }
    });
}

#[test]
fn a_saved_chat_says_which_adapters_answered_and_is_refused_under_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.safetensors");
    let spec = beside(Some("peft"));
    let options = || TurnOptions::new().with_max_tokens(8);
    block_on(async {
        let engine = engine();
        let model = engine.load(&spec).await.unwrap();
        let loaded = model.digest().await.unwrap();
        engine.set_adapters(&model, &[adapter("rslora")]).await.unwrap();
        let swapped = model.digest().await.unwrap();
        assert_eq!(swapped.base, loaded.base);
        assert_ne!(swapped.adapters, loaded.adapters);
        let other = engine.load(&beside(Some("rslora"))).await.unwrap();
        assert_eq!(swapped, other.digest().await.unwrap());

        let mut session = engine.session(&spec);
        session.complete("Tell me a story.", options()).await.unwrap();
        assert!(matches!(session.save(&path).await.unwrap(), SavedCache::Kept));
        // The same adapters by another spec.
        let mut restored = engine.restore_session(&beside(Some("rslora")), &path).await.unwrap();
        assert!(restored.complete("And then?", options()).await.unwrap().usage.cached_tokens > 0);

        engine.set_adapters(&model, &[adapter("peft")]).await.unwrap();
        let error = engine.restore_session(&spec, &path).await.unwrap_err().to_string();
        assert!(error.contains(&swapped.adapters) && error.contains(&loaded.adapters), "{error}");

        // Saved after a swap: of the adapters that answered, without a cache, also where others have computed one.
        let request = prompt().with_session(session.id().clone());
        model.generate(request).complete().await.unwrap();
        assert!(matches!(session.save(&path).await.unwrap(), SavedCache::Absent));
        let error = engine.restore_session(&spec, &path).await.unwrap_err().to_string();
        assert!(error.contains(&swapped.adapters), "{error}");
        engine.set_adapters(&model, &[adapter("rslora")]).await.unwrap();
        let mut restored = engine.restore_session(&spec, &path).await.unwrap();
        assert_eq!(restored.complete("And then?", options()).await.unwrap().usage.cached_tokens, 0);
    });
}

#[test]
fn a_request_to_a_model_that_was_loaded_merged_names_no_adapters_and_is_told_what_to_do() {
    let engine = engine();
    let merged = tiny(Some("peft")).with_dtype(ComputeDtype::F32);
    let declared = tiny(None).with_adapter_policy(AdapterPolicy::MergeDequantized);
    for spec in [merged, declared] {
        let model = load(&engine, &spec);
        let rslora = set(&engine, &model, &[adapter("rslora")]);
        let says = ["rslora", "adapter_policy = \"keep-unmerged\""];
        let request = prompt().with_adapters(rslora.clone());
        refused(block_on(model.generate(request).complete()).unwrap_err(), &says);
        let request = LogitsRequest::new("x").with_adapters(AdapterSet::new());
        refused(block_on(model.logits(request)).unwrap_err(), &says[1..]);
    }
    let model = load(&engine, &tiny(Some("peft")).with_dtype(ComputeDtype::F32));
    is_as(PEFT, &model, None);
    assert_eq!(ran(model.generate(prompt())), names(&[adapter("peft")]));
}

#[test]
fn a_backend_that_runs_no_adapters_beside_weights_is_named() {
    let registry = llm_local::builtin::registry().unwrap();
    let registry = registry.with_backend(Arc::new(llm_local_testkit::fakes::FakeBackend::new("fake")));
    let engine = Engine::builder().registry(registry).cache_dir(env!("CARGO_TARGET_TMPDIR")).build().unwrap();
    let model = load(&engine, &tiny(None).with_backend(BackendPreference::Named("fake".into())));
    refused(block_on(engine.adapter_set(&model, &[adapter("peft")])).unwrap_err(), &["backend `fake` cannot run"]);
}

#[test]
fn an_adapter_that_cannot_be_used_changes_nothing() {
    let engine = engine();
    let model = load(&engine, &beside(Some("peft")));
    let at = |path: &str| AdapterSpec::new(fixture_ref(path));
    for (adapters, parts) in [
        (vec![adapter("rslora"), at("adapters/there-is-none")], vec!["there-is-none"]),
        (vec![at("adapters/arch-qwen2-lora")], vec!["arch-qwen2-lora"]),
        (vec![at("adapters/peft-fan-in-fan-out")], vec!["peft-fan-in-fan-out"]),
        (vec![adapter("peft").with_weight(f32::NAN)], vec!["lora-peft", "weight is NaN"]),
        (vec![adapter("peft").with_weight(0.0)], vec!["lora-peft", "weight is 0"]),
        (vec![AdapterSpec::new("nowhere:x".parse().unwrap())], vec!["nowhere:x"]),
    ] {
        refused(block_on(engine.set_adapters(&model, &adapters)).unwrap_err(), &parts);
    }
    is_as(PEFT, &model, None);
    let (_keep, grown) = with_more_rows();
    block_on(engine.load(&tiny(None).with_adapter(grown.reference.clone()))).unwrap();
    let name = grown.reference.to_string();
    refused(
        block_on(engine.adapter_set(&model, &[grown])).unwrap_err(),
        &[&name, "can only be merged", "vocabulary rows"],
    );
}

#[test]
fn what_is_let_pass_of_an_adapter_in_a_spec_is_let_pass_in_a_set() {
    let (folder, from) = (tempfile::tempdir().unwrap(), fixture("adapters/tiny-llama-lora-peft"));
    let weights = "adapter_model.safetensors";
    std::fs::copy(from.join(weights), folder.path().join(weights)).unwrap();
    let config = std::fs::read_to_string(from.join("adapter_config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["target_modules"].as_array_mut().unwrap().retain(|name| name != "q_proj");
    std::fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    let engine = engine();
    let model = load(&engine, &beside(None));
    let adapter = AdapterSpec::new(ArtifactRef::file(folder.path()).unwrap());
    let error = block_on(engine.adapter_set(&model, std::slice::from_ref(&adapter))).unwrap_err();
    refused(error, &["q_proj", "target_modules"]);
    let allowed = adapter.allowing(Allowance::UndeclaredTensors);
    is_as(PEFT, &model, Some(&set(&engine, &model, &[allowed])));
}

/// An adapter that gives tiny-llama four more rows of vocabulary.
fn with_more_rows() -> (tempfile::TempDir, AdapterSpec) {
    let (folder, from) =
        (tempfile::tempdir().unwrap(), fixture("adapters/tiny-llama-lora-modules-to-save-embed_tokens"));
    std::fs::copy(from.join("adapter_config.json"), folder.path().join("adapter_config.json")).unwrap();
    let bytes = std::fs::read(from.join("adapter_model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let longer = |name: &str, tensor: TensorView<'_>| {
        let (mut shape, mut data) = (tensor.shape().to_vec(), tensor.data().to_vec());
        if name.contains("embed_tokens") {
            data.extend_from_within(..4 * data.len() / shape[0]);
            shape[0] += 4;
        }
        (name.to_owned(), tensor.dtype(), shape, data)
    };
    let all: Vec<_> = tensors.iter().map(|(name, tensor)| longer(name, tensor)).collect();
    let views =
        all.iter().map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, &folder.path().join("adapter_model.safetensors")).unwrap();
    let reference = ArtifactRef::file(folder.path()).unwrap();
    (folder, AdapterSpec::new(reference))
}

#[test]
fn a_set_of_another_model_and_adapters_from_elsewhere_are_refused_by_name() {
    let engine = engine();
    let (model, other) = (load(&engine, &beside(Some("peft"))), load(&engine, &beside(None)));
    let foreign = set(&engine, &other, &[adapter("rslora")]);
    let changed = AdapterSet::new().with(Arc::new((*foreign.adapters[0].0).clone()), 1.0);
    for set in [foreign.clone(), changed] {
        let says = ["lora-rslora", "Engine::adapter_set"];
        refused(block_on(model.set_adapters(set.clone())).unwrap_err(), &says);
        refused(block_on(model.generate(prompt().with_adapters(set.clone())).complete()).unwrap_err(), &says);
        refused(block_on(model.logits(LogitsRequest::new("x").with_adapters(set))).unwrap_err(), &says);
    }
    let weightless = AdapterSet::new().with(foreign.adapters[0].0.clone(), 0.0);
    refused(block_on(other.set_adapters(weightless)).unwrap_err(), &["lora-rslora", "weight is 0"]);
}

#[test]
fn limits_hold_for_specs_and_for_sets_and_are_named() {
    let one = {
        let engine = engine();
        let model = load(&engine, &beside(None));
        set(&engine, &model, &[adapter("peft")]).adapters[0].0.byte_len() as u64
    };
    let limits = AdapterLimits::none();
    let both = [adapter("peft"), adapter("rslora")];
    for (limits, name, allowed) in [
        (limits.with_count(1), "`count` of 1", &both[..1]),
        // peft has rank 8, rslora rank 4.
        (limits.with_rank(7), "`rank` of 7", &both[1..]),
        (limits.with_bytes(one), &*format!("`bytes` of {one}"), &both[..1]),
    ] {
        let engine = Engine::builder().adapter_limits(limits).cache_dir(env!("CARGO_TARGET_TMPDIR")).build().unwrap();
        let with = |adapters: &[AdapterSpec]| {
            adapters.iter().fold(beside(None), |spec, adapter| spec.with_adapter(adapter.reference.clone()))
        };
        let says = [name, "EngineBuilder::adapter_limits"];
        refused(block_on(engine.load(&with(&both))).unwrap_err(), &says);
        let merged = with(&both).with_adapter_policy(AdapterPolicy::MergeDequantized);
        refused(block_on(engine.load(&merged)).unwrap_err(), &says);
        refused(block_on(engine.plan(&merged)).unwrap_err(), &says);
        load(&engine, &with(allowed));
        let model = load(&engine, &beside(None));
        refused(block_on(engine.adapter_set(&model, &both)).unwrap_err(), &says);
        let set = set(&engine, &model, allowed);
        block_on(model.set_adapters(set.clone())).unwrap();
        // Put together from what was made within the limits.
        if !name.contains("rank") {
            let (adapter, _) = &set.adapters[0];
            let twice = AdapterSet::new().with(adapter.clone(), 1.0).with(adapter.clone(), 0.5);
            refused(block_on(model.set_adapters(twice)).unwrap_err(), &says);
        }
    }
}

#[test]
fn what_is_above_a_limit_is_not_read() {
    let (folder, from) = (tempfile::tempdir().unwrap(), fixture("adapters/tiny-llama-lora-peft"));
    std::fs::copy(from.join("adapter_config.json"), folder.path().join("adapter_config.json")).unwrap();
    let mut bytes = std::fs::read(from.join("adapter_model.safetensors")).unwrap();
    // The last value is no number, which whoever reads it says.
    bytes.splice(bytes.len() - 4.., f32::NAN.to_le_bytes());
    std::fs::write(folder.path().join("adapter_model.safetensors"), bytes).unwrap();
    let broken = AdapterSpec::new(ArtifactRef::file(folder.path()).unwrap());
    let made = |limits: AdapterLimits| {
        let engine = Engine::builder().adapter_limits(limits).cache_dir(env!("CARGO_TARGET_TMPDIR")).build().unwrap();
        let model = load(&engine, &beside(None));
        block_on(engine.adapter_set(&model, &[adapter("rslora"), broken.clone()])).unwrap_err()
    };
    let name = broken.reference.to_string();
    refused(made(AdapterLimits::none()), &[&name, "finite values only"]);
    refused(made(AdapterLimits::none().with_rank(7)), &[&name, "`rank` of 7"]);
    refused(made(AdapterLimits::none().with_bytes(1000)), &["lora-rslora", "`bytes` of 1000"]);
    refused(made(AdapterLimits::none().with_bytes(40_000)), &["`bytes` of 40000"]);
    // Nor is one of a spec.
    let loaded = |limits: AdapterLimits| {
        let engine = Engine::builder().adapter_limits(limits).cache_dir(env!("CARGO_TARGET_TMPDIR")).build().unwrap();
        block_on(engine.load(&beside(None).with_adapter_spec(broken.clone()))).unwrap_err()
    };
    refused(loaded(AdapterLimits::none()), &[&name, "finite values only"]);
    refused(loaded(AdapterLimits::none().with_rank(7)), &[&name, "`rank` of 7"]);
    refused(loaded(AdapterLimits::none().with_count(0)), &[&name, "`count` of 0"]);
}

#[test]
fn the_same_adapter_is_held_once_and_let_go_with_its_last_user() {
    let engine = engine();
    let model = load(&engine, &beside(None));
    let (one, other) =
        (set(&engine, &model, &[adapter("peft")]), set(&engine, &model, &[adapter("peft").with_weight(0.5)]));
    assert!(Arc::ptr_eq(&one.adapters[0].0, &other.adapters[0].0));
    let held = Arc::downgrade(&one.adapters[0].0);
    drop((one, other));
    assert!(held.upgrade().is_none());
}

#[test]
fn an_unloaded_model_says_so() {
    let engine = engine();
    let model = load(&engine, &beside(Some("peft")));
    let rslora = set(&engine, &model, &[adapter("rslora")]);
    block_on(model.unload()).unwrap();
    let error = block_on(model.set_adapters(rslora)).unwrap_err();
    assert!(matches!(error, Error::ModelNotLoaded { .. }), "{error}");
    assert_eq!(named(&block_on(model.adapters())), names(&[adapter("peft")]));
}

#[test]
fn a_model_that_can_neither_run_adapters_nor_replace_tensors_says_so_by_name_and_reason() {
    let engine = engine();
    let base = ModelSpec::new(fixture_ref("models/arch-phi")).with_dtype(ComputeDtype::F32);
    let lora = AdapterSpec::new(fixture_ref("adapters/arch-phi-lora"));
    let says = ["arch-phi-lora", "backend `candle` cannot run adapters beside the weights of"];
    let of_other = load(&engine, &beside(None));
    let foreign = set(&engine, &of_other, &[adapter("rslora")]);
    for spec in [base.clone(), base.with_adapter(lora.reference.clone())] {
        let model = load(&engine, &spec);
        refused(block_on(engine.adapter_set(&model, std::slice::from_ref(&lora))).unwrap_err(), &says);
        refused(block_on(engine.set_adapters(&model, std::slice::from_ref(&lora))).unwrap_err(), &says);
        let reasons = ["lora-rslora", says[1]];
        refused(block_on(model.set_adapters(foreign.clone())).unwrap_err(), &reasons);
        let request = LogitsRequest::new(vec![1, 2, 3]).with_adapters(foreign.clone());
        refused(block_on(model.logits(request)).unwrap_err(), &reasons);
        let request = GenerateRequest::new(vec![1, 2, 3]).with_adapters(foreign.clone());
        refused(block_on(model.generate(request).complete()).unwrap_err(), &reasons);
    }
}
