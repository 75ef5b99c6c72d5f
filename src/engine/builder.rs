//! How an engine is made.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use etcetera::BaseStrategy;
use llm_local_core::{
    AdapterSource, Error, InferenceBackend, ModelSource, Plugin, PluginContext, Registry, Result, Want,
    lora::AdapterFormat,
};
use llm_local_source_common::{
    network::{Network, NetworkConfig},
    store::Store,
    transfer::{Transfer, TransferConfig},
};

use super::{AdapterLimits, Engine, Inner, slots::Slots};
use crate::{
    builtin,
    memory::{Clock, Memory, MemoryPolicy, MemoryProbe, SystemProbe},
    policy::Policy,
};

/// The environment variable that overrides where fetched files are kept.
pub const CACHE_VARIABLE: &str = "LLM_LOCAL_CACHE";

type Change = Box<dyn FnOnce(Registry) -> Registry + Send>;

/// Settings of an [`Engine`].
#[derive(Default)]
pub struct EngineBuilder {
    registry: Option<Registry>,
    changes: Vec<Change>,
    cache: Option<PathBuf>,
    quota: Option<u64>,
    policy: Policy,
    adapter_limits: AdapterLimits,
    memory: MemoryPolicy,
    probe: Option<Arc<dyn MemoryProbe>>,
    clock: Option<Clock>,
    network: NetworkConfig,
    transfer: TransferConfig,
    offline: bool,
    keep_merged: bool,
}

impl EngineBuilder {
    /// Uses this registry instead of the built-in and discovered plugins.
    pub fn registry(mut self, registry: Registry) -> Self {
        self.registry = Some(registry);
        self
    }

    /// Adds a backend. It replaces the one that had its name, and takes part with that one's priority, else 0: after
    /// every built-in one, unless a spec names it. [`Registry::with_backend_at`] takes another priority.
    pub fn backend(self, backend: Arc<dyn InferenceBackend>) -> Self {
        self.change(|registry| registry.with_backend(backend))
    }

