//! The MLX backend of llm-local: decoder models on the GPU of Apple silicon, and on the CPU of Linux where MLX was prepared
//! for it (feature `linux-cpu`). Where there is no MLX, the plugin is there and says so.
//!
//! One decoder computes every architecture that [`DecoderConfig`] describes, from dense weights or from those that MLX
//! quantized. What it would ignore or get wrong is refused before a weight is read, with the field's name.
//!
//! | module | what it holds |
//! |---|---|
//! | `absent` | the backend of builds without MLX |
//! | `backend` | the [`InferenceBackend`]: what is asked, and who answers |
//! | `thread` | the one thread that owns arrays and streams |
//! | `device`, `info` | what MLX runs on, and what it says of that |
//! | `memory` | what its allocator has, and may have |
//! | `support` | whether a model can be run, and as what |
//! | `estimate` | how much memory it takes |
//! | `load` | from weights to a model on the thread |
//! | `arrays` | bytes into arrays, and back |
//! | `decoder` | the decoder |
//! | `errors` | MLX's errors as those of the contract |
//!
//! [`DecoderConfig`]: llm_local_core::model::DecoderConfig
//! [`InferenceBackend`]: llm_local_core::InferenceBackend

#[cfg(not(mlx))]
mod absent;
#[cfg(mlx)]
mod arrays;
#[cfg(mlx)]
mod backend;
#[cfg(mlx)]
mod decoder;
#[cfg(mlx)]
mod device;
#[cfg(mlx)]
mod errors;
#[cfg(mlx)]
mod estimate;
#[cfg(mlx)]
mod info;
#[cfg(mlx)]
mod load;
#[cfg(mlx)]
mod memory;
#[cfg(all(test, mlx))]
mod reference_tests;
#[cfg(mlx)]
mod support;
#[cfg(mlx)]
mod thread;

#[cfg(not(mlx))]
pub use absent::MlxBackend;
#[cfg(mlx)]
pub use {backend::MlxBackend, memory::MlxMemory};

use std::sync::Arc;

use llm_local_core::{InferenceBackend, Plugin, PluginContext, Result, plugin, submit};

/// The backend's name.
pub(crate) const NAME: &str = "mlx";

/// The priority of the plugin: before candle's 100 on Apple silicon, and behind it elsewhere, where MLX is there to be tested.
pub const fn priority(apple_silicon: bool) -> i32 {
    if apple_silicon { 200 } else { 50 }
}

const APPLE_SILICON: bool = cfg!(all(target_vendor = "apple", target_arch = "aarch64"));

/// The plugin's descriptor.
pub const PLUGIN: Plugin = plugin!("mlx").with_backend(priority(APPLE_SILICON), make);
submit!(PLUGIN);

fn make(_: &PluginContext) -> Result<Arc<dyn InferenceBackend>> {
    Ok(Arc::new(MlxBackend::new()))
}
