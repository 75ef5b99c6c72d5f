//! The fixtures as decoders.

use std::path::PathBuf;

use llm_local_backend_common::decoder::Loading;
use llm_local_core::{ModelInfo, TensorSource};

use super::*;
use crate::support::Supported;

pub(super) fn fixture(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")).join(path)
}

/// What a model's config.json says.
pub(super) fn description(model: &str) -> DecoderConfig {
    checkpoint(model, None).info.decoder.clone().unwrap()
}

/// The folder of a model; `config` replaces its config.json with that of a variant.
pub(super) fn checkpoint(model: &str, config: Option<&str>) -> Checkpoint {
    let path = |file: &str| fixture(&format!("models/{model}")).join(file);
    let config =
        config.map_or_else(|| path("config.json"), |name| fixture(&format!("models/variants/{name}.config.json")));
    let files = [("config.json", config), ("model.safetensors", path("model.safetensors"))];
    Checkpoint::open(model, &files.map(|(name, path)| (name.to_owned(), path)).into()).unwrap()
}

pub(super) fn options(context: usize, dtype: ComputeDtype) -> LoadOptions {
    LoadOptions::new(context).with_device("cpu").with_dtype(dtype)
}

/// A model with a context of at most 512 tokens.
pub(super) fn load(checkpoint: &Checkpoint, dtype: ComputeDtype) -> Decoder {
    let context = checkpoint.info.decoder.as_ref().unwrap().max_positions.min(512);
    load_with(&checkpoint.info, &*checkpoint.tensors, &options(context, dtype))
}

pub(super) fn supported(info: &ModelInfo, options: &LoadOptions) -> Supported {
    support::check(info, options, device().unwrap()).unwrap()
}

pub(super) fn load_with(info: &ModelInfo, tensors: &dyn TensorSource, options: &LoadOptions) -> Decoder {
    let supported = supported(info, options);
    let loading = Loading::new(options, 1);
    pollster::block_on(Decoder::load(&supported, tensors, options.context_length, loading)).unwrap()
}

/// tiny-llama in `dtype`.
pub(super) fn tiny(dtype: ComputeDtype) -> Decoder {
    load(&checkpoint("tiny-llama", None), dtype)
}
