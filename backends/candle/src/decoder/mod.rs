//! The decoder: any [`DecoderConfig`](llm_local_core::model::DecoderConfig), dense or quantized, on any device of
//! candle.
//!
//! | module | what it holds |
//! |---|---|
//! | `load`, `weights` | from tensors by name to a decoder |
//! | `embedding`, `layer`, `attention`, `linear`, `norm`, `rotary`, `mask` | the computation |
//! | `cache` | keys and values of one sequence |
//! | `views` | what layers share within a step |
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
mod product;
mod rotary;
mod session;
mod step;
mod views;
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
        use {attention::Projections, layer::GateUp};
        self.head.widen_always();
        for layer in &mut self.layers {
            match &mut layer.attention.projections {
                Projections::Fused(all) => all.widen_always(),
                Projections::Split { q, k, v } => [q, k, v].into_iter().for_each(Linear::widen_always),
            }
            match &mut layer.mlp.gate_up {
                GateUp::Fused(both) => both.widen_always(),
                GateUp::Split { gate, up } => [gate, up].into_iter().for_each(Linear::widen_always),
            }
            layer.attention.output.widen_always();
            layer.mlp.down.widen_always();
        }
    }
}
