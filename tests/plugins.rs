//! A crate that depends on the contract alone, found through `inventory` because it is linked, and through the
//! explicit door; with a built-in's name it is refused.

use std::sync::Arc;

use llm_local::{
    Engine, GenerateRequest, ModelSpec, Registry, Result, builtin,
    core::{
        ArtifactRef, LoadOptions, ModelFormat, ModelInfo, ModelWeights, TextFiles,
        registry::{Origin, PluginInfo, PluginKind},
    },
};
use llm_local_testkit::{conformance, fakes::MemoryTensorSource};
use third_party_plugin::{CLAIMS_CANDLE, CLAIMS_FILE, Memory, PLUGIN, Parrot};

fn find(registry: &Registry, kind: PluginKind, name: &str) -> PluginInfo {
    let found = registry.plugins().into_iter().find(|p| p.kind == kind && p.name == name);
    found.unwrap_or_else(|| panic!("no {} `{name}` in {registry:?}", kind.as_str()))
}

#[test]
fn a_linked_plugin_is_found_and_reported_with_its_crate_version_and_origin() {
    let registry = builtin::registry().unwrap();
    for (kind, name) in
        [(PluginKind::Backend, "parrot"), (PluginKind::ModelSource, "mem"), (PluginKind::AdapterSource, "mem")]
    {
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
