//! Safetensors through candle-transformers' `llama`.

use std::collections::HashMap;

use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama, Llama3RopeConfig, Llama3RopeType};
use llm_local_backend_common::worker::StepModel;
use llm_local_core::{
    Error, Result, TensorSource,
    model::{BaseTensor, DecoderConfig, RopeScaling},
};

use crate::{
    errors::load_error,
    load::Loading,
    step::Bounds,
    support::Supported,
    tensors::{TIED_HEAD, same_bytes, tensor},
};

/// A dense Llama.
pub(crate) struct Dense {
    model: Llama,
    /// An empty cache with the rotary table, which takes a while to compute.
    empty: Cache,
    bounds: Bounds,
    weight_bytes: u64,
    kv_bytes_per_token: u64,
}

impl Dense {
    /// Reads every tensor, then builds the model: candle's own loader panics on a tensor that cannot be read.
    pub(crate) fn load(
        s: &Supported,
        source: &dyn TensorSource,
        context_length: usize,
        mut loading: Loading,
    ) -> Result<Self> {
        let dtype = s.candle_dtype();
        let mut tensors = HashMap::new();
        let mut weight_bytes = 0;
        for BaseTensor { name, shape, .. } in s.decoder.base_tensors(s.layout) {
            loading.check()?;
            let data = source.read(&name, Some(s.dtype))?;
            weight_bytes += data.byte_len() as u64;
            tensors.insert(name.clone(), tensor(&name, data, &shape, dtype, &s.device)?);
            loading.tensor_done();
        }
        if s.decoder.tied_embeddings && source.entry(TIED_HEAD).is_some() {
            check_tied(source)?;
        }
        let config = config(&s.decoder, context_length);
        let failed = |e| load_error(&s.id, "candle could not build the model", e);
        let builder = VarBuilder::from_tensors(tensors, dtype, &s.device);
        Ok(Self {
            model: Llama::load(builder, &config).map_err(failed)?,
            empty: Cache::new(true, dtype, &config, &s.device).map_err(failed)?,
            bounds: Bounds { context_length, vocab_size: s.decoder.vocab_size, device: s.device.clone() },
            weight_bytes,
            kv_bytes_per_token: s.decoder.kv_bytes_per_token(s.dtype.size()),
        })
    }
}

/// Checks that the head stored beside the embedding it is tied to is the same.
fn check_tied(source: &dyn TensorSource) -> Result<()> {
    const EMBEDDING: &str = "model.embed_tokens.weight";
    match same_bytes(&source.read(TIED_HEAD, None)?, &source.read(EMBEDDING, None)?) {
        Some(true) => Ok(()),
        Some(false) => Err(Error::load(
            TIED_HEAD,
            format!(
                "config.json ties it to {EMBEDDING}, but the two differ; set tie_word_embeddings to false, or remove it"
            ),
        )),
        None => Err(Error::load(TIED_HEAD, "its data is in a form that this backend does not know")),
    }
}

fn config(c: &DecoderConfig, context_length: usize) -> Config {
    Config {
        hidden_size: c.hidden_size,
        intermediate_size: c.intermediate_size,
        vocab_size: c.vocab_size,
        num_hidden_layers: c.layers,
        num_attention_heads: c.heads,
        num_key_value_heads: c.kv_heads,
        use_flash_attn: false,
        rms_norm_eps: c.norm_eps,
        rope_theta: c.rope.theta as f32,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling: match c.rope.scaling {
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                Some(Llama3RopeConfig {
                    factor: factor as f32,
                    low_freq_factor: low_freq_factor as f32,
                    high_freq_factor: high_freq_factor as f32,
                    original_max_position_embeddings: original_max_positions,
                    rope_type: Llama3RopeType::Llama3,
                })
            }
            // `supports` has refused every other kind.
            _ => None,
        },
        // The length of the rotary table. candle also cuts the cache by it, but compares it with the number of heads.
        max_position_embeddings: context_length.max(c.kv_heads),
        tie_word_embeddings: c.tied_embeddings,
    }
}

impl StepModel for Dense {
    type Cache = Cache;

    fn new_cache(&mut self, _: usize) -> Result<Cache> {
        Ok(self.empty.clone())
    }

    fn forward(&mut self, cache: &mut Cache, tokens: &[u32], position: usize) -> Result<Vec<f32>> {
        self.bounds.run(tokens, position, |input| self.model.forward(input, position, cache))
    }

    fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    fn cache_bytes(&self, _: &Cache, positions: usize) -> u64 {
        self.kv_bytes_per_token * positions as u64
    }
}
