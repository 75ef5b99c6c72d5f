//! Plugin descriptors: const values of names and `fn` pointers. Nothing runs before `main` except a pointer push.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    fmt,
    sync::Arc,
};

use crate::{AdapterSource, InferenceBackend, ModelSource, Result, lora::AdapterFormat};

/// What a plugin's makers may use: at most one value of each type, put there by whoever makes the registry. The engine
/// puts in the network that it fetches with (`Network` of `llm-local-source-common`), so that sources share its settings
/// and threads. Clones share the values.
#[derive(Clone, Default)]
pub struct PluginContext {
    values: HashMap<TypeId, Arc<dyn Any + Send + Sync>>,
}

impl PluginContext {
    /// An empty context.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `value` in, in place of one of its type.
    pub fn with<T: Any + Send + Sync>(mut self, value: T) -> Self {
        self.values.insert(TypeId::of::<T>(), Arc::new(value));
        self
    }

    /// The value of this type, if there is one. A plugin has a default for each that it asks for.
    pub fn get<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.values.get(&TypeId::of::<T>())?.downcast_ref()
    }
}

impl fmt::Debug for PluginContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The values say nothing of themselves, and may hold secrets.
        f.debug_struct("PluginContext").field("values", &self.values.len()).finish()
    }
}

/// Makes a backend.
pub type MakeBackend = fn(&PluginContext) -> Result<Arc<dyn InferenceBackend>>;
/// Makes a model source.
pub type MakeModelSource = fn(&PluginContext) -> Result<Arc<dyn ModelSource>>;
/// Makes an adapter source.
pub type MakeAdapterSource = fn(&PluginContext) -> Result<Arc<dyn AdapterSource>>;
/// Makes a format of adapters.
pub type MakeAdapterFormat = fn(&PluginContext) -> Result<Arc<dyn AdapterFormat>>;

/// The descriptor of a plugin crate: one per crate, for everything that it brings.
///
/// Made by [`plugin!`](crate::plugin!), which fills in the crate's name and version.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Plugin {
    /// The name that specs prefer its backend by, and that reports show.
    pub name: &'static str,
    /// The crate it is from.
    pub crate_name: &'static str,
    /// That crate's version.
    pub crate_version: &'static str,
    /// Its backend's priority and maker.
    pub backend: Option<(i32, MakeBackend)>,
    /// Its model source's scheme and maker.
    pub model_source: Option<(&'static str, MakeModelSource)>,
    /// Its adapter source's scheme and maker.
    pub adapter_source: Option<(&'static str, MakeAdapterSource)>,
    /// Its adapter format's name and maker.
    pub adapter_format: Option<(&'static str, MakeAdapterFormat)>,
}

impl Plugin {
    /// A descriptor that brings nothing yet.
    pub const fn new(name: &'static str, crate_name: &'static str, crate_version: &'static str) -> Self {
        let (backend, model_source, adapter_source, adapter_format) = (None, None, None, None);
        Self { name, crate_name, crate_version, backend, model_source, adapter_source, adapter_format }
    }

    /// Brings a backend. Among those that can run a model, the highest `priority` is taken; at equal priority, the
    /// first by name. Built-in ones have 200 (MLX), 100 (candle).
    pub const fn with_backend(mut self, priority: i32, make: MakeBackend) -> Self {
        self.backend = Some((priority, make));
        self
    }

    /// Brings a source of models with refs of `scheme`.
    pub const fn with_model_source(mut self, scheme: &'static str, make: MakeModelSource) -> Self {
        self.model_source = Some((scheme, make));
        self
    }

    /// Brings a source of adapters with refs of `scheme`.
    pub const fn with_adapter_source(mut self, scheme: &'static str, make: MakeAdapterSource) -> Self {
        self.adapter_source = Some((scheme, make));
        self
    }

    /// Brings a format of adapters, called `name` as its [`AdapterFormat::name`] is. It is tried beside the built-in ones,
    /// wherever adapters are read; one that two formats recognize is refused. The digest of what it reads is taken of all files
    /// by whoever calls it, so it may leave that empty.
    pub const fn with_adapter_format(mut self, name: &'static str, make: MakeAdapterFormat) -> Self {
        self.adapter_format = Some((name, make));
        self
    }

    /// `crate version`, for messages.
    pub(crate) fn origin(&self) -> String {
        format!("{} {}", self.crate_name, self.crate_version)
    }
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plugin({} from {})", self.name, self.origin())
    }
}

/// A submitted descriptor: what [`submit!`](crate::submit!) puts into the list of all plugins that were linked.
#[doc(hidden)]
#[derive(Debug)]
pub struct Submitted(pub Plugin);

inventory::collect!(Submitted);

/// The descriptors of all crates that were linked and submitted one, in no order.
pub fn discovered() -> Vec<Plugin> {
    inventory::iter::<Submitted>.into_iter().map(|s| s.0).collect()
}

/// A [`Plugin`] with the name and version of the crate that calls it.
#[macro_export]
macro_rules! plugin {
    ($name:expr) => {
        $crate::Plugin::new($name, env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
    };
}

/// Adds a const [`Plugin`] to the list that registries discover. An application that names nothing of the crate must
/// still link it: `use the_crate as _;`.
#[macro_export]
macro_rules! submit {
    ($plugin:expr) => {
        $crate::inventory::submit! { $crate::plugin::Submitted($plugin) }
    };
}
