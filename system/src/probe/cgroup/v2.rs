//! Version 2, as the kernel's `Documentation/admin-guide/cgroup-v2.rst` has it.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::values::{self, Stat};
use crate::MemoryLimit;

/// The limits of `groups`, directories of which each is below the next.
pub(super) fn limits(groups: &[PathBuf]) -> io::Result<Vec<MemoryLimit>> {
    groups.iter().filter_map(|group| limit(group).transpose()).collect()
}

/// The limit of one group, where it has one. The root of the hierarchy has no such files, nor has a group whose parent does
/// not hand the memory controller down.
///
/// Beyond `memory.max` a process is killed. `memory.high` counts as a limit all the same: above it "the processes of the
/// cgroup are throttled and put under heavy reclaim pressure", and weights, which without swap cannot be reclaimed, would keep
/// the group there for as long as they are loaded. The kernel too takes the smaller of both for what a group may have
/// (`mem_cgroup_wb_stats`).
pub(super) fn limit(group: &Path) -> io::Result<Option<MemoryLimit>> {
    let mut smallest: Option<(u64, PathBuf)> = None;
    for name in ["memory.max", "memory.high"] {
        let path = group.join(name);
        if let Some(bytes) = ceiling(&path)?
            && smallest.as_ref().is_none_or(|(least, _)| bytes < *least)
        {
            smallest = Some((bytes, path));
        }
    }
    let Some((bytes, path)) = smallest else { return Ok(None) };
    let reclaimable = Stat::of(group)?.reclaimable("", ["file_dirty", "file_writeback"])?;
    let used = values::usage(&group.join("memory.current"))?.saturating_sub(reclaimable);
    Ok(Some(MemoryLimit::new(bytes, bytes.saturating_sub(used), path.display().to_string())))
}

/// The bytes in `path`; `None` without such a file, and where it says `max`, which is no limit.
fn ceiling(path: &Path) -> io::Result<Option<u64>> {
    match values::text(path)?.as_deref() {
        None | Some("max") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| values::invalid(path, "a number of bytes or `max`", text)),
    }
}
