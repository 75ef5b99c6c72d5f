//! What a backend writes.

use std::any::Any;

use llm_local_core::{LoadedInfo, Result, TrimLevel};

use crate::text::TextPipeline;

/// A model that lives on its worker's thread. It need not be `Send`.
pub trait StepModel: 'static {
    /// The KV cache of one generation.
    type Cache: 'static;

    /// An empty cache.
    ///
    /// # Errors
    /// Whatever keeps the model from it; it ends the generation that the cache is for.
    fn new_cache(&mut self) -> Result<Self::Cache>;

    /// Computes `tokens` at the positions from `position` on. Returns the logits after the last of them, shape
    /// (vocab,), f32.
    ///
    /// # Errors
    /// Whatever went wrong; it ends the generation that the cache is for, and no other.
    fn forward(&mut self, cache: &mut Self::Cache, tokens: &[u32], position: usize) -> Result<Vec<f32>>;

    /// Bytes that the weights take.
    fn weight_bytes(&self) -> u64;

    /// Bytes that `cache` takes when it holds `positions` tokens.
    fn cache_bytes(&self, cache: &Self::Cache, positions: usize) -> u64;

    /// Frees what can be rebuilt, such as buffers that an allocator keeps. Returns the bytes freed.
    ///
    /// # Errors
    /// Whatever went wrong.
    fn trim(&mut self, level: TrimLevel) -> Result<u64> {
        let _ = level;
        Ok(0)
    }
}

/// What [`spawn`](super::spawn)'s closure builds on the worker's thread.
#[derive(Debug)]
pub struct Built<M> {
    /// The model.
    pub model: M,
    /// What was loaded. `load_time` and `has_chat_template` are filled in by the worker.
    pub info: LoadedInfo,
    /// Its text side.
    pub text: TextPipeline,
    /// Tokens of a prompt computed in one step; at least 1.
    pub prefill_chunk: usize,
    /// Dropped, on the worker's thread, after the model: the reservation.
    pub reservation: Option<Box<dyn Any + Send + Sync>>,
}
