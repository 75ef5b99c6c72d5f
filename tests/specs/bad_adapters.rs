//! Every broken adapter is `AdapterMergeFailed` with a message that names the defect, before a backend sees a load.

#![cfg(feature = "local")]

use std::{fs, sync::Arc};

use crate::common::{fixture, fixture_ref};
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

/// Kinds of adapters as PEFT itself saves them, and why they are refused.
const REFUSED: &[(&str, &[&str])] = &[
    ("adalora", &["ADALORA", "another rule than LoRA"]),
    ("adaption-prompt", &["ADAPTION_PROMPT", "LLaMA-Adapter"]),
    ("alora", &["`alora_invocation_tokens`", "aLoRA", "after certain tokens"]),
    ("arrow", &["`arrow_config`", "Arrow", "for each token"]),
    ("bdlora", &["`use_bdlora`", "BD-LoRA", "blocks"]),
    ("boft", &["BOFT", "another rule than LoRA"]),
    ("convolution", &["conv.lora_A", "(2, 3, 3, 3)", "convolution"]),
    ("corda", &["`corda_config`", "CorDA", "changed base"]),
    ("kasa", &["`kasa_config`", "KaSA", "changes the base"]),
    ("layer-replication", &["`layer_replication`", "another model of the base"]),
    ("ln-tuning", &["LN_TUNING", "another rule than LoRA"]),
    ("loftq", &["`loftq_config`", "LoftQ", "changed base"]),
    ("loha", &["LOHA", "another rule than LoRA"]),
    ("lokr", &["LOKR", "another rule than LoRA"]),
    ("lora-ga", &["`lora_ga_config`", "LoRA-GA", "changed base"]),
    ("monteclora", &["`monteclora_config`", "MonteCLoRA", "noise"]),
    ("oft", &["OFT", "another rule than LoRA"]),
    ("olora", &["`init_lora_weights` is \"olora\"", "changes the base's weights"]),
    ("p-tuning", &["P_TUNING", "vectors before the prompt"]),
    ("pickle", &["adapter_model.bin", "pickle"]),
    ("pissa", &["`init_lora_weights` is \"pissa\"", "changes the base's weights"]),
    ("prefix-tuning", &["PREFIX_TUNING", "before the keys and values"]),
    ("prompt-tuning", &["PROMPT_TUNING", "vectors before the prompt"]),
    ("qalora", &["`use_qalora`", "QA-LoRA", "groups of inputs"]),
    ("trainable-tokens", &["TRAINABLE_TOKENS", "another rule than LoRA"]),
    ("velora", &["`velora_config`", "VeLoRA"]),
    ("vera", &["VERA", "another rule than LoRA"]),
];

#[test]
fn kinds_of_peft_that_cannot_be_merged_are_refused_by_name_and_why() {
    let engine = engine(0);
    let folders = fs::read_dir(fixture("refused-adapters")).unwrap();
    let mut names: Vec<_> = folders.map(|folder| folder.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, REFUSED.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    for (name, words) in REFUSED {
        let error = load(&engine, fixture_ref(&format!("refused-adapters/{name}")));
        assert_eq!(error.code(), "adapter_merge_failed", "{name}: {error}");
        for word in *words {
            assert!(error.to_string().contains(word), "{name}: `{word}` is not in: {error}");
        }
    }
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
