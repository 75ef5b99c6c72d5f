//! Version 1, as the kernel's `Documentation/admin-guide/cgroup-v1/memory.rst` has it.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::values::{self, Stat};
use crate::MemoryLimit;

/// From here on a limit is none: the kernel writes "unlimited" as the largest signed number of bytes, rounded down to whole
/// pages, whose size differs.
const UNLIMITED: u64 = 1 << 62;

/// Of `groups`, directories of which each is below the next, those that are charged for the first: kernels before 5.11 charge
/// groups above only where these say so.
pub(super) fn charged(mut groups: Vec<PathBuf>) -> io::Result<Vec<PathBuf>> {
    for above in 1..groups.len() {
        if values::text(&groups[above].join("memory.use_hierarchy"))?.as_deref() == Some("0") {
            groups.truncate(above);
            break;
        }
    }
    Ok(groups)
}

/// The limits of `groups`, as [`charged`] leaves them.
pub(super) fn limits(groups: &[PathBuf]) -> io::Result<Vec<MemoryLimit>> {
    let mut limits = Vec::new();
    for group in groups {
        limits.extend(limit(group)?);
    }
    limits.extend(unseen(groups, &limits)?);
    Ok(limits)
}

/// The limit of one group, where it has one.
pub(super) fn limit(group: &Path) -> io::Result<Option<MemoryLimit>> {
    let path = group.join("memory.limit_in_bytes");
    let Some(text) = values::text(&path)? else { return Ok(None) };
    match values::bytes(&path, &text)? {
        UNLIMITED.. => Ok(None),
        bytes => of(group, bytes, path.display().to_string()).map(Some),
    }
}

/// The limit of a group above those that are mounted, which the kernel tells as the smallest of all on the way up. Of what is
/// left there only this is known: not more than this group leaves of it.
fn unseen(groups: &[PathBuf], seen: &[MemoryLimit]) -> io::Result<Option<MemoryLimit>> {
    let Some(group) = groups.first() else { return Ok(None) };
    match Stat::of(group)?.get("hierarchical_memory_limit")? {
        Some(bytes) if bytes < UNLIMITED && seen.iter().all(|limit| bytes < limit.bytes) => {
            let by = format!("{} (hierarchical_memory_limit)", group.join("memory.stat").display());
            of(group, bytes, by).map(Some)
        }
        _ => Ok(None),
    }
}

/// `bytes`, and what `group` with all below it leaves of them.
fn of(group: &Path, bytes: u64, by: String) -> io::Result<MemoryLimit> {
    // With `total_` for the groups below too, as the usage is.
    let reclaimable = Stat::of(group)?.reclaimable("total_", ["dirty", "writeback"])?;
    let used = values::usage(&group.join("memory.usage_in_bytes"))?.saturating_sub(reclaimable);
    Ok(MemoryLimit::new(bytes, bytes.saturating_sub(used), by))
}
