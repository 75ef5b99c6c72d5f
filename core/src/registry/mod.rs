//! The registry: names to plugins, and which of them a spec gets.
//!
//! - [`Registry`]: what is registered, from where.
//! - [`resolve`]: which source and backend a spec gets, and why each other was passed over.

pub mod resolve;

pub use resolve::{BackendChoice, PassedOver, Resolution};

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, OnceLock},
};

use crate::{
    AdapterSource, ArtifactRef, Error, InferenceBackend, ModelSource, Plugin, PluginContext, Result,
    lora::AdapterFormat,
    plugin::{self, MakeAdapterFormat, MakeAdapterSource, MakeBackend, MakeModelSource},
};

/// Where a registered plugin came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Origin {
    /// The facade's list of built-in plugins.
    BuiltIn,
    /// A crate that was linked and submitted it.
    Discovered,
    /// Given to the registry by the application.
    Explicit,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BuiltIn => "built in",
            Self::Discovered => "discovered",
            Self::Explicit => "explicit",
        })
    }
}

/// Name spaces of the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum PluginKind {
    /// Backends, by name.
    Backend,
    /// Model sources, by scheme.
    ModelSource,
    /// Adapter sources, by scheme.
    AdapterSource,
    /// Formats of adapters beside the built-in ones, by name.
    AdapterFormat,
}

impl PluginKind {
    /// The kind in words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Backend => "backend",
            Self::ModelSource => "model source",
            Self::AdapterSource => "adapter source",
            Self::AdapterFormat => "adapter format",
        }
    }
}

/// One registered plugin, for reports.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PluginInfo {
    /// Its name space.
    pub kind: PluginKind,
    /// A backend's or a format's name, a source's scheme.
    pub name: String,
    /// The crate it is from; `None` for an instance that the application gave.
    pub crate_name: Option<&'static str>,
    /// That crate's version.
    pub crate_version: Option<&'static str>,
    /// Where it came from.
    pub origin: Origin,
    /// A backend's priority.
    pub priority: Option<i32>,
}

/// A cargo feature of the facade that would bring a plugin: its kind, its name, the feature.
pub type KnownFeature = (PluginKind, &'static str, &'static str);

/// A plugin of one name space: how to make it, and the instance once it was made.
struct Entry<T: ?Sized, M> {
    name: String,
    plugin: Option<Plugin>,
    origin: Origin,
    priority: i32,
    make: Option<M>,
    instance: OnceLock<Result<Arc<T>>>,
}

impl<T: ?Sized, M: Fn(&PluginContext) -> Result<Arc<T>>> Entry<T, M> {
    fn explicit(name: &str, priority: i32, instance: Arc<T>) -> Self {
        let cell = OnceLock::new();
        let _ = cell.set(Ok(instance));
        Self { name: name.into(), plugin: None, origin: Origin::Explicit, priority, make: None, instance: cell }
    }

    fn get(&self, context: &PluginContext) -> Result<Arc<T>> {
        self.instance
            .get_or_init(|| match &self.make {
                Some(make) => make(context),
                None => unreachable!("an entry without an instance has a maker"),
            })
            .clone()
    }

    fn info(&self, kind: PluginKind) -> PluginInfo {
        PluginInfo {
            kind,
            name: self.name.clone(),
            crate_name: self.plugin.map(|p| p.crate_name),
            crate_version: self.plugin.map(|p| p.crate_version),
            origin: self.origin,
            priority: (kind == PluginKind::Backend).then_some(self.priority),
        }
    }
}

type Entries<T, M> = BTreeMap<String, Entry<T, M>>;

/// Names to plugins. Backends, model sources, adapter sources and adapter formats are separate name spaces.
pub struct Registry {
    backends: Entries<dyn InferenceBackend, MakeBackend>,
    model_sources: Entries<dyn ModelSource, MakeModelSource>,
    adapter_sources: Entries<dyn AdapterSource, MakeAdapterSource>,
    adapter_formats: Entries<dyn AdapterFormat, MakeAdapterFormat>,
    features: &'static [KnownFeature],
    context: PluginContext,
}

impl Registry {
    /// A registry without plugins.
    pub fn empty() -> Self {
        Self {
            backends: BTreeMap::new(),
            model_sources: BTreeMap::new(),
            adapter_sources: BTreeMap::new(),
            adapter_formats: BTreeMap::new(),
            features: &[],
            context: PluginContext::new(),
        }
    }

    /// The built-in plugins, and all that were discovered.
    ///
    /// # Errors
    /// As [`Registry::from_plugins`].
    pub fn discover(built_in: &[Plugin]) -> Result<Self> {
        Self::from_plugins(built_in, &plugin::discovered())
    }

