//! One step of a sequence, and what a worker asks for.

use std::collections::BTreeMap;

use candle_core::Tensor;
use llm_local_backend_common::worker::StepModel;
use llm_local_core::{Result, SessionState, SessionTensor};

use super::{
    Decoder,
    attention::View,
    cache::{Cache, LayerCache},
    mask::mask,
};
use crate::{errors::generation_error, steps};

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
    pub(crate) fn all_logits(&mut self, cache: &mut Cache, tokens: &[u32], position: usize) -> Result<Vec<f32>> {
        self.run(cache, tokens, position, Positions::All)
    }

    fn run(&self, cache: &mut Cache, tokens: &[u32], position: usize, wanted: Positions) -> Result<Vec<f32>> {
        steps::check(tokens, position, cache.tokens, self.dimensions.context_length, self.vocab_size)?;
        let mut compute = || {
            self.choose_frequencies(cache, position + tokens.len())?;
            self.logits(cache, tokens, wanted)?.flatten_all()?.to_vec1()
        };
        // On a thread of candle's pool, its operations do not wait for one each.
        let computed =
            if self.device().is_cpu() { candle_core::utils::with_threadpool(&mut compute) } else { compute() };
        computed.map_err(|e| {
            generation_error(&format!("candle could not compute {} tokens at position {position}", tokens.len()), e)
        })
    }

    /// Computes the sequence anew if with `end` tokens it has other frequencies than it was computed with.
    fn choose_frequencies(&self, cache: &mut Cache, end: usize) -> candle_core::Result<()> {
        let long = self.rotary.is_long(end.max(cache.expected));
        if long == cache.long {
            return Ok(());
        }
        cache.long = long;
        cache.tokens = 0;
        cache.layers = self.windows.iter().map(|window| LayerCache::new(*window)).collect();
        let history = std::mem::take(&mut cache.history);
        history.chunks(self.chunk).try_for_each(|tokens| self.logits(cache, tokens, Positions::Last).map(drop))
    }

    /// Computes `tokens` behind those that are computed: logits in f32, shape (positions, vocab).
    fn logits(&self, cache: &mut Cache, tokens: &[u32], wanted: Positions) -> candle_core::Result<Tensor> {
        let (position, count, expected) = (cache.tokens, tokens.len(), cache.expected);
        let (dtype, device) = (self.dtype(), self.device());
        let (global, local) = self.rotary.angles(position, count, cache.long, dtype, device)?;
        let window = self.windows.iter().copied().find(Option::is_some).flatten();
        let full = View { angles: global, mask: mask(position, count, None, dtype, device)? };
        let windowed = View { angles: local, mask: mask(position, count, window, dtype, device)? };

        let mut x = self.embedding.forward(&Tensor::new(tokens, device)?, dtype)?;
        let last = self.layers.len() - 1;
        for (i, (layer, cache)) in self.layers.iter().zip(&mut cache.layers).enumerate() {
            let view = if self.windows[i].is_some() { &windowed } else { &full };
            let only_last = i == last && wanted == Positions::Last;
            x = layer.forward(&x, view, cache, expected, only_last, &self.dimensions)?;
        }
        cache.tokens += count;
        if self.rotary.changes() {
            cache.history.extend_from_slice(tokens);
        }
        let mut logits = self.head.forward(&self.norm.forward(&x)?)?.to_dtype(candle_core::DType::F32)?;
        if self.logit_scale != 1.0 {
            logits = (logits * self.logit_scale)?;
        }
        match self.logit_soft_cap {
            Some(cap) => (logits * (1.0 / cap))?.tanh()? * cap,
            None => Ok(logits),
        }
    }
}

impl StepModel for Decoder {
    type Cache = Cache;

    fn new_cache(&mut self, prompt: usize) -> Result<Cache> {
        Ok(Cache {
            layers: self.windows.iter().map(|window| LayerCache::new(*window)).collect(),
            tokens: 0,
            history: Vec::new(),
            expected: prompt,
            long: self.rotary.is_long(prompt),
        })
    }

    fn forward(&mut self, cache: &mut Cache, tokens: &[u32], position: usize) -> Result<Vec<f32>> {
        self.run(cache, tokens, position, Positions::Last)
    }

    fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    fn cache_bytes(&self, cache: &Cache, _: usize) -> u64 {
        cache.layers.iter().map(LayerCache::bytes).sum()
    }

    fn keeps_sessions(&self) -> bool {
        true
    }

    fn truncate(&mut self, cache: &mut Cache, tokens: usize) -> Result<bool> {
        Ok(cache.truncate(tokens))
    }

    fn copy_cache(&mut self, cache: &Cache) -> Result<Cache> {
        cache.copied().map_err(|e| generation_error("candle could not copy a KV cache", e))
    }

    fn export_cache(&mut self, cache: &Cache) -> Result<(BTreeMap<String, String>, Vec<SessionTensor>)> {
        self.export(cache)
    }

    fn import_cache(&mut self, state: &SessionState) -> Result<Cache> {
        self.import(state)
    }
}
