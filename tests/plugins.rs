//! A crate that depends on the contract alone, found through `inventory` because it is linked, and through the
//! explicit door; with a built-in's name it is refused.

use std::sync::Arc;

use llm_local::{
    ArtifactRef, Engine, Error, GenerateRequest, LogitsRequest, ModelSpec, Registry, Result,
    adapters::AdapterFormat as AdapterKind,
    builtin,
    core::{
        LoadOptions, LoraAdapter, ModelFormat, ModelInfo, ModelWeights, TextFiles,
        lora::{AdapterFiles, AdapterFormat},
        registry::{Origin, PluginInfo, PluginKind},
    },
    lora::{self, ReadOptions},
};
use llm_local_testkit::{conformance, fakes::MemoryTensorSource};
use third_party_plugin::{CLAIMS_CANDLE, CLAIMS_FILE, Factors, Memory, PLUGIN, Parrot};

fn find(registry: &Registry, kind: PluginKind, name: &str) -> PluginInfo {
    let found = registry.plugins().into_iter().find(|p| p.kind == kind && p.name == name);
    found.unwrap_or_else(|| panic!("no {} `{name}` in {registry:?}", kind.as_str()))
}

#[test]
fn a_linked_plugin_is_found_and_reported_with_its_crate_version_and_origin() {
    let registry = builtin::registry().unwrap();
    for (kind, name) in [
        (PluginKind::Backend, "parrot"),
        (PluginKind::ModelSource, "mem"),
        (PluginKind::AdapterSource, "mem"),
        (PluginKind::AdapterFormat, "factors"),
    ] {
        let found = find(&registry, kind, name);
        assert_eq!(found.origin, Origin::Discovered);
        assert_eq!((found.crate_name, found.crate_version), (Some("third-party-plugin"), Some("0.3.1")));
    }
    assert_eq!(find(&registry, PluginKind::Backend, "parrot").priority, Some(-10));
}

#[cfg(all(feature = "candle", feature = "local"))]
#[test]
fn built_in_plugins_are_reported_as_such_and_come_first() {
    let registry = builtin::registry().unwrap();
    let candle = find(&registry, PluginKind::Backend, "candle");
    assert_eq!((candle.origin, candle.crate_name), (Origin::BuiltIn, Some("llm-local-candle")));
    assert_eq!(candle.crate_version, Some(env!("CARGO_PKG_VERSION")));
    assert_eq!(registry.plugins()[0], candle);
    for kind in [PluginKind::ModelSource, PluginKind::AdapterSource] {
        let files = find(&registry, kind, "file");
        assert_eq!((files.origin, files.crate_name), (Origin::BuiltIn, Some("llm-local-source-local")));
    }
}

#[test]
fn the_explicit_door_takes_descriptors_and_instances_and_replaces_what_had_the_name() {
    let registry = Registry::empty().with_plugin(&PLUGIN);
    let parrot = find(&registry, PluginKind::Backend, "parrot");
    assert_eq!((parrot.origin, parrot.crate_name), (Origin::Explicit, Some("third-party-plugin")));
    assert_eq!(registry.backend("parrot").unwrap().name(), "parrot");

    let registry = Registry::empty().with_backend(Arc::new(Parrot)).with_source(Arc::new(Memory));
    let reference: ArtifactRef = "mem:polly".parse().unwrap();
    assert_eq!(registry.model_source(&reference).unwrap().scheme(), "mem");
    assert_eq!(registry.adapter_source(&reference).unwrap().scheme(), "mem");
    assert!(registry.plugins().iter().all(|p| p.origin == Origin::Explicit && p.crate_name.is_none()));

    let registry = builtin::registry().unwrap().with_plugin(&CLAIMS_CANDLE).with_plugin(&CLAIMS_FILE);
    assert_eq!(registry.backend("candle").unwrap().devices().unwrap()[0].id, "cage");
    assert_eq!(registry.model_source(&"/a/path".parse().unwrap()).unwrap().scheme(), "mem");
}

#[cfg(all(feature = "candle", feature = "local"))]
#[test]
fn a_built_in_name_is_refused_and_both_crates_are_named() {
    for (plugin, theirs) in [(CLAIMS_CANDLE, "llm-local-candle"), (CLAIMS_FILE, "llm-local-source-local")] {
        let error = Registry::from_plugins(builtin::PLUGINS, &[plugin]).unwrap_err();
        assert_eq!(error.code(), "plugin_conflict");
        let said = error.to_string();
        assert!(said.contains(theirs) && said.contains("third-party-plugin 0.3.1"), "{said}");
    }
}

#[test]
fn a_plugins_model_and_adapter_run_on_its_own_backend() -> Result<()> {
    let cache = tempfile::tempdir().unwrap();
    let engine = Engine::builder().cache_dir(cache.path()).build()?;
    let polly = ModelSpec::new("mem:polly".parse()?);
    pollster::block_on(async {
        let said = engine.generate(&polly, GenerateRequest::new("hello")).await?.complete().await?;
        assert_eq!((said.text.as_str(), said.usage.generated_tokens), ("hello", 5));
        let twice = polly.clone().with_adapter("mem:twice".parse()?);
        let said = engine.generate(&twice, GenerateRequest::new("hello")).await?.complete().await?;
        assert_eq!(said.text, "hellohello");
        let plan = engine.plan(&twice).await?;
        assert_eq!((plan.backend.as_str(), plan.device.id.as_str()), ("parrot", "cage"));
        let candle = plan.passed_over.iter().find(|p| p.name == "candle").map(ToString::to_string);
        assert_eq!(candle.is_some(), cfg!(feature = "candle"));
        assert!(candle.is_none_or(|why| why.contains("parrot")), "{:?}", plan.passed_over);
        Ok(())
    })
}

