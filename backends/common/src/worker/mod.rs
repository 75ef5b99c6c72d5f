//! The thread that owns a model and serves generations in fair steps.

use std::sync::Arc;

use llm_local_core::{Error, LoadOptions, LoadedInfo, LoadedModel, Result};

use crate::text::TextPipeline;

/// A model that lives on its worker's thread. It need not be `Send`.
pub trait StepModel: 'static {
    /// The KV cache of one generation.
    type Cache: 'static;

    /// An empty cache.
    fn new_cache(&mut self) -> Result<Self::Cache>;

    /// Computes `tokens` at the positions from `position` on. Returns the logits after the last of them, shape
    /// (vocab,), f32.
    fn forward(&mut self, cache: &mut Self::Cache, tokens: &[u32], position: usize) -> Result<Vec<f32>>;

    /// Bytes that the weights take.
    fn weight_bytes(&self) -> u64;

    /// Bytes that `cache` takes when it holds `positions` tokens.
    fn cache_bytes(&self, cache: &Self::Cache, positions: usize) -> u64;
}

/// What [`spawn`]'s closure builds on the worker's thread.
#[derive(Debug)]
pub struct Built<M> {
    /// The model.
    pub model: M,
    /// What was loaded. `load_time` and `has_chat_template` are filled in by the worker.
    pub info: LoadedInfo,
    /// Its text side.
    pub text: TextPipeline,
    /// Tokens of a prompt computed in one step.
    pub prefill_chunk: usize,
    /// Dropped, on the worker's thread, after the model: the reservation.
    pub reservation: Option<Box<dyn std::any::Any + Send + Sync>>,
}

/// Starts a worker thread, builds the model on it, and returns its handle.
pub async fn spawn<M: StepModel>(
    _options: &LoadOptions,
    _build: impl FnOnce() -> Result<Built<M>> + Send + 'static,
) -> Result<Arc<dyn LoadedModel>> {
    Err(Error::generation("no worker yet"))
}
