//! Logits against references computed by transformers, PEFT and mlx-lm in float32, step by step, without a worker.
//!
//! | module | what it holds |
//! |---|---|
//! | `models` | the fixtures as decoders |
//! | `reference` | references, and how far logits are from them |
//! | `lora` | the fixtures as adapters |
//! | `merging` | what the rules of adapters make of a tensor, in f64 |
//!
//! The others are tests. Everything that has arrays runs on MLX's thread.

mod lora;
mod merging;
mod models;
mod reference;

mod adapters;
mod adapters_merged;
mod adapters_refused;
mod adapters_resplit;
mod architectures;
mod bounds;
mod kv_cache;
mod longrope;
mod quantized;
mod replaced;
mod sessions;
mod tiny_llama;

use llm_local_backend_common::worker::StepModel;
use llm_local_core::{ComputeDtype, LoadOptions, model::DecoderConfig};
use llm_local_weights::Checkpoint;

use crate::{decoder::Decoder, device::device, support, thread::MLX};

use models::{checkpoint, description, fixture, load, load_with, options, supported, tiny};
use reference::{Reference, Row, agrees, all_logits, best, difference, largest_error, prefill};

/// Runs `test` where arrays may be.
pub(crate) fn on_thread<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    // Which asks that thread, the first time.
    device().unwrap();
    pollster::block_on(MLX.call(test)).unwrap_or_else(|error| panic!("{error}"))
}

/// Fixed numbers around 0, others for each seed.
pub(crate) fn numbers(n: usize, seed: usize, size: f64) -> Vec<f32> {
    (0..n).map(|i| (size * (((i + 977 * seed) as f64 * 12.9898).sin() * 43758.5453).fract()) as f32).collect()
}
