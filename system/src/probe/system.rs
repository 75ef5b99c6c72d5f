//! What the system says.

use std::io;

#[cfg(target_os = "linux")]
use super::CgroupTree;
#[cfg(target_vendor = "apple")]
use super::apple as platform;
#[cfg(windows)]
use super::windows as platform;
use super::{MemoryLimit, MemoryProbe, SystemMemory};

/// Asks the operating system. Where it holds the process to less than the machine has, that is the limit: on Linux the
/// control groups that the process is in, on iOS what the system lets the app have, on Windows the commit limit and the job object.
/// What other processes in the same job take of its limit is not known on Windows.
#[derive(Debug, Clone, Default)]
pub struct SystemProbe {
    #[cfg(target_os = "linux")]
    cgroups: Option<CgroupTree>,
}

impl SystemProbe {
    /// A probe of this machine and process.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the limit from `cgroups`, instead of from the groups that this process is in each time it is asked.
    #[cfg(target_os = "linux")]
    pub fn with_cgroups(mut self, cgroups: CgroupTree) -> Self {
        self.cgroups = Some(cgroups);
        self
    }

    #[cfg(target_os = "linux")]
    fn limits(&self) -> io::Result<Vec<MemoryLimit>> {
        match &self.cgroups {
            Some(cgroups) => cgroups.limits(),
            // Each time: a process can be moved to another group.
            None => CgroupTree::of_process()?.limits(),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn limits(&self) -> io::Result<Vec<MemoryLimit>> {
        platform::limits()
    }
}

impl MemoryProbe for SystemProbe {
    fn read(&self) -> io::Result<SystemMemory> {
        Ok(of_machine()?.with_limits(self.limits()?))
    }
}

#[cfg(windows)]
use platform::of_machine;

#[cfg(not(windows))]
fn of_machine() -> io::Result<SystemMemory> {
    use sysinfo::{MemoryRefreshKind, System};

    let mut system = System::new();
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    // What sysinfo gives where it does not know.
    if system.total_memory() == 0 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "this system does not say how much memory it has"));
    }
    #[cfg(not(target_os = "macos"))]
    let available = system.available_memory();
    #[cfg(target_os = "macos")]
    let available = platform::available()?;
    Ok(SystemMemory::new(system.total_memory(), available))
}

/// No limit that this system sets is known.
#[cfg(not(any(target_os = "linux", target_vendor = "apple", windows)))]
mod platform {
    pub(super) fn limits() -> std::io::Result<Vec<super::MemoryLimit>> {
        Ok(Vec::new())
    }
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
