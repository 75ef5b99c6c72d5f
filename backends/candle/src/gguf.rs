//! GGUF through candle-transformers' `quantized_llama`.

use std::collections::HashMap;

use candle_core::quantized::{
    GgmlDType,
    gguf_file::{Content, TensorInfo, Value, VersionedMagic},
};
use candle_transformers::models::quantized_llama::ModelWeights;
use llm_local_backend_common::worker::StepModel;
use llm_local_core::{
    Encoding, Error, FloatType, Result, TensorSource,
    model::{BaseTensor, DecoderConfig},
};

use crate::{
    errors::load_error, estimate, load::Loading, segments::Segments, step::Bounds, support::Supported,
    tensors::ggml_dtype,
};

/// A quantized Llama.
pub(crate) struct Gguf {
    /// Never run itself, so that its caches stay empty: each generation runs a clone, which shares the weights.
    empty: ModelWeights,
    bounds: Bounds,
    weight_bytes: u64,
    kv_bytes_per_token: u64,
}

impl Gguf {
    /// Hands candle's loader a header made of what is known already, and the tensors as if they were a file.
    pub(crate) fn load(
        s: &Supported,
        source: &dyn TensorSource,
        context_length: usize,
        loading: Loading,
    ) -> Result<Self> {
        let mut segments = Segments::new(source, loading);
        let mut tensor_infos = HashMap::new();
        for BaseTensor { name, shape, .. } in s.decoder.base_tensors(s.layout) {
            let entry =
                source.entry(&name).ok_or_else(|| Error::load(&s.id, format!("the tensor {name} is missing")))?;
            let elements = shape.iter().product::<usize>();
            // Floats become f32 in any case; asked for here, a merged adapter is not rounded on the way.
            let (ggml_dtype, bytes, want) = match entry.encoding {
                Encoding::Ggml(t) => {
                    let (dtype, bytes) = ggml_dtype(t).zip(entry.stored_bytes()).ok_or_else(|| {
                        Error::load(&name, format!("it is stored as {}, which candle does not read", entry.encoding))
                    })?;
                    (dtype, bytes, None)
                }
                _ => (GgmlDType::F32, elements * FloatType::F32.size(), Some(FloatType::F32)),
            };
            let offset = segments.push(&name, bytes as u64, want);
            tensor_infos.insert(name, TensorInfo { ggml_dtype, shape: shape.into(), offset });
        }
        let weight_bytes = estimate::weights(s, source.entries());
        let content = Content {
            magic: VersionedMagic::GgufV3,
            metadata: metadata(&s.decoder),
            tensor_infos,
            tensor_data_offset: 0,
        };
        let model = ModelWeights::from_gguf(content, &mut segments, &s.device);
        // Looked at first: candle takes a head that cannot be read for a tied one.
        if let Some(failure) = segments.failure() {
            return Err(failure);
        }
        Ok(Self {
            empty: model.map_err(|e| load_error(&s.id, "candle could not build the model", e))?,
            bounds: Bounds { context_length, vocab_size: s.decoder.vocab_size, device: s.device.clone() },
            weight_bytes,
            kv_bytes_per_token: s.decoder.kv_bytes_per_token(FloatType::F32.size()),
        })
    }
}

/// The metadata that candle's loader reads, in the types it wants. Keys that a file may leave out are there too.
fn metadata(c: &DecoderConfig) -> HashMap<String, Value> {
    let count = |n: usize| Value::U32(u32::try_from(n).unwrap_or(u32::MAX));
    [
        ("general.architecture", Value::String(c.architecture.name().into())),
        ("llama.attention.head_count", count(c.heads)),
        ("llama.attention.head_count_kv", count(c.kv_heads)),
        ("llama.block_count", count(c.layers)),
        ("llama.embedding_length", count(c.hidden_size)),
        ("llama.rope.dimension_count", count(c.rope.dims)),
        ("llama.rope.freq_base", Value::F32(c.rope.theta as f32)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(c.norm_eps as f32)),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

impl StepModel for Gguf {
    type Cache = ModelWeights;

    fn new_cache(&mut self, _: usize) -> Result<ModelWeights> {
        Ok(self.empty.clone())
    }

    fn forward(&mut self, cache: &mut ModelWeights, tokens: &[u32], position: usize) -> Result<Vec<f32>> {
        self.bounds.run(tokens, position, |input| cache.forward(input, position))
    }

    fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    fn cache_bytes(&self, _: &ModelWeights, positions: usize) -> u64 {
        self.kv_bytes_per_token * positions as u64
    }
}
