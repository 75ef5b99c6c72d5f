//! Adapters that are swapped in the weights that they are merged into: to the bit as a fresh load, however often.

#![cfg(all(feature = "candle", feature = "local"))]

use std::path::Path;

use crate::common::{engine, fixture, fixture_ref, max_difference, reference, tiny};
use futures_util::future::join;
use llm_local::{
    AdapterPolicy, AdapterSet, AdapterSpec, ArtifactRef, ComputeDtype, Engine, Error, GenerateRequest, LogitsRequest,
    Model, ModelSpec, TurnOptions, UsedAdapter,
    core::{LoadedInfo, SessionId},
};
use pollster::block_on;

const RSLORA: &str = "tiny-llama__tiny-llama-lora-rslora";

fn adapter(name: &str) -> AdapterSpec {
    AdapterSpec::new(fixture_ref(&format!("adapters/tiny-llama-lora-{name}")))
}

/// tiny-llama with an adapter merged into it, in f32.
fn merged(adapter: Option<&str>) -> ModelSpec {
    with_policy(&tiny(adapter).with_dtype(ComputeDtype::F32))
}

/// Merged also where there is nothing to merge yet.
fn with_policy(spec: &ModelSpec) -> ModelSpec {
    spec.clone().with_adapter_policy(AdapterPolicy::MergeDequantized)
}

fn load(engine: &Engine, spec: &ModelSpec) -> Model {
    block_on(engine.load(spec)).unwrap()
}

fn swap(engine: &Engine, model: &Model, adapters: &[AdapterSpec]) {
    block_on(engine.set_adapters(model, adapters)).unwrap();
}

const PROMPT: [u32; 12] = [1, 40, 300, 17, 22, 44, 8, 91, 120, 6, 77, 301];

fn logits(model: &Model) -> Vec<f32> {
    block_on(model.logits(LogitsRequest::new(PROMPT.to_vec()))).unwrap()
}

/// Those of `base` that is loaded with these adapters, by an engine of its own.
fn fresh(base: &ModelSpec, adapters: &[AdapterSpec]) -> (Vec<f32>, u64) {
    let model = load_fresh(base, adapters);
    (logits(&model), model.memory().weights)
}

fn load_fresh(base: &ModelSpec, adapters: &[AdapterSpec]) -> Model {
    let spec = adapters.iter().fold(base.clone(), |spec, a| spec.with_weighted_adapter(a.reference.clone(), a.weight));
    load(&engine(), &spec)
}

/// What is said of a model, but for the time that its load took.
fn info(model: &Model) -> LoadedInfo {
    let mut info = model.info();
    info.load_time = std::time::Duration::ZERO;
    info
}

fn named(used: &[UsedAdapter]) -> Vec<(String, f32)> {
    used.iter().map(|used| (used.reference.to_string(), used.weight)).collect()
}

fn names(adapters: &[AdapterSpec]) -> Vec<(String, f32)> {
    adapters.iter().map(|adapter| (adapter.reference.to_string(), adapter.weight)).collect()
}

fn refused(error: Error, parts: &[&str]) {
    assert!(matches!(error, Error::AdapterMergeFailed { .. }), "{error}");
    let text = error.to_string();
    assert!(parts.iter().all(|part| text.contains(part)), "{text}");
}

fn prompt() -> GenerateRequest {
    GenerateRequest::new(PROMPT.to_vec()).with_max_tokens(24).with_ignore_eos(true)
}

/// Swaps through `sets` on one loaded model of `base`: each time it is as one that was loaded so.
#[track_caller]
fn each_is_as_loaded(base: &ModelSpec, sets: &[Vec<AdapterSpec>]) {
    let engine = engine();
    let first = sets[0].iter().fold(base.clone(), |spec, a| spec.with_weighted_adapter(a.reference.clone(), a.weight));
    let model = load(&engine, &first);
    let mut before = None;
    for set in sets.iter().skip(1).chain(&sets[..1]) {
        swap(&engine, &model, set);
        let found = (logits(&model), model.memory().weights);
        let fresh = load_fresh(base, set);
        assert!(found == (logits(&fresh), fresh.memory().weights), "{:?} differ from a fresh load", names(set));
        assert_eq!(info(&model), info(&fresh), "{:?}", names(set));
        assert_eq!(named(&block_on(model.adapters())), names(set));
        assert_ne!(before.replace(found.0.clone()), Some(found.0), "{:?} change nothing", names(set));
    }
}

