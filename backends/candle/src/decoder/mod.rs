//! The decoder: any [`DecoderConfig`](llm_local_core::model::DecoderConfig), dense or quantized, on any device of
//! candle.
//!
//! | module | what it holds |
//! |---|---|
//! | `load`, `weights` | from tensors by name to a decoder |
//! | `readers` | the threads that read its layers |
//! | `replace` | tensors of a decoder that are read anew |
//! | `embedding`, `layer`, `attention`, `linear`, `norm`, `rotary`, `mask` | the computation |
//! | `network` | the matrices and norms of a model |
//! | `side`, `adapters` | adapters beside a matrix; a set of adapters beside a model |
//! | `parts`, `product` | work shared by threads, and products on one |
//! | `cache` | keys and values of one sequence |
//! | `views` | what layers share within a step |
//! | `step` | one step, and what a worker asks for |
//! | `session` | caches that are cut, copied, saved and restored |

mod adapters;
mod attention;
mod cache;
mod embedding;
mod layer;
mod linear;
mod load;
mod mask;
mod network;
mod norm;
mod parts;
mod product;
mod readers;
mod replace;
mod rotary;
mod session;
mod side;
mod step;
mod views;
mod weights;

pub(crate) use adapters::Adapted;
use candle_core::{DType, Device};
pub(crate) use linear::tile_bytes;
pub(crate) use load::reading_threads;

use llm_local_backend_common::decoder::Rotary;
use llm_local_core::model::DecoderConfig;

use {cache::Dimensions, network::Network};

use crate::support::Supported;

/// A decoder-only transformer.
#[derive(Debug)]
pub(crate) struct Decoder {
    base: Network,
    config: DecoderConfig,
    /// How it was loaded.
    supported: Supported,
    /// For each layer, the keys that a query sees.
    windows: Vec<Option<usize>>,
    rotary: Rotary,
    logit_scale: f64,
    logit_soft_cap: Option<f64>,
    dimensions: Dimensions,
    vocab_size: usize,
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

#[cfg(test)]
impl Decoder {
    /// Widens quantized weights in every product, so that activations are not rounded.
    pub(crate) fn widen_always(&mut self) {
        self.base.widen_always();
    }
}
