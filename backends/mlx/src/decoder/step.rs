//! One step of a sequence, and what a worker asks for.

use std::{collections::BTreeMap, iter};

use llm_local_backend_common::{
    decoder::check_step,
    worker::{NewTensors, StepModel},
};
use llm_local_core::{AdapterSet, Error, Result, SessionState, SessionTensor, TrimLevel};
use mlx_rs::{
    Array, Dtype,
    memory::{cache_memory, clear_cache},
    transforms::eval,
};

use super::{
    Adapted, Decoder,
    cache::{Cache, LayerCache},
    network::Network,
    numbers::{int, scaled, soft_capped},
    views::Views,
};
use crate::{arrays::to_f32, errors::generation_error};

/// Which positions' logits are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Positions {
    #[cfg(test)]
    All,
    Last,
}

impl Decoder {
    /// The logits of every position of `tokens`, row by row.
    #[cfg(test)]
    pub(crate) fn all_logits(
        &mut self,
        cache: &mut Cache,
        tokens: &[u32],
        position: usize,
        adapters: Option<&Adapted>,
    ) -> Result<Vec<f32>> {
        self.run(cache, tokens, position, adapters, Positions::All)
    }

    fn run(
        &self,
        cache: &mut Cache,
        tokens: &[u32],
        position: usize,
        adapters: Option<&Adapted>,
        wanted: Positions,
    ) -> Result<Vec<f32>> {
        check_step(tokens, position, cache.tokens, self.dimensions.context_length, self.vocab_size)?;
        self.check_frequencies(cache, position + tokens.len())?;
        let network = adapters.map_or(&self.base, Adapted::network);
        let mut compute = || {
            let logits = self.logits(network, cache, tokens, wanted)?;
            // The only evaluation of a step: with the cache, or the next step would begin with this one.
            eval(iter::once(&logits).chain(cache.arrays()))?;
            to_f32(&logits)
        };
        compute().map_err(|e| {
            generation_error(&format!("MLX could not compute {} tokens at position {position}", tokens.len()), e)
        })
    }

    /// Checks that a sequence that has `end` tokens or more can have the frequencies that it is computed with.
    fn check_frequencies(&self, cache: &Cache, end: usize) -> Result<()> {
        if cache.long || !self.rotary.is_long(end) {
            return Ok(());
        }
        Err(Error::generation(format!(
            "a sequence of {end} tokens has other rotary frequencies than its KV cache was computed with; compute it in a new one"
        )))
    }

    /// Computes `tokens` behind those that are computed: logits in f32, shape (positions, vocab), not yet evaluated.
    fn logits(
        &self,
        network: &Network,
        cache: &mut Cache,
        tokens: &[u32],
        wanted: Positions,
    ) -> mlx_rs::error::Result<Array> {
        let (count, expected, of) = (tokens.len(), cache.expected, &self.dimensions);
        let views = Views::new(self, cache, count)?;
        let ids = Array::from_slice(tokens, &[int(count)]);
        let mut x = network.embedding.forward(&ids, of.activations)?;
        let last = network.layers.len() - 1;
        for (i, (layer, cache)) in network.layers.iter().zip(&mut cache.layers).enumerate() {
            let only_last = i == last && wanted == Positions::Last;
            x = layer.forward(&x, views.of(self.windows[i]), cache, expected, only_last, of)?;
        }
        cache.tokens += count;
        let logits = network.head.forward(&network.norm.forward(&x)?)?.as_dtype(Dtype::Float32)?;
        soft_capped(scaled(logits, self.logit_scale)?, self.logit_soft_cap)
    }
}

impl StepModel for Decoder {
    type Cache = Cache;
    type Adapters = Adapted;

    fn new_cache(&mut self, prompt: usize) -> Result<Cache> {
        Ok(Cache {
            layers: self.windows.iter().map(|window| LayerCache::new(*window)).collect(),
            tokens: 0,
            expected: prompt,
            long: self.rotary.is_long(prompt),
        })
    }

    /// Where the rotary frequencies change with the length, a cache is for sequences up to that or for longer ones.
    fn holds(&self, cache: &Cache, tokens: usize) -> bool {
        cache.long == self.rotary.is_long(tokens)
    }

    fn forward(
        &mut self,
        cache: &mut Cache,
        tokens: &[u32],
        position: usize,
        adapters: Option<&Adapted>,
    ) -> Result<Vec<f32>> {
        self.run(cache, tokens, position, adapters, Positions::Last)
    }

    fn runs_adapters(&self) -> bool {
        true
    }

    fn prepare_adapters(&mut self, set: &AdapterSet) -> Result<Adapted> {
        self.with_adapters(set)
    }

    fn adapter_bytes(&self, adapters: &Adapted) -> u64 {
        adapters.bytes()
    }

    fn replaces_tensors(&self) -> bool {
        true
    }

    fn replace_tensors(&mut self, new: &NewTensors) -> Result<Adapted> {
        self.replace(new)
    }

    fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    fn cache_bytes(&self, cache: &Cache, _: usize) -> u64 {
        cache.bytes()
    }

    fn keeps_sessions(&self) -> bool {
        true
    }

    fn truncate(&mut self, cache: &mut Cache, tokens: usize) -> Result<bool> {
        Ok(cache.truncate(tokens))
    }

    /// Shares the arrays: the sequence that writes to them first copies them then.
    fn copy_cache(&mut self, cache: &Cache) -> Result<Cache> {
        Ok(cache.clone())
    }

    fn export_cache(&mut self, cache: &Cache) -> Result<(BTreeMap<String, String>, Vec<SessionTensor>)> {
        self.export(cache)
    }

    fn import_cache(&mut self, state: &SessionState) -> Result<Cache> {
        self.import(state)
    }

    /// What sessions held is free by now, but the allocator keeps it.
    fn trim(&mut self, _: TrimLevel) -> Result<u64> {
        let cleared = || {
            let before = cache_memory()?;
            clear_cache()?;
            Ok(before.saturating_sub(cache_memory()?) as u64)
        };
        cleared().map_err(|e| generation_error("MLX could not clear its allocator's cache", e))
    }
}