#[test]
fn a_swap_is_to_the_bit_a_fresh_load_in_every_type_of_weights() {
    let sets = [
        vec![adapter("peft")],
        vec![adapter("rslora")],
        vec![],
        vec![adapter("qv-last2"), adapter("rslora").with_weight(-0.25)],
        vec![adapter("dora")],
        vec![adapter("embed")],
        vec![adapter("patterns").with_weight(0.5)],
    ];
    for dtype in [ComputeDtype::F32, ComputeDtype::F16, ComputeDtype::Auto] {
        each_is_as_loaded(&with_policy(&tiny(None).with_dtype(dtype)), &sets);
    }
}

#[test]
fn a_swap_gives_what_the_reference_gives() {
    let engine = engine();
    let model = load(&engine, &merged(Some("peft")));
    swap(&engine, &model, &[adapter("rslora")]);
    for case in reference(RSLORA).cases {
        let found = block_on(model.logits(LogitsRequest::new(case.prompt_ids))).unwrap();
        let difference = max_difference(&found, &case.logits);
        assert!(difference <= 2e-5, "{difference}");
    }
}

#[test]
fn projections_that_a_checkpoint_fuses_are_swapped_too() {
    for name in ["arch-phi3", "arch-qwen2", "arch-gemma2", "arch-mistral"] {
        let base = ModelSpec::new(fixture_ref(&format!("models/{name}"))).with_dtype(ComputeDtype::F32);
        let adapter = |weight| AdapterSpec::new(fixture_ref(&format!("adapters/{name}-lora"))).with_weight(weight);
        each_is_as_loaded(&with_policy(&base), &[vec![adapter(1.0)], vec![], vec![adapter(-0.5)]]);
    }
}

#[test]
fn bases_in_gguf_files_are_read_anew_and_quantized_tensors_come_back() {
    let adapters = |name: &str| vec![AdapterSpec::new(fixture_ref(name))];
    let (peft, gguf) = (adapters("adapters/tiny-llama-lora-peft"), adapters("gguf/tiny-llama-lora-qv-last2-f16.gguf"));
    for base in ["gguf/tiny-llama-bf16.gguf", "gguf/tiny-llama-q8_0.gguf", "gguf/tiny-llama-q4_0.gguf"] {
        let base = with_policy(&ModelSpec::new(fixture_ref(base)));
        each_is_as_loaded(&base, &[gguf.clone(), vec![], peft.clone(), vec![gguf[0].clone(), peft[0].clone()]]);
    }
}

#[test]
fn nothing_drifts_and_no_memory_is_lost_however_often_adapters_are_swapped() {
    let engine = engine();
    let model = load(&engine, &merged(Some("peft")));
    let (loaded, bytes) = (logits(&model), model.memory());
    let base = fresh(&merged(None), &[]).0;
    for _ in 0..10 {
        swap(&engine, &model, &[adapter("rslora")]);
        swap(&engine, &model, &[]);
        assert_eq!(logits(&model), base);
        swap(&engine, &model, &[adapter("peft")]);
        assert_eq!(logits(&model), loaded);
        assert_eq!(model.memory(), bytes);
    }
    // The spec means this model, and nothing was loaded again.
    assert!(load(&engine, &merged(Some("peft"))).is_same(&model));
}

#[test]
fn a_running_generation_keeps_the_weights_that_it_began_with() {
    let engine = engine();
    let model = load(&engine, &merged(Some("peft")));
    let bytes = model.memory().weights;
    let expected = |adapter: &str| {
        let model = load(&crate::common::engine(), &merged(Some(adapter)));
        block_on(model.generate(prompt()).complete()).unwrap().tokens
    };
    assert_ne!(expected("peft"), expected("rslora"));
    block_on(async {
        let mut running = model.generate(prompt());
        let mut tokens = crate::common::first_tokens(&mut running, 4).await;
        engine.set_adapters(&model, &[adapter("rslora")]).await.unwrap();
        // What it still computes with is counted.
        assert!(model.memory().weights > bytes);
        let after = model.generate(prompt()).complete().await.unwrap();
        let rest = running.complete().await.unwrap();
        tokens.extend(rest.tokens);
        assert_eq!((tokens, named(&rest.stats.adapters)), (expected("peft"), names(&[adapter("peft")])));
        assert_eq!((after.tokens, named(&after.stats.adapters)), (expected("rslora"), names(&[adapter("rslora")])));
    });
    assert_eq!(model.memory().weights, bytes);
}

