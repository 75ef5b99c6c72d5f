//! The candle backend of llm-local: decoder models on the CPU, and with the features `metal` and `cuda` on a GPU.
//!
//! One decoder computes every architecture that [`DecoderConfig`] describes, from dense weights or from the blocks of
//! GGUF files. What it would ignore or get wrong is refused before a weight is read, with the field's name.
//!
//! | module | what it holds |
//! |---|---|
//! | `backend` | the [`InferenceBackend`]: what is asked, and who answers |
//! | `route` | who computes a model |
//! | `device` | the devices that work here |
//! | `support` | whether a model can be run, and as what |
//! | `fields`, `tensors` | the checks of config values and of tensor headers |
//! | `estimate` | how much memory it takes |
//! | `load` | from weights to a worker; progress and cancel |
//! | `decoder` | the decoder |
//! | `transformers` | architectures that the decoder does not cover, through candle-transformers |
//! | `steps` | what every step is checked against |
//! | `elements`, `tied` | tensor data into candle's tensors; heads stored beside their embedding |
//! | `heap` | what loads and models leave in the heap |
//! | `errors` | candle's errors as those of the contract |
//!
//! [`DecoderConfig`]: llm_local_core::model::DecoderConfig

mod backend;
mod decoder;
mod device;
mod elements;
mod errors;
mod estimate;
mod fields;
mod heap;
mod load;
#[cfg(test)]
mod reference_tests;
mod route;
mod steps;
mod support;
mod tensors;
mod tied;
mod transformers;

pub use backend::CandleBackend;

use std::sync::Arc;

use llm_local_core::{InferenceBackend, Plugin, PluginContext, Result, plugin, submit};

/// The plugin's descriptor.
pub const PLUGIN: Plugin = plugin!("candle").with_backend(100, make);
submit!(PLUGIN);

fn make(_: &PluginContext) -> Result<Arc<dyn InferenceBackend>> {
    Ok(Arc::new(CandleBackend::new()))
}
