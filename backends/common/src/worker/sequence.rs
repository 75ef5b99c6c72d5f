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
    /// Tokens of [`Sequence::resume`] that are still in use.
    resumed: usize,
    /// Made for the first chunk, so that a request that computes nothing takes no memory.
    cached: Option<Cached<C>>,
}

/// What a step has computed.
pub(super) struct Advance {
    pub(super) tokens: usize,
    /// After the last token, once all are computed.
    pub(super) logits: Option<Vec<f32>>,
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
        Self { tokens, computed: 0, resumed: 0, cached: None }
    }

    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub(super) fn computed(&self) -> usize {
        self.computed
    }

    /// Tokens that were in the cache of [`Sequence::resume`], unless that had to be given up.
    pub(super) fn resumed(&self) -> usize {
        self.resumed
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
        (self.computed, self.resumed) = (common, common);
        Ok(())
    }

    /// Computes the next chunk; the first one again, if the cache cannot go on with the tokens that there are now. Nothing, if
    /// it is not `wanted` any more when the model is about to compute it.
    pub(super) fn advance<M: StepModel<Cache = C>>(
        &mut self,
        turn: &mut Turn<'_, M>,
        adapters: Option<&M::Adapters>,
        wanted: impl FnOnce() -> bool,
    ) -> Result<Option<Advance>> {
        let count = self.tokens.len();
        if let Some(cached) = self.cached.take_if(|cached| !turn.model.holds(&cached.cache, count)) {
            tracing::debug!(model = turn.info.model, tokens = count, computed = self.computed, "computing anew");
            (self.computed, self.resumed) = (0, 0);
            // Before there is another: two would take twice the memory.
            cached.free()?;
        }
        let Cached { cache, bytes } = match &mut self.cached {
            Some(cached) => cached,
            empty => empty.insert(new_cache(turn, count)?),
        };
        if !wanted() {
            return Ok(None);
        }
        let from = self.computed;
        let end = count.min(from + turn.prefill_chunk);
        turn.shared.count_step(end - from);
        let logits = turn.model.forward(cache, &self.tokens[from..end], from, adapters)?;
        self.computed = end;
        bytes.set(turn.model.cache_bytes(cache, end));
        if logits.len() != turn.info.vocab_size {
            return Err(Error::generation(format!(
                "the backend gave {} logits for a vocabulary of {}",
                logits.len(),
                turn.info.vocab_size
            )));
        }
        Ok(Some(Advance { tokens: end - from, logits: (end == count).then_some(logits) }))
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

/// An empty cache for `tokens` tokens.
fn new_cache<M: StepModel>(turn: &mut Turn<'_, M>, tokens: usize) -> Result<Cached<M::Cache>> {
    let cache = turn.model.new_cache(tokens)?;
    if !turn.model.holds(&cache, tokens) {
        // It would be made anew with every step, for ever.
        return Err(Error::generation(format!(
            "the backend made a KV cache for {tokens} tokens that holds fewer or more"
        )));
    }
    Ok(Cached { cache, bytes: KvBytes::new(turn.shared.clone()) })
}