#[test]
fn a_session_computes_its_chat_anew_in_other_weights() {
    let engine = engine();
    let spec = merged(Some("peft"));
    let model = load(&engine, &spec);
    let options = || TurnOptions::new().with_max_tokens(8);
    let mut session = engine.session(&spec);
    block_on(async {
        session.complete("Tell me a story.", options()).await.unwrap();
        assert!(session.complete("And then?", options()).await.unwrap().usage.cached_tokens > 0);
        for set in [vec![adapter("rslora")], vec![], vec![adapter("peft")]] {
            engine.set_adapters(&model, &set).await.unwrap();
            let anew = session.complete("And then?", options()).await.unwrap();
            assert_eq!((anew.usage.cached_tokens, named(&anew.stats.adapters)), (0, names(&set)));
            assert!(session.complete("And then?", options()).await.unwrap().usage.cached_tokens > 0);
        }
        // The same set again leaves everything as it is.
        engine.set_adapters(&model, &[adapter("peft")]).await.unwrap();
        assert!(session.complete("And then?", options()).await.unwrap().usage.cached_tokens > 0);
    });
    let of_fresh = block_on(load(&crate::common::engine(), &spec).digest()).unwrap();
    assert_eq!(block_on(model.digest()).unwrap(), of_fresh);
}

#[test]
fn a_swap_that_fails_leaves_the_logits_to_the_bit() {
    let engine = engine();
    let model = load(&engine, &merged(Some("peft")));
    let (before, bytes) = (logits(&model), model.memory());
    let at = |path: &str| AdapterSpec::new(fixture_ref(path));
    for (adapters, parts) in [
        (vec![at("adapters/arch-qwen2-lora")], vec!["arch-qwen2-lora"]),
        (vec![adapter("rslora"), at("adapters/there-is-none")], vec!["there-is-none"]),
        // Found in the middle, when some tensors were read: their sums are not finite.
        (vec![adapter("rslora"), adapter("dora").with_weight(f32::MAX)], vec!["lora-dora", "finite"]),
        (vec![adapter("rslora").with_weight(f32::NAN)], vec!["lora-rslora", "weight is NaN"]),
        // Another shape of the whole model.
        (vec![adapter("modules-to-save-lm_head")], vec!["lm_head", "another spec"]),
    ] {
        refused(block_on(engine.set_adapters(&model, &adapters)).unwrap_err(), &parts);
        assert_eq!((logits(&model), model.memory()), (before.clone(), bytes));
        assert_eq!(named(&block_on(model.adapters())), names(&[adapter("peft")]));
    }
    // And what comes next knows what is touched.
    swap(&engine, &model, &[adapter("qv-last2")]);
    assert_eq!(logits(&model), fresh(&merged(None), &[adapter("qv-last2")]).0);
}

#[test]
fn swaps_at_once_are_made_one_after_the_other() {
    let engine = engine();
    let model = load(&engine, &merged(Some("peft")));
    let too_large = block_on(engine.adapter_set(&model, &[adapter("dora").with_weight(f32::MAX)])).unwrap();
    let of = |name: &str| block_on(engine.adapter_set(&model, &[adapter(name)])).unwrap();
    let (qv, rslora) = (of("qv-last2"), of("rslora"));
    block_on(async {
        let (first, second) = join(model.set_adapters(too_large), model.set_adapters(qv.clone())).await;
        refused(first.unwrap_err(), &["lora-dora"]);
        second.unwrap();
        assert_eq!(named(&model.adapters().await), names(&[adapter("qv-last2")]));
        let (first, second) = join(model.set_adapters(rslora), model.set_adapters(AdapterSet::new())).await;
        first.and(second).unwrap();
    });
    // Either came last, and all that the other one touched is as it must be.
    let last = block_on(model.adapters());
    let last: Vec<_> = last.iter().map(|used| AdapterSpec::new(used.reference.clone())).collect();
    assert_eq!(logits(&model), fresh(&merged(None), &last).0);
}

