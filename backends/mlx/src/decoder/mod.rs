//! The decoder: any [`DecoderConfig`], from dense weights or from those that MLX quantized.
//!
//! | module | what it holds |
//! |---|---|
//! | `weights` | from tensors by name to matrices and norms |
//! | `replace` | tensors of a decoder that are read anew |
//! | `embedding`, `layer`, `attention`, `linear`, `norm`, `rotary`, `mask` | the computation |
//! | `network` | the matrices and norms of a model |
//! | `side`, `adapters` | adapters beside a matrix; a set of adapters beside a model |
//! | `cache` | keys and values of one sequence, as floats or quantized |
//! | `views` | what layers share within a step |
//! | `step` | one step, and what a worker asks for |
//! | `session` | caches that are saved and restored |
//! | `numbers` | numbers as MLX takes them |

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
mod numbers;
mod replace;
mod rotary;
mod session;
mod side;
mod step;
mod views;
mod weights;

pub(crate) use {
    adapters::Adapted,
    cache::{KvForm, kv_supported},
    linear::UNPACKED_FROM,
};

use llm_local_backend_common::decoder::{Rotary, window};
use llm_local_core::model::DecoderConfig;

use {cache::Dimensions, network::Network, rotary::Tables};

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
    /// The same as MLX takes it.
    tables: Tables,
    logit_scale: f64,
    logit_soft_cap: Option<f64>,
    dimensions: Dimensions,
    vocab_size: usize,
    weight_bytes: u64,
}

impl Decoder {
    /// The decoder that `supported` describes, with the weights `base` in `weight_bytes` bytes. Caches will hold up to
    /// `context_length` tokens.
    ///
    /// # Errors
    /// MLX's.
    pub(crate) fn new(
        supported: Supported,
        base: Network,
        rotary: Rotary,
        context_length: usize,
        weight_bytes: u64,
    ) -> mlx_rs::error::Result<Self> {
        let config = supported.decoder.clone();
        let dimensions = Dimensions::new(&config, context_length, supported.activations, supported.kv)?;
        Ok(Self {
            tables: Tables::new(&rotary, config.head_dim, supported.activations)?,
            windows: window::of_layers(&config),
            logit_scale: config.logit_scale,
            logit_soft_cap: config.logit_soft_cap,
            vocab_size: config.vocab_size,
            base,
            config,
            supported,
            rotary,
            dimensions,
            weight_bytes,
        })
    }
}
