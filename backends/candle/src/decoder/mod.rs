//! The decoder: any [`DecoderConfig`], dense or quantized, on any device of candle.
//!
//! | module | what it holds |
//! |---|---|
//! | `load`, `weights` | from tensors by name to a decoder |
//! | `embedding`, `layer`, `attention`, `linear`, `norm`, `rotary`, `mask` | the computation |
//! | `cache` | keys and values of one sequence |
//! | `step` | one step, and what a worker asks for |
//! | `session` | caches that are cut, copied, saved and restored |

mod attention;
mod cache;
mod embedding;
mod layer;
mod linear;
mod load;
mod mask;
mod norm;
mod rotary;
mod session;
mod step;
mod weights;

pub(crate) use cache::LayerCache;
use candle_core::{DType, Device};
pub(crate) use linear::tile_bytes;

use {cache::Dimensions, embedding::Embedding, layer::Layer, linear::Linear, norm::RmsNorm, rotary::Rotary};

/// A decoder-only transformer.
#[derive(Debug)]
pub(crate) struct Decoder {
    embedding: Embedding,
    layers: Vec<Layer>,
    /// For each layer, the keys that a query sees.
    windows: Vec<Option<usize>>,
    norm: RmsNorm,
    head: Linear,
    rotary: Rotary,
    logit_scale: f64,
    logit_soft_cap: Option<f64>,
    dimensions: Dimensions,
    vocab_size: usize,
    /// Tokens computed in one step where a sequence is computed anew.
    chunk: usize,
    weight_bytes: u64,
}

impl Decoder {
    fn dtype(&self) -> DType {
        self.dimensions.dtype
    }

    fn device(&self) -> &Device {
        &self.dimensions.device
    }
}
