//! Without cargo features there is neither backend nor source: the errors say which feature brings them.

#![cfg(not(any(feature = "candle", feature = "local")))]

use llm_local::{BackendPreference, Engine, EngineBuilder, Error, ModelSpec};
use llm_local_testkit::fakes::MemorySource;

fn load(builder: EngineBuilder, spec: &ModelSpec) -> Error {
    let engine = builder.cache_dir(std::env::temp_dir()).build().unwrap();
    pollster::block_on(engine.load(spec)).unwrap_err()
}

fn source() -> MemorySource {
    MemorySource::new("mem").with_file("tiny", "config.json", "{}")
}

#[test]
fn a_path_needs_the_feature_local() {
    let error = load(Engine::builder(), &ModelSpec::new("/models/tiny".parse().unwrap()));
    assert_eq!(error.code(), "not_registered");
    assert!(error.to_string().contains("feature `local`"), "{error}");
}

#[test]
fn a_model_needs_a_feature_that_brings_a_backend() {
    let spec = ModelSpec::new("mem:tiny".parse().unwrap());
    let error = load(Engine::builder().source(source()), &spec);
    assert_eq!(error.code(), "no_backend");
    assert!(error.to_string().contains("enable a cargo feature such as `candle`"), "{error}");
    let named = spec.with_backend(BackendPreference::Named("candle".into()));
    let error = load(Engine::builder().source(source()), &named);
    assert_eq!(error.code(), "not_registered");
    assert!(error.to_string().contains("feature `candle`"), "{error}");
}
