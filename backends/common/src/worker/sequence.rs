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
    cached: Option<Cached<C>>,
}

/// A KV cache, counted.
pub(super) struct Cached<C> {
    pub(super) cache: C,
    /// Behind `cache`: bytes count until it is dropped.
    pub(super) bytes: KvBytes,
}

/// What is computed of a sequence that has ended: the cache holds `tokens`.
pub(super) struct Kept<C> {
    pub(super) tokens: Vec<u32>,
    pub(super) cached: Cached<C>,
}

impl<C> Cached<C> {
    /// Counts `cache`, which holds `tokens` tokens.
    pub(super) fn new<M: StepModel<Cache = C>>(cache: C, tokens: usize, model: &M, shared: Arc<Shared>) -> Self {
        let mut bytes = KvBytes::new(shared);
        bytes.set(model.cache_bytes(&cache, tokens));
        Self { cache, bytes }
    }

    /// Drops the cache. Its bytes are not counted any more, even if that panics.
    pub(super) fn free(self) -> Result<()> {
        caught(|| drop(self)).map_err(|panic| Error::generation(format!("freeing the KV cache panicked: {panic}")))
    }
}

impl<C> Sequence<C> {
    pub(super) fn new(tokens: Vec<u32>) -> Self {
        Self { tokens, computed: 0, cached: None }
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

    /// Goes on from what `kept` has in common with the tokens, at most all but the last one: without it computed anew
    /// there would be no logits to choose from. Called before the first [`Sequence::advance`].
    pub(super) fn resume<M: StepModel<Cache = C>>(&mut self, kept: Kept<C>, model: &mut M) -> Result<()> {
        let Kept { tokens, mut cached } = kept;
        let same = self.tokens.iter().zip(&tokens).take_while(|(a, b)| a == b).count();
        let common = same.min(self.tokens.len().saturating_sub(1));
        if common == 0 || (common < tokens.len() && !model.truncate(&mut cached.cache, common)?) {
            return cached.free();
        }
        cached.bytes.set(model.cache_bytes(&cached.cache, common));
        self.cached = Some(cached);
        self.computed = common;
        Ok(())
    }

    /// Computes the next chunk. Gives the logits after the last token once all are computed.
    pub(super) fn advance<M: StepModel<Cache = C>>(&mut self, turn: &mut Turn<'_, M>) -> Result<Option<Vec<f32>>> {
        let Cached { cache, bytes } = match &mut self.cached {
            Some(cached) => cached,
            empty => empty.insert(Cached {
                cache: turn.model.new_cache(self.tokens.len())?,
                bytes: KvBytes::new(turn.shared.clone()),
            }),
        };
        let end = self.tokens.len().min(self.computed + turn.prefill_chunk);
        let chunk = &self.tokens[self.computed..end];
        turn.shared.count_step(chunk.len());
        let logits = turn.model.forward(cache, chunk, self.computed)?;
        self.computed = end;
        bytes.set(turn.model.cache_bytes(cache, end));
        if logits.len() != turn.info.vocab_size {
            return Err(Error::generation(format!(
                "the backend gave {} logits for a vocabulary of {}",
                logits.len(),
                turn.info.vocab_size
            )));
        }
        Ok((end == self.tokens.len()).then_some(logits))
    }

    /// Takes out what is computed, if anything is.
    pub(super) fn take_computed(&mut self) -> Option<Kept<C>> {
        let cached = self.cached.take()?;
        let mut tokens = std::mem::take(&mut self.tokens);
        tokens.truncate(std::mem::take(&mut self.computed));
        Some(Kept { tokens, cached })
    }

    /// Drops the cache.
    pub(super) fn release(&mut self) -> Result<()> {
        self.cached.take().map_or(Ok(()), Cached::free)
    }
}
