//! How much memory there is.

#[cfg(any(test, target_vendor = "apple"))]
mod apple;
#[cfg(target_os = "linux")]
mod cgroup;
mod scripted;
mod system;
#[cfg(any(test, windows))]
pub(crate) mod windows;

#[cfg(target_os = "linux")]
pub use cgroup::CgroupTree;
pub use scripted::ScriptedProbe;
pub use system::SystemProbe;

use std::io;

/// Says how much memory there is. Asked before each load, and after each model that is unloaded.
pub trait MemoryProbe: Send + Sync {
    /// How much there is now.
    ///
    /// # Errors
    /// What the system said, with the file or call.
    fn read(&self) -> io::Result<SystemMemory>;
}

const _: fn(&dyn MemoryProbe) = |_| {};

/// Memory of the machine, and what of it this process may take, in bytes. Swap is left aside.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SystemMemory {
    /// Physical memory that the system reports, which may be somewhat less than is fitted.
    pub total: u64,
    /// What can be taken without swapping: free memory, and what the system gives up when it is asked.
    pub available: u64,
    /// What this process is held to, where it is.
    pub limit: Option<MemoryLimit>,
}

/// What a process, or a group of processes that it is in, may have.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryLimit {
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes that this process may still take.
    pub available: u64,
    /// Who limits it: a control group's file, the system's limit for applications.
    pub by: String,
}

impl SystemMemory {
    /// `available` of `total` bytes, without a limit.
    pub fn new(total: u64, available: u64) -> Self {
        Self { total, available, limit: None }
    }

    /// Sets what the process is held to.
    pub fn with_limit(mut self, limit: MemoryLimit) -> Self {
        self.limit = Some(limit);
        self
    }

    /// What a process like this one may have in all: physical memory, or less where a limit applies.
    pub fn usable(&self) -> u64 {
        self.limit.as_ref().map_or(self.total, |limit| limit.bytes.min(self.total))
    }

    /// What this process may still take.
    pub fn free(&self) -> u64 {
        self.limit.as_ref().map_or(self.available, |limit| limit.available.min(self.available))
    }
}

impl MemoryLimit {
    /// A limit of `bytes`, of which `available` may still be taken, set by `by`.
    pub fn new(bytes: u64, available: u64, by: impl Into<String>) -> Self {
        Self { bytes, available, by: by.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_of_machine_and_limit_applies() {
        let memory = SystemMemory::new(100, 60);
        assert_eq!((memory.usable(), memory.free()), (100, 60));
        let limited = |bytes, available| memory.clone().with_limit(MemoryLimit::new(bytes, available, "a group"));
        assert_eq!((limited(50, 20).usable(), limited(50, 20).free()), (50, 20));
        // A group may be allowed more than there is.
        assert_eq!((limited(500, 400).usable(), limited(500, 400).free()), (100, 60));
    }
}
