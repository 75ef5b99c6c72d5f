//! What there is: memory, devices, sources of pressure, the cache.

use std::{path::PathBuf, sync::Arc};

use llm_local::{
    Engine,
    core::registry::PluginKind,
    memory::{
        MemoryPolicy, MemoryProbe, MemoryStatus, SystemMemory, SystemProbe,
        pressure::{self, PressureSource},
    },
};

/// What is known of one part, or why it is not.
pub(super) type Known<T> = Result<T, String>;

/// What there is on this machine.
pub(super) struct Found {
    pub(super) memory: Known<SystemMemory>,
    pub(super) policy: MemoryPolicy,
    pub(super) status: MemoryStatus,
    /// Backends that cannot run here, and why.
    pub(super) unavailable: Vec<(String, String)>,
    pub(super) pressure: Vec<Source>,
    pub(super) cache: Cache,
}

/// A source of memory pressure, and why it is not to be had.
pub(super) struct Source {
    pub(super) name: String,
    pub(super) missing: Option<String>,
}

/// Where files are kept.
pub(super) struct Cache {
    pub(super) folder: PathBuf,
    /// Bytes of the files that are kept there, and found in the caches of other tools.
    pub(super) bytes: Known<u64>,
    /// Bytes that are free on its disk.
    pub(super) free: Known<u64>,
}

impl Found {
    pub(super) fn of(engine: &Engine, policy: MemoryPolicy) -> Self {
        let probe = Arc::new(SystemProbe::default());
        Self {
            memory: probe.read().map_err(|error| error.to_string()),
            policy,
            status: engine.memory_status(),
            unavailable: unavailable(engine),
            pressure: pressure::of_system(probe).iter().map(|source| Source::of(&**source)).collect(),
            cache: Cache::of(engine),
        }
    }
}

fn unavailable(engine: &Engine) -> Vec<(String, String)> {
    let registry = engine.registry();
    let backends = registry.plugins().into_iter().filter(|plugin| plugin.kind == PluginKind::Backend);
    let why = |name: &str| match registry.backend(name).and_then(|backend| backend.devices()) {
        Err(error) => Some(error.to_string()),
        Ok(devices) if devices.is_empty() => Some("it has no devices here".to_owned()),
        Ok(_) => None,
    };
    backends.filter_map(|plugin| why(&plugin.name).map(|why| (plugin.name, why))).collect()
}

impl Source {
    /// Whether `source` is to be had is known once it was listened to.
    fn of(source: &dyn PressureSource) -> Self {
        let missing = source.watch(Arc::new(|_| {})).err().map(|error| error.to_string());
        Self { name: source.name().to_owned(), missing }
    }
}

impl Cache {
    fn of(engine: &Engine) -> Self {
        let store = engine.store();
        let folder = store.root().to_owned();
        let size = store.size().map(|size| size.fetched + size.found).map_err(|error| error.to_string());
        // It may not be there yet; it will be on the disk of the folder that it is made in.
        let there = folder.ancestors().find(|path| path.exists()).unwrap_or(&folder);
        let free = fs4::available_space(there).map_err(|error| error.to_string());
        Self { bytes: size, free, folder }
    }
}
