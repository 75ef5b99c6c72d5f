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
//! | `dtype` | which types a model is computed in |
//! | `support` | whether a model can be run, and as what |
//! | `tensors` | the check of tensor headers |
//! | `estimate` | how much memory it takes |
//! | `load` | from weights to a worker |
//! | `decoder` | the decoder |
//! | `transformers` | architectures that the decoder does not cover, through candle-transformers |
//! | `elements` | tensor data into candle's tensors |
//! | `heap` | what loads and models leave in the heap |
//! | `errors` | candle's errors as those of the contract |
//!
//! [`DecoderConfig`]: llm_local_core::model::DecoderConfig

mod backend;
mod decoder;
mod device;
mod dtype;
mod elements;
mod errors;
mod estimate;
mod heap;
mod load;
#[cfg(test)]
mod reference_tests;
mod route;
mod support;
mod tensors;
mod transformers;

pub use backend::CandleBackend;

use std::sync::Arc;

use llm_local_core::{InferenceBackend, Plugin, PluginContext, Result, plugin, submit};

/// The priority of the plugin: it is the fallback of backends for one kind of machine.
pub const PRIORITY: i32 = 100;

/// The plugin's descriptor.
pub const PLUGIN: Plugin = plugin!("candle").with_backend(PRIORITY, make);
submit!(PLUGIN);

fn make(_: &PluginContext) -> Result<Arc<dyn InferenceBackend>> {
    Ok(Arc::new(CandleBackend::new()))
}
