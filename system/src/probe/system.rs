//! What the system says.

use std::io;

use sysinfo::{MemoryRefreshKind, System};

use super::{MemoryLimit, MemoryProbe, SystemMemory};

/// Asks the operating system.
#[derive(Debug, Clone, Default)]
pub struct SystemProbe {}

impl SystemProbe {
    /// A probe of this machine and process.
    pub fn new() -> Self {
        Self::default()
    }
}

impl MemoryProbe for SystemProbe {
    fn read(&self) -> io::Result<SystemMemory> {
        let mut system = System::new();
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        // What sysinfo gives where it does not know.
        if system.total_memory() == 0 {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "this system does not say how much memory it has"));
        }
        let memory = SystemMemory::new(system.total_memory(), system.available_memory());
        Ok(match limit()? {
            Some(limit) => memory.with_limit(limit),
            None => memory,
        })
    }
}

// One of these per system that holds a process to less than the machine has.

/// No limit that this system sets is known.
fn limit() -> io::Result<Option<MemoryLimit>> {
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_memory_and_not_more_than_the_machine_has() {
        let memory = SystemProbe::new().read().unwrap();
        assert!(memory.available > 1 << 20 && memory.available <= memory.total, "{memory:?}");
        assert!(memory.free() <= memory.available && memory.usable() <= memory.total, "{memory:?}");
    }
}
