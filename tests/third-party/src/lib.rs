//! A plugin crate as a third party writes it. It depends on `llm-local-core` alone, and on what its own format is written in, and brings
//!
//! - a backend, `parrot`, that runs one architecture: [`Parrot`];
//! - a source of models and adapters for refs such as `mem:polly`: [`Memory`];
//! - a format of adapters, `factors`: [`Factors`].
//!
//! An application that links it needs one line, `use third_party_plugin as _;`.

mod backend;
mod format;
mod model;
mod source;

pub use backend::Parrot;
pub use format::Factors;
pub use source::Memory;

use std::sync::Arc;

use llm_local_core::{
    AdapterSource, InferenceBackend, ModelSource, Plugin, PluginContext, Result, lora::AdapterFormat,
};

fn backend(_: &PluginContext) -> Result<Arc<dyn InferenceBackend>> {
    Ok(Arc::new(Parrot))
}

fn models(_: &PluginContext) -> Result<Arc<dyn ModelSource>> {
    Ok(Arc::new(Memory))
}

fn adapters(_: &PluginContext) -> Result<Arc<dyn AdapterSource>> {
    Ok(Arc::new(Memory))
}

fn factors(_: &PluginContext) -> Result<Arc<dyn AdapterFormat>> {
    Ok(Arc::new(Factors))
}

/// The descriptor of this crate.
pub const PLUGIN: Plugin = llm_local_core::plugin!("parrot")
    .with_backend(-10, backend)
    .with_model_source(source::SCHEME, models)
    .with_adapter_source(source::SCHEME, adapters)
    .with_adapter_format(format::NAME, factors);
llm_local_core::submit!(PLUGIN);

/// A descriptor that is not submitted: its backend claims the name of a built-in one.
pub const CLAIMS_CANDLE: Plugin = llm_local_core::plugin!("candle").with_backend(1000, backend);

/// A descriptor that is not submitted: its sources claim the scheme of built-in ones.
pub const CLAIMS_FILE: Plugin =
    llm_local_core::plugin!("other-files").with_model_source("file", models).with_adapter_source("file", adapters);
