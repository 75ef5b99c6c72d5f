//! Every broken adapter is `AdapterMergeFailed` with a message that names the defect, before a backend sees a load.

#![cfg(feature = "local")]

mod common;

use std::{fs, sync::Arc};

use common::{fixture, fixture_ref};
use llm_local::{
    ArtifactRef, Engine, Error, ModelSpec,
    core::{Capabilities, DeviceInfo, DeviceKind, MemoryEstimate, Support},
};
use llm_local_testkit::mocks::MockInferenceBackend;
use pollster::block_on;

/// An engine whose only backend supports everything and counts loads.
fn engine(loads: usize) -> Engine {
    let mut backend = MockInferenceBackend::new();
    backend.expect_name().return_const("mock".to_owned());
    backend.expect_devices().returning(|| Ok(vec![DeviceInfo::new("cpu", DeviceKind::Cpu, "mock")]));
    backend.expect_supports().returning(|_, _| Support::Yes(Capabilities::new()));
    backend.expect_estimate().returning(|_, _| Ok(MemoryEstimate::default()));
    backend.expect_load().times(loads).returning(|_, _| Err(Error::load("mock", "loads nothing")));
    let registry = llm_local::builtin::registry().unwrap().with_backend(Arc::new(backend));
    Engine::builder().registry(registry).cache_dir(env!("CARGO_TARGET_TMPDIR")).build().unwrap()
}

fn load(engine: &Engine, adapter: ArtifactRef) -> Error {
    let spec = ModelSpec::new(fixture_ref("models/tiny-llama")).with_adapter(adapter);
    let spec = spec.with_backend("mock".to_owned().into());
    block_on(engine.load(&spec)).unwrap_err()
}

#[test]
fn every_defect_is_named_and_nothing_is_loaded() {
    let engine = engine(0);
    let mut seen = 0;
    for folder in fs::read_dir(fixture("bad-adapters")).unwrap() {
        let name = folder.unwrap().file_name().into_string().unwrap();
        if name == "_control-good" {
            continue;
        }
        let error = load(&engine, fixture_ref(&format!("bad-adapters/{name}")));
        assert_eq!(error.code(), "adapter_merge_failed", "{name}: {error}");
        let message = error.to_string();
        let expected: &[&str] = match name.as_str() {
            "config-not-json" => &["adapter_config.json", "JSON"],
            "empty-tensors" => &["no tensors"],
            "full-weights-not-lora" => &[".weight"],
            "header-not-json" => &["adapter_model.safetensors", "header"],
            "int-dtype" => &["lora_", "float"],
            "missing-lora-A" => &["lora_A"],
            "missing-lora-B" => &["lora_B"],
            "nan-values" => &["NaN"],
            "no-config" => &["adapter_config.json"],
            "no-weights" => &["adapter_model.safetensors"],
            "offsets-out-of-range" => &["adapter_model.safetensors"],
            "peft-type-ia3" => &["IA3"],
            "pickle-bin-only" => &["adapter_model.bin", "pickle"],
            "r-zero" => &["r"],
            "rank-mismatch-A8-B4" => &["8", "4"],
            "truncated-7-bytes" | "truncated-data" | "truncated-header" => &["adapter_model.safetensors", "bytes"],
            "unknown-target-modules" => &["target_modules"],
            "wrong-base-hidden96" => &["96", "128"],
            other => panic!("no expectation for the folder {other}"),
        };
        for part in expected {
            assert!(message.contains(part), "{name}: `{part}` is not in: {message}");
        }
        seen += 1;
    }
    assert_eq!(seen, 20);
}

#[test]
fn the_control_reaches_the_backend() {
    let error = load(&engine(1), fixture_ref("bad-adapters/_control-good"));
    assert_eq!(error.code(), "load_failed", "{error}");
    assert!(error.to_string().contains("loads nothing"));
}

#[test]
fn an_adapter_that_cannot_be_had_is_the_same_kind_of_error() {
    let engine = engine(0);
    for (reference, why) in [("/no/such/folder", "/no/such/folder"), ("gopher:x", "no adapter source named `gopher`")] {
        let error = load(&engine, reference.parse().unwrap());
        assert_eq!(error.code(), "adapter_merge_failed", "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
    let error = load(&engine, fixture_ref("models/tiny-llama"));
    assert_eq!(error.code(), "adapter_merge_failed", "{error}");
}
