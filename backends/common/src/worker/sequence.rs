//! Tokens and their KV cache.

use std::sync::Arc;

use llm_local_core::{Error, Result};

use super::{
    StepModel,
    caught::caught,
    shared::{KvBytes, Shared},
    task::Turn,
};

/// A growing list of tokens, of which a first part is computed.
pub(super) struct Sequence<C> {
    tokens: Vec<u32>,
    computed: usize,
    /// Made for the first chunk, so that a request that computes nothing takes no memory.
    cache: Option<C>,
    /// Behind `cache`: bytes count until it is dropped.
    bytes: KvBytes,
}

impl<C> Sequence<C> {
    pub(super) fn new(tokens: Vec<u32>, shared: Arc<Shared>) -> Self {
        Self { tokens, computed: 0, cache: None, bytes: KvBytes::new(shared) }
    }

    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub(super) fn computed(&self) -> usize {
        self.computed
    }

    pub(super) fn push(&mut self, id: u32) {
        self.tokens.push(id);
    }

    /// Computes the next chunk. Gives the logits after the last token once all are computed.
    pub(super) fn advance<M: StepModel<Cache = C>>(&mut self, turn: &mut Turn<'_, M>) -> Result<Option<Vec<f32>>> {
        let cache = match &mut self.cache {
            Some(cache) => cache,
            empty => empty.insert(turn.model.new_cache(self.tokens.len())?),
        };
        let end = self.tokens.len().min(self.computed + turn.prefill_chunk);
        let chunk = &self.tokens[self.computed..end];
        turn.shared.count_step(chunk.len());
        let logits = turn.model.forward(cache, chunk, self.computed)?;
        self.computed = end;
        self.bytes.set(turn.model.cache_bytes(cache, end));
        if logits.len() != turn.info.vocab_size {
            return Err(Error::generation(format!(
                "the backend gave {} logits for a vocabulary of {}",
                logits.len(),
                turn.info.vocab_size
            )));
        }
        Ok((end == self.tokens.len()).then_some(logits))
    }

    /// Drops the cache.
    pub(super) fn release(&mut self) -> Result<()> {
        let cache = self.cache.take();
        let dropped = caught(|| drop(cache));
        self.bytes.set(0);
        dropped.map_err(|panic| Error::generation(format!("freeing the KV cache panicked: {panic}")))
    }
}
