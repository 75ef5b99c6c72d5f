//! The Hugging Face source: models and adapters of the Hub by `hf:` refs, in the Hub's own cache.
//!
//! | module | what it holds |
//! |---|---|
//! | `source`, `builder` | [`HuggingFace`]: the traits, and how it is made |
//! | `settings` | token, endpoint, cache folder, offline: from the environment as other tools read it |
//! | `reference` | what a ref means: repository, revision, subfolder, GGUF file |
//! | `choose`, `index` | which files are the model or the adapter, and the index that names shards |
//! | `api`, `tree`, `refusal` | what the Hub is asked, the list of files it gives, and what its refusals mean |
//! | `cache`, `cached` | the layout of the cache, and what it gives without a request |
//! | `xet` | files that have no other way |
//!
//! The transfer engine moves and verifies the bytes: the Hub tells the SHA-256 or git's blob id of each file.

mod api;
mod builder;
mod cache;
mod cached;
mod choose;
mod index;
mod reference;
mod refusal;
mod settings;
mod source;
mod tree;
mod xet;

pub use builder::HuggingFaceBuilder;
pub use source::HuggingFace;

use std::sync::Arc;

use llm_local_core::{AdapterSource, ModelSource, Plugin, PluginContext, Result};

/// The descriptor of this plugin: a source of models and one of adapters, of the scheme `hf`.
pub const PLUGIN: Plugin = llm_local_core::plugin!("huggingface")
    .with_model_source(reference::SCHEME, model_source)
    .with_adapter_source(reference::SCHEME, adapter_source);
llm_local_core::submit!(PLUGIN);

fn model_source(context: &PluginContext) -> Result<Arc<dyn ModelSource>> {
    Ok(Arc::new(HuggingFace::builder().within(context).build()?))
}

fn adapter_source(context: &PluginContext) -> Result<Arc<dyn AdapterSource>> {
    Ok(Arc::new(HuggingFace::builder().within(context).build()?))
}

#[cfg(test)]
mod tests;
