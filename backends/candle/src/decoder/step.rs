//! One step of a sequence, and what a worker asks for.

use std::collections::BTreeMap;

use candle_core::Tensor;
use llm_local_backend_common::{
    decoder::check_step,
    worker::{NewTensors, StepModel},
};
use llm_local_core::{AdapterSet, Error, Result, SessionState, SessionTensor, TrimLevel};

use super::{
    Adapted, Decoder,
    cache::{Cache, LayerCache},
    network::Network,
    views::Views,
};
use crate::{device, errors::generation_error, heap};

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
        let mut compute = || self.logits(network, cache, tokens, wanted)?.flatten_all()?.to_vec1();
        let computed = if self.device().is_cpu() {
            heap::in_pool(|| {
                let computed = compute();
                // Here, since it reaches the end of this thread's part alone.
                if tokens.len() >= heap::MANY_ROWS {
                    heap::trim_thread();
                }
                computed
            })
        } else {
            compute()
        };
        computed.map_err(|e| {
            generation_error(&format!("candle could not compute {} tokens at position {position}", tokens.len()), e)
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

    /// Computes `tokens` behind those that are computed: logits in f32, shape (positions, vocab).
    fn logits(
        &self,
        network: &Network,
        cache: &mut Cache,
        tokens: &[u32],
        wanted: Positions,
    ) -> candle_core::Result<Tensor> {
        let (position, count, expected) = (cache.tokens, tokens.len(), cache.expected);
        let (dtype, device) = (self.dtype(), self.device());
        let views = Views::new(&self.rotary, &self.windows, position, count, cache.long, dtype, device)?;
        let mut x = network.embedding.forward(&Tensor::new(tokens, device)?, dtype)?;
        let last = network.layers.len() - 1;
        let mut moved = 0;
        for (i, (layer, cache)) in network.layers.iter().zip(&mut cache.layers).enumerate() {
            let view = views.of(self.windows[i]);
            let only_last = i == last && wanted == Positions::Last;
            let held = cache.bytes();
            x = layer.forward(&x, view, cache, expected, only_last, &self.dimensions)?;
            if cache.bytes() != held {
                moved += held;
            }
            if device.is_cpu() && moved >= heap::MUCH_MOVED {
                heap::trim();
                moved = 0;
            }
        }
        cache.tokens += count;
        let mut logits = network.head.forward(&network.norm.forward(&x)?)?.to_dtype(candle_core::DType::F32)?;
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

    /// What sessions held is free by now, but the allocator keeps it.
    fn trim(&mut self, _: TrimLevel) -> Result<u64> {
        device::release(self.device());
        heap::trim_all();
        Ok(0)
    }
}