#[test]
fn an_adapter_in_a_plugins_format_changes_the_logits() -> Result<()> {
    let cache = tempfile::tempdir().unwrap();
    let engine = Engine::builder().cache_dir(cache.path()).build()?;
    let polly = ModelSpec::new("mem:polly".parse()?);
    let thrice = polly.clone().with_adapter("mem:thrice".parse()?);
    let logit = |spec: &ModelSpec| {
        let logits = pollster::block_on(engine.logits(spec, LogitsRequest::new("hello")));
        logits.map(|logits| logits['h' as usize])
    };
    // What the plugin alone can read is not refused while it is elsewhere.
    assert_eq!(pollster::block_on(engine.plan(&thrice))?.backend, "parrot");
    assert_eq!(logit(&polly)?, 1.0);
    assert_eq!(logit(&thrice)?, 3.0);
    let both = thrice.clone().with_adapter("mem:twice".parse()?);
    assert_eq!(logit(&both)?, 4.0);
    let said =
        pollster::block_on(async { engine.generate(&thrice, GenerateRequest::new("ha")).await?.complete().await });
    assert_eq!(said?.text, "hahaha");
    let report = pollster::block_on(engine.adapters().inspect(&"mem:thrice".parse()?))?;
    assert_eq!((&report.format, &report.ranks[..]), (&AdapterKind::Plugin("factors".into()), &[2][..]));
    assert_eq!((&report.scales[..], report.modules, report.unusable), (&[0.5][..], 1, None));
    // What it refuses is refused with its own words.
    let error = logit(&polly.with_adapter("mem:mute".parse()?)).unwrap_err();
    assert_eq!(error.code(), "adapter_merge_failed");
    let said = error.to_string();
    assert!(said.contains("mem:mute") && said.contains("the module `voice`: `a` has 2 rows and `b` 1"), "{said}");
    Ok(())
}

/// A format that takes everything for its own.
struct Greedy;

impl AdapterFormat for Greedy {
    fn name(&self) -> &str {
        "greedy"
    }

    fn recognizes(&self, _: &AdapterFiles<'_>) -> Result<bool> {
        Ok(true)
    }

    fn read(&self, files: &AdapterFiles<'_>) -> Result<LoraAdapter> {
        Err(Error::adapter(files.reference, "nothing was to be read"))
    }
}

#[test]
fn an_adapter_that_two_formats_recognize_is_refused_and_both_are_named() -> Result<()> {
    let cache = tempfile::tempdir().unwrap();
    let engine = Engine::builder().cache_dir(cache.path()).adapter_format(Arc::new(Greedy)).build()?;
    for (adapter, other) in [("mem:thrice", "factors"), ("mem:twice", "peft")] {
        let spec = ModelSpec::new("mem:polly".parse()?).with_adapter(adapter.parse()?);
        let error = pollster::block_on(engine.load(&spec)).unwrap_err();
        assert_eq!(error.code(), "adapter_merge_failed");
        let said = error.to_string();
        assert!(said.contains(adapter) && said.contains("`greedy`") && said.contains(&format!("`{other}`")), "{said}");
    }
    Ok(())
}

#[test]
fn adapters_in_a_plugins_format_are_told_apart_by_their_content() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("factors.json");
    let reference: ArtifactRef = "mem:written".parse()?;
    let files = [("factors.json".to_owned(), path.clone())].into();
    let formats: [Arc<dyn AdapterFormat>; 1] = [Arc::new(Factors)];
    let read = |b: f32| {
        let modules = serde_json::json!({ "voice": { "a": [[1.0]], "b": [[b]] } });
        let json = serde_json::json!({ "kind": "factors", "scale": 1.0, "modules": modules });
        std::fs::write(&path, json.to_string()).unwrap();
        lora::read_with(&reference, &files, ReadOptions::new(), &formats)
    };
    let (one, again, other) = (read(1.0)?, read(1.0)?, read(2.0)?);
    assert_eq!((one.format.as_str(), one.digest.len()), ("factors", 64));
    assert_eq!(one, again);
    assert_ne!(one.digest, other.digest);
    Ok(())
}

#[test]
fn the_plugin_passes_the_suites_for_authors() {
    let tensors =
        MemoryTensorSource::new().with_floats("voice.weight", &[1, 1], llm_local::core::FloatType::F32, &[2.0]);
    let format = ModelFormat::Safetensors { config: Arc::new(serde_json::json!({ "model_type": "parrot" })) };
    let info = ModelInfo::new("polly", format, llm_local::core::TensorSource::entries(&tensors));
    let weights = ModelWeights::new(Arc::new(info), Some(Arc::new(tensors)), TextFiles::default());
    pollster::block_on(async {
        conformance::model_source(&Memory, &"mem:polly".parse().unwrap()).await;
        conformance::adapter_source(&Memory, &"mem:twice".parse().unwrap()).await;
        let backend: &dyn llm_local::InferenceBackend = &Parrot;
        let model = backend.load(weights, LoadOptions::new(64)).await.unwrap();
        conformance::loaded_model(model.as_ref(), "Polly wants a cräcker").await;
    });
}