    /// The built-in plugins and these others. A plugin that is in both lists, or twice in one, counts once: as built
    /// in if it is.
    ///
    /// # Errors
    /// [`Error::PluginConflict`] if two plugins claim one name.
    pub fn from_plugins(built_in: &[Plugin], discovered: &[Plugin]) -> Result<Self> {
        let mut registry = Self::empty();
        let built_in = built_in.iter().map(|p| (p, Origin::BuiltIn));
        for (plugin, origin) in built_in.chain(discovered.iter().map(|p| (p, Origin::Discovered))) {
            registry.add(plugin, origin)?;
        }
        Ok(registry)
    }

    /// Sets which cargo features of the facade would bring which plugins, for messages.
    pub fn with_known_features(mut self, features: &'static [KnownFeature]) -> Self {
        self.features = features;
        self
    }

    /// Sets what plugins are made with. Each is made when it is first asked for; one that was already stays as it is.
    pub fn with_context(mut self, context: PluginContext) -> Self {
        self.context = context;
        self
    }

    /// Adds a backend. It replaces the one that had its name, and takes part with that one's priority, else 0.
    pub fn with_backend(self, backend: Arc<dyn InferenceBackend>) -> Self {
        let priority = self.backends.get(backend.name()).map_or(0, |e| e.priority);
        self.with_backend_at(priority, backend)
    }

    /// Adds a backend with a priority (see [`Plugin::with_backend`]). It replaces the one that had its name.
    pub fn with_backend_at(mut self, priority: i32, backend: Arc<dyn InferenceBackend>) -> Self {
        let name = backend.name().to_owned();
        self.backends.insert(name.clone(), Entry::explicit(&name, priority, backend));
        self
    }

    /// Adds a source of models. It replaces the one that had its scheme.
    pub fn with_model_source(mut self, source: Arc<dyn ModelSource>) -> Self {
        let scheme = source.scheme().to_owned();
        self.model_sources.insert(scheme.clone(), Entry::explicit(&scheme, 0, source));
        self
    }

    /// Adds a source of adapters. It replaces the one that had its scheme.
    pub fn with_adapter_source(mut self, source: Arc<dyn AdapterSource>) -> Self {
        let scheme = source.scheme().to_owned();
        self.adapter_sources.insert(scheme.clone(), Entry::explicit(&scheme, 0, source));
        self
    }

