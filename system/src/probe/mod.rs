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
    /// What this process is held to, where it is: of several limits the smallest, and the least that any leaves.
    pub limit: Option<MemoryLimit>,
    /// The limits that `limit` comes from, each by itself: what one leaves is a share of its own bytes alone.
    pub limits: Vec<MemoryLimit>,
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
        Self { total, available, limit: None, limits: Vec::new() }
    }

    /// Sets what the process is held to.
    pub fn with_limit(self, limit: MemoryLimit) -> Self {
        self.with_limits(vec![limit])
    }

    /// Sets what the process is held to, by each of `limits`: its own first, then those that hold for others too.
    pub fn with_limits(mut self, limits: Vec<MemoryLimit>) -> Self {
        self.limit = tightest(&limits);
        self.limits = limits;
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

    /// The bound of which the smallest share is left, of physical memory and each limit.
    pub fn shortest(&self) -> MemoryLimit {
        let machine = MemoryLimit::new(self.total, self.available, "physical memory");
        let shorter = |a: MemoryLimit, b: &MemoryLimit| if b.share() < a.share() { b.clone() } else { a };
        self.limits.iter().fold(machine, shorter)
    }
}

impl MemoryLimit {
    /// A limit of `bytes`, of which `available` may still be taken, set by `by`.
    pub fn new(bytes: u64, available: u64, by: impl Into<String>) -> Self {
        Self { bytes, available, by: by.into() }
    }

    /// The share of it that is left, from 0 to 1.
    pub fn share(&self) -> f64 {
        self.available as f64 / self.bytes.max(1) as f64
    }
}

/// One limit for all `limits`. Taking the whole of the one with the least left would let a process that is alone in a small
/// group plan for all of the large group around it, and taking the one with the fewest bytes for what its neighbours have in use.
fn tightest(limits: &[MemoryLimit]) -> Option<MemoryLimit> {
    let scarcest = limits.iter().min_by_key(|limit| (limit.available, limit.bytes))?;
    let smallest = limits.iter().min_by_key(|limit| limit.bytes)?;
    let by = if scarcest.bytes == smallest.bytes {
        scarcest.by.clone()
    } else {
        format!("{} (in all) and {} (what is left)", smallest.by, scarcest.by)
    };
    Some(MemoryLimit::new(smallest.bytes, scarcest.available, by))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_of_equal_limits_is_the_nearest() {
        let limits = [(90, 10, "own"), (90, 10, "parent"), (95, 10, "root")];
        let limits = limits.map(|(bytes, available, by)| MemoryLimit::new(bytes, available, by));
        assert_eq!(tightest(&limits), Some(MemoryLimit::new(90, 10, "own")));
        assert_eq!(tightest(&[]), None);
    }

    #[test]
    fn of_several_limits_the_smallest_and_the_least_that_is_left_apply_and_each_stays() {
        let limits = vec![MemoryLimit::new(50, 40, "own"), MemoryLimit::new(90, 10, "parent")];
        let memory = SystemMemory::new(100, 60).with_limits(limits.clone());
        assert_eq!((memory.usable(), memory.free()), (50, 10));
        assert_eq!(memory.limit.unwrap().by, "own (in all) and parent (what is left)");
        assert_eq!(memory.limits, limits);
    }

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
