//! What adapters beside the weights take, as a plan says it and as the backend has it.

#![cfg(all(feature = "candle", feature = "local"))]

use llm_local::{AdapterPolicy, ArtifactRef, ModelSpec};
use pollster::block_on;

use crate::common::{engine, fixture, fixture_ref};

/// Bytes that are planned for an adapter beside the weights, and those that it has.
fn planned_and_held(base: &str, adapter: &str) -> (u64, u64) {
    let alone = ModelSpec::new(fixture_ref(base));
    let adapter = ArtifactRef::file(fixture("adapters").join(adapter)).unwrap();
    let spec = alone.clone().with_adapter(adapter).with_adapter_policy(AdapterPolicy::KeepUnmerged);
    let model = block_on(engine().load(&spec)).unwrap();
    let estimate = model.plan().model.as_ref().unwrap().estimate;
    let base = block_on(engine().plan(&alone)).unwrap().model.unwrap().estimate;
    assert_eq!(estimate.weights, base.weights);
    assert!(estimate.merge_peak > 0);
    (estimate.adapters, model.memory().weights - base.weights)
}

#[test]
fn plain_pairs_take_what_they_take_in_their_files() {
    for base in ["models/tiny-llama", "gguf/tiny-llama-q8_0.gguf"] {
        for adapter in ["tiny-llama-lora-peft", "tiny-llama-lora-qv-last2", "tiny-llama-lora-mlx"] {
            let (planned, held) = planned_and_held(base, adapter);
            assert_eq!(planned, held, "{adapter} on {base}");
        }
    }
}

/// Measured: A of a pair of DoRA is held as it is read, and so is a whole tensor of bfloat16, where f32 is planned.
#[test]
fn what_is_widened_or_held_whole_is_planned_so() {
    for base in ["models/tiny-llama", "gguf/tiny-llama-q8_0.gguf"] {
        for (adapter, most) in [
            ("tiny-llama-lora-bias-lora_only", 1.0),
            ("tiny-llama-lora-embed", 1.08),
            ("tiny-llama-lora-dora", 1.27),
            ("tiny-llama-lora-modules-to-save-embed_tokens", 2.0),
            ("tiny-llama-lora-modules-to-save-lm_head", 2.0),
        ] {
            let (planned, held) = planned_and_held(base, adapter);
            assert!(held <= planned, "{adapter} on {base}: {held} of {planned}");
            assert!(planned as f64 <= most * held as f64, "{adapter} on {base}: {held} of {planned}");
        }
    }
}
