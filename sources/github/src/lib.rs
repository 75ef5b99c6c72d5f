//! The GitHub source: adapters and models in the assets of releases, by `github:` refs.
//!
//! | module | what it holds |
//! |---|---|
//! | `source` | [`GitHub`]: the traits |
//! | `settings` | token and API from the environment |
//! | `reference` | what a ref means: repository, release, asset |
//! | `api`, `answers` | what GitHub is asked, and what it answered before |
//! | `choose` | which assets are the adapter or the model |
//! | `digests`, `sums` | the digests of assets: GitHub's, or of a list among them |
//! | `pinned` | a release and its assets as a revision |
//! | `refusal` | what GitHub's refusals mean, and what to do |
//!
//! The bytes are moved, verified and unpacked by the transfer engine: GitHub tells the SHA-256 of most assets.

mod answers;
mod api;
mod choose;
mod digests;
mod pinned;
mod reference;
mod refusal;
mod settings;
mod source;
mod sums;

pub use source::{GitHub, GitHubBuilder};

use std::sync::Arc;

use llm_local_core::{AdapterSource, ModelSource, Plugin, PluginContext, Result};
use llm_local_source_common::{disk::SOURCE_ANSWERS, network::Network, store::Store};

/// The descriptor of this plugin: a source of models and one of adapters, of the scheme `github`.
pub const PLUGIN: Plugin = llm_local_core::plugin!("github")
    .with_model_source(reference::SCHEME, model_source)
    .with_adapter_source(reference::SCHEME, adapter_source);

llm_local_core::submit!(PLUGIN);

fn model_source(context: &PluginContext) -> Result<Arc<dyn ModelSource>> {
    Ok(Arc::new(source(context)?))
}

fn adapter_source(context: &PluginContext) -> Result<Arc<dyn AdapterSource>> {
    Ok(Arc::new(source(context)?))
}

fn source(context: &PluginContext) -> Result<GitHub> {
    let mut builder = GitHub::builder();
    if let Some(network) = context.get::<Network>() {
        builder = builder.network(network.clone());
    }
    if let Some(store) = context.get::<Store>() {
        builder = builder.answers(store.root().join(SOURCE_ANSWERS));
    }
    builder.build()
}

#[cfg(test)]
mod tests;