    /// Adds a source of models and adapters. It replaces those that had its scheme.
    pub fn with_source<S: ModelSource + AdapterSource + 'static>(self, source: Arc<S>) -> Self {
        self.with_model_source(source.clone()).with_adapter_source(source)
    }

    /// Adds a format of adapters. It replaces the one that had its name.
    pub fn with_adapter_format(mut self, format: Arc<dyn AdapterFormat>) -> Self {
        let name = format.name().to_owned();
        self.adapter_formats.insert(name.clone(), Entry::explicit(&name, 0, format));
        self
    }

    /// Adds a plugin by its descriptor. It replaces those that had its names.
    pub fn with_plugin(mut self, plugin: &Plugin) -> Self {
        if let Some((priority, make)) = plugin.backend {
            let entry = described(plugin, Origin::Explicit, plugin.name, priority, make);
            self.backends.insert(plugin.name.into(), entry);
        }
        if let Some((scheme, make)) = plugin.model_source {
            self.model_sources.insert(scheme.into(), described(plugin, Origin::Explicit, scheme, 0, make));
        }
        if let Some((scheme, make)) = plugin.adapter_source {
            self.adapter_sources.insert(scheme.into(), described(plugin, Origin::Explicit, scheme, 0, make));
        }
        if let Some((name, make)) = plugin.adapter_format {
            self.adapter_formats.insert(name.into(), described(plugin, Origin::Explicit, name, 0, make));
        }
        self
    }

    /// What is registered: backends by priority, then sources by scheme, then adapter formats by name.
    pub fn plugins(&self) -> Vec<PluginInfo> {
        let mut all: Vec<_> = self.backend_entries().map(|e| e.info(PluginKind::Backend)).collect();
        all.extend(self.model_sources.values().map(|e| e.info(PluginKind::ModelSource)));
        all.extend(self.adapter_sources.values().map(|e| e.info(PluginKind::AdapterSource)));
        all.extend(self.adapter_formats.values().map(|e| e.info(PluginKind::AdapterFormat)));
        all
    }

    /// The backend with this name.
    ///
    /// # Errors
    /// [`Error::NotRegistered`], or what its maker said.
    pub fn backend(&self, name: &str) -> Result<Arc<dyn InferenceBackend>> {
        self.lookup(&self.backends, PluginKind::Backend, name)?.get(&self.context)
    }

    /// The source for models at `reference`.
    ///
    /// # Errors
    /// [`Error::NotRegistered`], or what its maker said.
    pub fn model_source(&self, reference: &ArtifactRef) -> Result<Arc<dyn ModelSource>> {
        self.lookup(&self.model_sources, PluginKind::ModelSource, reference.scheme())?.get(&self.context)
    }

    /// The source for the adapter at `reference`.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] around [`Error::NotRegistered`] or what its maker said.
    pub fn adapter_source(&self, reference: &ArtifactRef) -> Result<Arc<dyn AdapterSource>> {
        self.lookup(&self.adapter_sources, PluginKind::AdapterSource, reference.scheme())
            .and_then(|entry| entry.get(&self.context))
            .map_err(|e| e.into_adapter(reference))
    }

    /// All formats of adapters, by name. The built-in ones are not among them.
    ///
    /// # Errors
    /// What a maker said.
    pub fn adapter_formats(&self) -> Result<Vec<Arc<dyn AdapterFormat>>> {
        self.adapter_formats.values().map(|entry| entry.get(&self.context)).collect()
    }

    /// Backends by priority, then name.
    fn backend_entries(&self) -> impl Iterator<Item = &Entry<dyn InferenceBackend, MakeBackend>> {
        let mut entries: Vec<_> = self.backends.values().collect();
        entries.sort_by_key(|e| std::cmp::Reverse(e.priority)); // stable: the map's order is by name
        entries.into_iter()
    }

    fn lookup<'a, T: ?Sized, M>(
        &self,
        entries: &'a Entries<T, M>,
        kind: PluginKind,
        name: &str,
    ) -> Result<&'a Entry<T, M>> {
        entries.get(name).ok_or_else(|| Error::NotRegistered {
            kind: kind.as_str(),
            name: name.into(),
            available: entries.keys().cloned().collect(),
            hint: self
                .features
                .iter()
                .find(|(k, n, _)| *k == kind && *n == name)
                .map(|(_, _, feature)| format!("enable the cargo feature `{feature}` of llm-local")),
        })
    }

    fn add(&mut self, plugin: &Plugin, origin: Origin) -> Result<()> {
        if let Some((priority, make)) = plugin.backend {
            let entry = described(plugin, origin, plugin.name, priority, make);
            add_to(&mut self.backends, PluginKind::Backend, entry)?;
        }
        if let Some((scheme, make)) = plugin.model_source {
            add_to(&mut self.model_sources, PluginKind::ModelSource, described(plugin, origin, scheme, 0, make))?;
        }
        if let Some((scheme, make)) = plugin.adapter_source {
            add_to(&mut self.adapter_sources, PluginKind::AdapterSource, described(plugin, origin, scheme, 0, make))?;
        }
        if let Some((name, make)) = plugin.adapter_format {
            add_to(&mut self.adapter_formats, PluginKind::AdapterFormat, described(plugin, origin, name, 0, make))?;
        }
        Ok(())
    }
}

fn described<T: ?Sized, M>(plugin: &Plugin, origin: Origin, name: &str, priority: i32, make: M) -> Entry<T, M> {
    let instance = OnceLock::new();
    Entry { name: name.into(), plugin: Some(*plugin), origin, priority, make: Some(make), instance }
}

/// Adds an entry unless it is there already. A source plugin's own name may not be taken twice either.
fn add_to<T: ?Sized, M>(entries: &mut Entries<T, M>, kind: PluginKind, entry: Entry<T, M>) -> Result<()> {
    let new = entry.plugin.expect("added from a descriptor");
    let taken = entries.values().find(|e| e.name == entry.name || e.plugin.is_some_and(|p| p.name == new.name));
    let Some(taken) = taken else {
        entries.insert(entry.name.clone(), entry);
        return Ok(());
    };
    let old = taken.plugin.expect("added from a descriptor");
    if (old.crate_name, old.crate_version, &taken.name) == (new.crate_name, new.crate_version, &entry.name) {
        return Ok(());
    }
    let shown = |p: &Plugin, origin| format!("crate {} ({origin})", p.origin());
    Err(Error::PluginConflict {
        kind: kind.as_str(),
        name: if taken.name == entry.name { entry.name } else { new.name.into() },
        first: shown(&old, taken.origin),
        second: shown(&new, entry.origin),
    })
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.plugins()).finish()
    }
}

#[cfg(test)]
mod tests;
