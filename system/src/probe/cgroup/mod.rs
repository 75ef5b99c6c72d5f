//! What control groups hold this process to.
//!
//! A limit holds for a group together with all groups below it, so every group from the one that the process is in up to the
//! root of the mount counts, with whatever else is in it: a child has nothing of its limit where its parent has nothing left.
//!
//! | module | what it knows |
//! |---|---|
//! | `membership` | which groups those are: `/proc/self/cgroup` and `/proc/self/mountinfo` |
//! | `v1`, `v2` | the limit of a group and what is left of it, in the files of either version |
//! | `values` | how a number stands in such a file |
//!
//! What is left is the limit less what the group has in use. Page cache is charged to the group too and is given up when
//! memory is asked for, so it does not count as used: the lists `inactive_file` and `active_file`, both, because reclaim
//! moves pages from the latter to the former; less what is dirty or under writeback, which must be written first. This is what
//! `mem_cgroup_wb_stats` of the kernel's `mm/memcontrol.c` reckons with, and near to how `MemAvailable` is made
//! (`si_mem_available`), also in that files mapped by a process count as given up. tmpfs and what is locked stand on other
//! lists and stay used, and so does `slab_reclaimable`, of which the kernel often gets back little.

mod membership;
mod v1;
mod v2;
mod values;

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use fs_err as fs;

use super::MemoryLimit;

/// The control groups that a process is in and that may be charged for its memory: each with all those above it, as far as
/// they are mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CgroupTree {
    v1: Vec<PathBuf>,
    v2: Vec<PathBuf>,
}

impl CgroupTree {
    /// The groups of this process, by `/proc/self/cgroup` and `/proc/self/mountinfo`. None on a kernel without control groups.
    ///
    /// # Errors
    /// A file that cannot be read, or says something else than proc(5) and cgroups(7) describe.
    pub fn of_process() -> io::Result<Self> {
        let cgroup = match fs::read("/proc/self/cgroup") {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            cgroup => cgroup?,
        };
        Self::parse(&cgroup, &fs::read("/proc/self/mountinfo")?)
    }

    /// The groups that `cgroup`, which is what `/proc/self/cgroup` holds, names, below the mounts in `mountinfo`, which is what
    /// `/proc/self/mountinfo` holds.
    ///
    /// Both are relative to the process's control group namespace, and a container often has neither the host's mount nor its
    /// own path: where no mount has a directory for the group, the root of the mount stands for it, which is what a container
    /// runtime mounts there. Groups above that root cannot be seen, nor can the process's own in a namespace that was entered
    /// without mounting anything in it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidData`] with the line that is not as proc(5) and cgroups(7) describe; a group's
    /// `memory.use_hierarchy` that cannot be read.
    pub fn parse(cgroup: &[u8], mountinfo: &[u8]) -> io::Result<Self> {
        membership::tree(cgroup, mountinfo)
    }

    /// Directories of the groups in the memory hierarchy of version 1: the one that the process is in first, the root of the
    /// mount last, or the last that is charged for those below it (`memory.use_hierarchy`). Empty where there is no such
    /// hierarchy.
    pub fn v1(&self) -> &[PathBuf] {
        &self.v1
    }

    /// Directories of the groups in the hierarchy of version 2, in the same order. On a hybrid system it has no memory limits,
    /// but tells of pressure.
    pub fn v2(&self) -> &[PathBuf] {
        &self.v2
    }

    /// What these groups allow, each by itself, from the one that the process is in upwards.
    ///
    /// # Errors
    /// A file that is there, and cannot be read or does not hold what the kernel's documentation says.
    pub(super) fn limits(&self) -> io::Result<Vec<MemoryLimit>> {
        let mut limits = v1::limits(&self.v1)?;
        limits.extend(v2::limits(&self.v2)?);
        Ok(limits)
    }

    /// What the group of version 1 in the directory `group` allows, whatever those above it do.
    pub(crate) fn limit_of_v1(group: &Path) -> io::Result<Option<MemoryLimit>> {
        v1::limit(group)
    }

    /// What the group of version 2 in the directory `group` allows, whatever those above it do.
    pub(crate) fn limit_of_v2(group: &Path) -> io::Result<Option<MemoryLimit>> {
        v2::limit(group)
    }
}

#[cfg(test)]
mod tests;