#[test]
fn a_base_whose_files_have_changed_is_not_read_anew() {
    let folder = tempfile::tempdir().unwrap();
    copy(&fixture("models/tiny-llama"), folder.path());
    let engine = engine();
    let spec = merged(None);
    let spec = ModelSpec::new(ArtifactRef::file(folder.path()).unwrap())
        .with_dtype(spec.dtype)
        .with_adapter_policy(spec.adapter_policy);
    let model = load(&engine, &spec);
    let before = logits(&model);
    let weights = std::fs::File::options().append(true).open(folder.path().join("model.safetensors")).unwrap();
    let modified = weights.metadata().unwrap().modified().unwrap();
    weights.set_modified(modified - std::time::Duration::from_secs(60)).unwrap();
    let error = block_on(engine.set_adapters(&model, &[adapter("peft")])).unwrap_err();
    refused(error, &["model.safetensors has changed since", "lora-peft"]);
    assert_eq!(logits(&model), before);
    weights.set_modified(modified).unwrap();
    swap(&engine, &model, &[adapter("peft")]);
    assert_eq!(logits(&model), fresh(&merged(None), &[adapter("peft")]).0);
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn sets_of_other_models_and_unloaded_models_are_refused() {
    let engine = engine();
    let (model, other) = (load(&engine, &merged(Some("peft"))), load(&engine, &merged(None)));
    let foreign = block_on(engine.adapter_set(&other, &[adapter("rslora")])).unwrap();
    refused(block_on(model.set_adapters(foreign)).unwrap_err(), &["lora-rslora", "Engine::adapter_set"]);
    let own = block_on(engine.adapter_set(&model, &[adapter("rslora")])).unwrap();
    let request = prompt().with_adapters(own.clone()).with_session(SessionId::new("s"));
    let says = "merged into its weights when it was loaded; load it with `adapter_policy = \"keep-unmerged\"`";
    refused(block_on(model.generate(request).complete()).unwrap_err(), &[says]);
    block_on(model.unload()).unwrap();
    let error = block_on(model.set_adapters(own)).unwrap_err();
    assert!(matches!(error, Error::ModelNotLoaded { .. }), "{error}");
}

#[test]
fn a_model_that_was_quantized_again_goes_back_to_its_base_and_takes_no_unmeasured_loss() {
    let engine = engine();
    let policy = AdapterPolicy::MergeRequantized { max_error: 1.0 };
    let base = ModelSpec::new(fixture_ref("gguf/tiny-llama-q8_0.gguf")).with_adapter_policy(policy);
    let model = load(&engine, &base.clone().with_adapter(adapter("peft").reference));
    let loaded = logits(&model);
    let expected = fresh(&base, &[]);
    assert_ne!(loaded, expected.0);
    let error = block_on(engine.set_adapters(&model, &[adapter("rslora")])).unwrap_err();
    refused(error, &["lora-rslora", "quantized again is measured by a load alone", "load that"]);
    assert_eq!(logits(&model), loaded);
    // What it has already is no change.
    swap(&engine, &model, &[adapter("peft")]);
    assert_eq!(logits(&model), loaded);
    let own = block_on(engine.adapter_set(&model, &[adapter("peft")])).unwrap();
    swap(&engine, &model, &[]);
    assert_eq!((logits(&model), model.memory().weights), expected);
    // It would not be what it was: floats.
    refused(block_on(model.set_adapters(own)).unwrap_err(), &["lora-peft", "measured by a load alone"]);
    assert_eq!((logits(&model), model.memory().weights), expected);
}

#[test]
fn a_head_that_is_untied_in_memory_is_swapped_for_one_that_is_untied_too() {
    let head = adapter("modules-to-save-lm_head");
    each_is_as_loaded(&merged(None), &[vec![head.clone()], vec![head.clone(), adapter("peft")]]);
    let engine = engine();
    let model = load(&engine, &merged(Some("modules-to-save-lm_head")));
    let before = logits(&model);
    for set in [vec![], vec![adapter("rslora")]] {
        let error = block_on(engine.set_adapters(&model, &set)).unwrap_err();
        refused(error, &["the output head is a tensor apart from the embedding", "another spec"]);
        assert_eq!(logits(&model), before);
    }
}

/// What is mapped counts as memory of the process, and the weights would be there twice.
#[cfg(target_os = "linux")]
#[test]
fn the_files_of_the_base_are_mapped_only_while_they_are_read() {
    let folder = tempfile::tempdir().unwrap();
    copy(&fixture("models/tiny-llama"), folder.path());
    let path = folder.path().canonicalize().unwrap().display().to_string();
    let is_mapped = || std::fs::read_to_string("/proc/self/maps").unwrap().contains(&path);
    let engine = engine();
    let spec = ModelSpec::new(ArtifactRef::file(folder.path()).unwrap());
    let model = load(&engine, &spec.with_adapter(adapter("peft").reference));
    assert!(!is_mapped());
    for set in [vec![adapter("rslora")], vec![]] {
        swap(&engine, &model, &set);
        assert!(!is_mapped());
    }
    let source = llm_local_weights::SafetensorsSource::open(&folder.path().join("model.safetensors")).unwrap();
    assert!(is_mapped());
    drop(source);
    assert!(!is_mapped());
}
