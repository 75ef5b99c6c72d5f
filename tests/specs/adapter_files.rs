//! An adapter given as one file is the adapter of its folder.

#![cfg(all(feature = "candle", feature = "local"))]

use std::{fs, path::Path};

use crate::common::{engine, fixture, max_difference, reference, tiny};
use llm_local::{ArtifactRef, LogitsRequest, ModelSpec};
use pollster::block_on;

/// Logits of tiny-llama with `adapter` for the first prompt of the reference.
fn logits(adapter: Option<ArtifactRef>) -> llm_local::Result<Vec<f32>> {
    let request = LogitsRequest::new(reference("tiny-llama").cases[0].prompt_ids.clone());
    let spec = adapter.into_iter().fold(tiny(None), ModelSpec::with_adapter);
    block_on(engine().logits(&spec, request))
}

/// Copies config and weights of the fixture `adapter` into `folder`, the weights as `name`.
fn place(adapter: &str, folder: &Path, name: &str) -> ArtifactRef {
    let from = fixture("adapters").join(adapter);
    fs::copy(from.join("adapter_config.json"), folder.join("adapter_config.json")).unwrap();
    fs::copy(from.join("adapter_model.safetensors"), folder.join(name)).unwrap();
    ArtifactRef::file(folder.join(name)).unwrap()
}

#[test]
fn a_bare_safetensors_file_of_any_name_gives_the_logits_of_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let bare = place("tiny-llama-lora-peft", folder.path(), "pirate.safetensors");
    let whole = ArtifactRef::file(fixture("adapters/tiny-llama-lora-peft")).unwrap();
    let expected = logits(Some(whole)).unwrap();
    assert_eq!(logits(Some(bare.clone())).unwrap(), expected);
    assert!(max_difference(&logits(None).unwrap(), &expected) > 0.1, "the adapter does nothing");

    // Another file beside the one that is named does not matter.
    fs::write(folder.path().join("other.safetensors"), "no safetensors").unwrap();
    assert_eq!(logits(Some(bare)).unwrap(), expected);
}

#[test]
fn a_bare_safetensors_file_without_its_config_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let bare = place("tiny-llama-lora-peft", folder.path(), "pirate.safetensors");
    fs::remove_file(folder.path().join("adapter_config.json")).unwrap();
    let error = logits(Some(bare)).unwrap_err();
    assert_eq!(error.code(), "adapter_merge_failed", "{error}");
    assert!(error.to_string().contains("`pirate.safetensors` comes without adapter_config.json"), "{error}");
}