    /// Adds a source of models and adapters. It replaces those that had its scheme.
    pub fn source<S: ModelSource + AdapterSource + 'static>(self, source: S) -> Self {
        self.change(|registry| registry.with_source(Arc::new(source)))
    }

    /// Adds a format of adapters, which is tried beside the built-in ones. It replaces the one that had its name.
    pub fn adapter_format(self, format: Arc<dyn AdapterFormat>) -> Self {
        self.change(|registry| registry.with_adapter_format(format))
    }

    /// Adds a plugin by its descriptor. It replaces those that had its names.
    pub fn plugin(self, plugin: Plugin) -> Self {
        self.change(move |registry| registry.with_plugin(&plugin))
    }

    /// Where fetched files are kept. Without it: the folder named by `LLM_LOCAL_CACHE`, else `llm-local` in the
    /// platform's cache folder.
    pub fn cache_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache = Some(folder.into());
        self
    }

    /// Bounds what fetched files may take, in bytes: before more are fetched, the artifacts that were not used for longest
    /// go, except those that are pinned or in use ([`crate::Store::evict`]). Without it nothing is ever evicted.
    pub fn cache_quota(mut self, bytes: u64) -> Self {
        self.quota = Some(bytes);
        self
    }

    /// Keeps what adapters merged into a base give, so that the next load of the same reads it instead of merging again: one
    /// file in the store for each base, adapters, weights, policy, backend and type to compute in, with the tensors that
    /// the adapters change. It counts in the quota, and goes like any other artifact; results are listed with
    /// [`store::MERGED_SCHEME`](crate::store::MERGED_SCHEME). Where it cannot be written, that is logged, and the load goes
    /// on. Off without this: a merge takes little more than reading its tensors does, and a result the disk space of these.
    pub fn keep_merged(mut self, keep: bool) -> Self {
        self.keep_merged = keep;
        self
    }

    /// What may be fetched and used; without it everything may. Its hosts replace those of [`EngineBuilder::network`]; a
    /// source that is given as an instance, or that asks by means of its own, is not bound by them in what it asks itself,
    /// but the files that it lists are.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// How much adapters may take, in the specs of models and in the sets that loaded models are given and requests name;
    /// without it [`AdapterLimits::default`].
    pub fn adapter_limits(mut self, limits: AdapterLimits) -> Self {
        self.adapter_limits = limits;
        self
    }

    /// How much memory models may take, how long they stay, and what goes when it runs short; without it
    /// [`MemoryPolicy::default`].
    pub fn memory(mut self, policy: MemoryPolicy) -> Self {
        self.memory = policy;
        self
    }

    /// Who says how much memory there is; without it the system ([`SystemProbe`]).
    pub fn memory_probe(mut self, probe: impl MemoryProbe + 'static) -> Self {
        self.probe = Some(Arc::new(probe));
        self
    }

    /// The time by which models are idle and pressure is over, since any moment; without it the time since the engine was
    /// built. For tests.
    pub fn memory_clock(mut self, clock: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        self.clock = Some(Arc::new(clock));
        self
    }

    /// How requests are made: time limits, attempts, whether http is allowed. It holds for files, wherever they come from,
    /// and for what sources ask themselves that the engine makes of plugins ([`PluginContext`]); a source that is given as
    /// an instance asks by settings of its own.
    pub fn network(mut self, config: NetworkConfig) -> Self {
        self.network = config;
        self
    }

    /// How files are fetched: how many at a time, in how many ranges.
    pub fn transfer(mut self, config: TransferConfig) -> Self {
        self.transfer = config;
        self
    }

    /// Forbids every request.
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// The engine. Creates no file and starts no thread.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] for a [memory policy](EngineBuilder::memory) that cannot be meant;
    /// [`Error::PluginConflict`] if two plugins claim one name; [`Error::NotFound`] if there is no home folder to keep
    /// files in and no folder was given.
    pub fn build(self) -> Result<Engine> {
        self.memory.validate()?;
        let registry = match self.registry {
            Some(registry) => registry,
            None => builtin::registry()?,
        };
        let registry = self.changes.into_iter().fold(registry, |registry, change| change(registry));
        // Set to nothing means not set, as with the variables of the XDG specification.
        let variable = std::env::var_os(CACHE_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache = match self.cache.or(variable) {
            Some(folder) => folder,
            None => etcetera::choose_base_strategy()
                .map_err(|e| {
                    Error::not_found(
                        "the cache folder",
                        format!("{e}; set {CACHE_VARIABLE} or give one to the builder"),
                    )
                })?
                .cache_dir()
                .join("llm-local"),
        };
        let network = match self.policy.hosts() {
            Some(hosts) => self.network.with_allowed_hosts(hosts),
            None => self.network,
        };
        let (network, store) = (Network::new(network), Store::new(cache));
        let registry = registry.with_context(PluginContext::new().with(network.clone()).with(store.clone()));
        let heads_at_once = self.transfer.connections.max(1);
        let limited = |config: TransferConfig, want| {
            let limits = self.policy.unpack_limits(config.unpack_of(want), want);
            config.with_unpack_of(want, limits)
        };
        let config = [Want::Model, Want::Adapter].into_iter().fold(self.transfer, limited);
        let made = self.policy.clone();
        let transfer =
            Transfer::new(network, store, config).with_check(move |manifest, sizes| made.check_made(manifest, sizes));
        let (quota, policy, offline, slots) = (self.quota, self.policy, self.offline, Slots::default());
        let (adapter_limits, keep_merged) = (self.adapter_limits, self.keep_merged);
        let probe = self.probe.unwrap_or_else(|| Arc::new(SystemProbe::new()));
        let clock = self.clock.unwrap_or_else(|| {
            let start = Instant::now();
            Arc::new(move || start.elapsed())
        });
        let memory = Memory::new(self.memory, probe, clock, slots.forgetting());
        let inner = Inner {
            registry,
            transfer,
            heads_at_once,
            quota,
            policy,
            adapter_limits,
            offline,
            keep_merged,
            slots,
            memory,
            monitor: Mutex::default(),
        };
        Ok(Engine { inner: Arc::new(inner) })
    }

    fn change(mut self, change: impl FnOnce(Registry) -> Registry + Send + 'static) -> Self {
        self.changes.push(Box::new(change));
        self
    }
}

impl std::fmt::Debug for EngineBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineBuilder").field("cache", &self.cache).finish_non_exhaustive()
    }
}
