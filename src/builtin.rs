//! THE list of built-in plugins, one line each. `inventory` alone would not do: a crate that nothing names is never
//! linked, and in a static library linked by a C linker no plugin registers at all.

use llm_local_core::{
    Plugin, Registry, Result,
    registry::{KnownFeature, PluginKind},
};

/// The plugins that the enabled cargo features bring.
pub const PLUGINS: &[Plugin] = &[
    #[cfg(feature = "candle")]
    llm_local_candle::PLUGIN,
    #[cfg(feature = "github")]
    llm_local_source_github::PLUGIN,
    #[cfg(feature = "huggingface")]
    llm_local_source_huggingface::PLUGIN,
    #[cfg(feature = "local")]
    llm_local_source_local::PLUGIN,
    #[cfg(feature = "mlx")]
    llm_local_mlx::PLUGIN,
];

/// Which cargo feature brings what, for messages.
pub const FEATURES: &[KnownFeature] = &[
    (PluginKind::Backend, "candle", "candle"),
    (PluginKind::Backend, "mlx", "mlx"),
    (PluginKind::ModelSource, "github", "github"),
    (PluginKind::AdapterSource, "github", "github"),
    (PluginKind::ModelSource, "hf", "huggingface"),
    (PluginKind::AdapterSource, "hf", "huggingface"),
    (PluginKind::ModelSource, "file", "local"),
    (PluginKind::AdapterSource, "file", "local"),
];

/// The built-in plugins and those of every other crate that was linked and submitted one.
///
/// # Errors
/// [`llm_local_core::Error::PluginConflict`] if two plugins claim one name.
pub fn registry() -> Result<Registry> {
    Ok(Registry::discover(PLUGINS)?.with_known_features(FEATURES))
}
