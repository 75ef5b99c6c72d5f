//! Memory as it is told.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use super::{MemoryProbe, SystemMemory};

type Script = Box<dyn FnMut() -> io::Result<SystemMemory> + Send>;

/// A probe that says what it is told: for tests of whatever decides by memory. Clones share everything.
///
/// ```
/// use llm_local_system::{MemoryProbe, ScriptedProbe, SystemMemory};
/// let probe = ScriptedProbe::new(SystemMemory::new(12_000_000_000, 9_000_000_000));
/// assert_eq!(probe.read()?.free(), 9_000_000_000);
/// probe.set(SystemMemory::new(12_000_000_000, 500_000_000));
/// assert_eq!(probe.read()?.free(), 500_000_000);
/// # Ok::<_, std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct ScriptedProbe {
    script: Arc<Mutex<Script>>,
}

impl ScriptedProbe {
    /// Says `memory`, until it is told otherwise.
    pub fn new(memory: SystemMemory) -> Self {
        Self::from_fn(move || Ok(memory.clone()))
    }

    /// Says what `script` gives each time: memory that depends on what was loaded, an error, a sequence.
    pub fn from_fn(script: impl FnMut() -> io::Result<SystemMemory> + Send + 'static) -> Self {
        Self { script: Arc::new(Mutex::new(Box::new(script))) }
    }

    /// Says `memory` from now on.
    pub fn set(&self, memory: SystemMemory) {
        self.set_fn(move || Ok(memory.clone()));
    }

    /// Says what `script` gives from now on.
    pub fn set_fn(&self, script: impl FnMut() -> io::Result<SystemMemory> + Send + 'static) {
        *self.script.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(script);
    }
}

impl MemoryProbe for ScriptedProbe {
    fn read(&self) -> io::Result<SystemMemory> {
        (self.script.lock().unwrap_or_else(PoisonError::into_inner))()
    }
}

impl std::fmt::Debug for ScriptedProbe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ScriptedProbe")
    }
}
