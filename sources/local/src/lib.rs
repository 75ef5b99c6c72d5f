//! The local source: models and adapters in folders and files of this machine, by `file:` refs and plain paths.
//!
//! | module | what it holds |
//! |---|---|
//! | `source` | [`LocalSource`]: the traits |
//! | `path` | refs to absolute paths, `~` too |
//! | `folder` | what lies in a folder |
//! | `model`, `adapter` | which files are the model or the adapter, with the checks of their headers |
//! | `revision` | what pins them |
//!
//! Nothing is copied: a file is used where it lies. Links are followed, since the caches of other tools are made of
//! them; but the names in an index file, which comes with a download, cannot leave the folder.

mod adapter;
mod folder;
mod model;
mod path;
mod revision;
mod source;

pub use source::LocalSource;

use std::sync::Arc;

use llm_local_core::{AdapterSource, ModelSource, Plugin, PluginContext, Result, artifact_ref::FILE_SCHEME};

/// The descriptor of this plugin: a source of models and one of adapters, of the scheme `file`.
pub const PLUGIN: Plugin = llm_local_core::plugin!("local")
    .with_model_source(FILE_SCHEME, model_source)
    .with_adapter_source(FILE_SCHEME, adapter_source);

llm_local_core::submit!(PLUGIN);

fn model_source(_: &PluginContext) -> Result<Arc<dyn ModelSource>> {
    Ok(Arc::new(LocalSource::new()))
}

fn adapter_source(_: &PluginContext) -> Result<Arc<dyn AdapterSource>> {
    Ok(Arc::new(LocalSource::new()))
}

#[cfg(test)]
mod tests;
