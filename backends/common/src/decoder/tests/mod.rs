//! Tests on the fixtures, without anything that computes.

mod headers;
mod replaced;
mod session;
mod text;

use std::path::PathBuf;

use llm_local_core::model::DecoderConfig;
use llm_local_weights::Checkpoint;

use super::*;

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")).join(path)
}

/// The folder of a model; `config` replaces its config.json with that of a variant.
fn checkpoint(model: &str, config: Option<&str>) -> Checkpoint {
    let path = |file: &str| fixture(&format!("models/{model}")).join(file);
    let config =
        config.map_or_else(|| path("config.json"), |name| fixture(&format!("models/variants/{name}.config.json")));
    let files = [("config.json", config), ("model.safetensors", path("model.safetensors"))];
    Checkpoint::open(model, &files.map(|(name, path)| (name.to_owned(), path)).into()).unwrap()
}

/// What a model's config.json says.
pub(super) fn description(model: &str, config: Option<&str>) -> DecoderConfig {
    checkpoint(model, config).info.decoder.clone().unwrap()
}
