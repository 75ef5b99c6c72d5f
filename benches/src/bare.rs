//! The yardstick: candle-transformers called in a loop, with nothing around it.

use std::{fs::File, path::Path, time::Instant};

use candle_core::{DType, Device, Tensor, quantized::gguf_file};
use candle_nn::VarBuilder;
use candle_transformers::models::{
    llama::{Cache, Config, Llama, LlamaConfig},
    quantized_llama::ModelWeights,
};

use crate::{Result, ours::Timing};

/// A model of candle-transformers.
pub(crate) enum Bare {
    Dense { model: Llama, config: Config, dtype: DType, cache: Cache },
    Quantized(ModelWeights),
}

impl Bare {
    /// The model at `path`, a GGUF file, or else a folder whose one `model.safetensors` is computed in `dtype`.
    pub(crate) fn load(path: &Path, dtype: DType) -> Result<Self> {
        if path.is_file() {
            let mut file = File::open(path)?;
            let content = gguf_file::Content::read(&mut file)?;
            return Ok(Self::Quantized(ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?));
        }
        let config: LlamaConfig = serde_json::from_reader(File::open(path.join("config.json"))?)?;
        let config = config.into_config(false);
        // SAFETY: nothing changes the file while it is mapped; it is one of those that `scripts/measure` prepared.
        let weights =
            unsafe { VarBuilder::from_mmaped_safetensors(&[path.join("model.safetensors")], dtype, &Device::Cpu)? };
        let cache = Cache::new(true, dtype, &config, &Device::Cpu)?;
        Ok(Self::Dense { model: Llama::load(weights, &config)?, config, dtype, cache })
    }

    /// Generates `count` tokens greedily. The prompt is computed in chunks of at most `chunk` tokens.
    pub(crate) fn run(&mut self, prompt: &[u32], chunk: usize, count: usize) -> Result<Timing> {
        self.forget()?;
        let start = Instant::now();
        let mut position = 0;
        let mut logits = Vec::new();
        for ids in prompt.chunks(chunk) {
            logits = self.forward(ids, position)?;
            position += ids.len();
        }
        let mut tokens = vec![best(&logits)];
        let first = Instant::now();
        while tokens.len() < count {
            logits = self.forward(&tokens[tokens.len() - 1..], position)?;
            position += 1;
            tokens.push(best(&logits));
        }
        Ok(Timing::new(first - start, prompt.len(), first.elapsed(), tokens))
    }

    /// Empties the KV cache.
    fn forget(&mut self) -> Result<()> {
        match self {
            Self::Dense { config, dtype, cache, .. } => *cache = Cache::new(true, *dtype, config, &Device::Cpu)?,
            Self::Quantized(model) => model.clear_kv_cache(),
        }
        Ok(())
    }

    /// The logits after the last of `ids`.
    fn forward(&mut self, ids: &[u32], position: usize) -> Result<Vec<f32>> {
        let ids = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
        let logits = match self {
            Self::Dense { model, cache, .. } => model.forward(&ids, position, cache)?,
            Self::Quantized(model) => model.forward(&ids, position)?,
        };
        Ok(logits.flatten_all()?.to_vec1()?)
    }
}

/// The first of the largest.
fn best(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_the_first_of_the_largest() {
        assert_eq!(best(&[-1.0, 3.0, 2.0, 3.0]), 1);
    }
}
