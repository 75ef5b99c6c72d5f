//! The candle backend of llm-local: Llama models on the CPU, and with the features `metal` and `cuda` on a GPU.
//!
//! Dense weights run through candle-transformers' `llama`, GGUF files through its `quantized_llama`. What those two
//! would ignore or get wrong is refused before a weight is read, with the field's name.
//!
//! | module | what it holds |
//! |---|---|
//! | `backend` | the [`InferenceBackend`]: what is asked, and who answers |
//! | `device` | the devices that work here |
//! | `support` | whether a model can be run, and as what |
//! | `fields`, `tensors` | the checks of config values and of tensor headers |
//! | `estimate` | how much memory it takes |
//! | `load` | from weights to a worker; progress and cancel |
//! | `dense` | safetensors through `llama` |
//! | `gguf`, `segments` | GGUF through `quantized_llama`, fed from tensors instead of a file |
//! | `step` | one forward step, whichever model it is of |
//! | `errors` | candle's errors as those of the contract |

mod backend;
mod dense;
mod device;
mod errors;
mod estimate;
mod fields;
mod gguf;
mod load;
#[cfg(test)]
mod reference_tests;
mod segments;
mod step;
mod support;
mod tensors;

pub use backend::CandleBackend;

use std::sync::Arc;

use llm_local_core::{InferenceBackend, Plugin, PluginContext, Result, plugin, submit};

/// The plugin's descriptor.
pub const PLUGIN: Plugin = plugin!("candle").with_backend(100, make);
submit!(PLUGIN);

fn make(_: &PluginContext) -> Result<Arc<dyn InferenceBackend>> {
    Ok(Arc::new(CandleBackend::new()))
}
