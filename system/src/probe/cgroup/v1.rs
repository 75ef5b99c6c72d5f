//! Version 1, as the kernel's `Documentation/admin-guide/cgroup-v1/memory.rst` has it.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{
    Bound,
    values::{self, Stat},
};

/// From here on a limit is none: the kernel writes "unlimited" as the largest signed number of bytes, rounded down to whole
/// pages, whose size differs.
const UNLIMITED: u64 = 1 << 62;

/// The limits of `groups`, directories of which each is below the next.
pub(super) fn bounds(groups: &[PathBuf]) -> io::Result<Vec<Bound>> {
    let mut bounds = Vec::new();
    for (depth, group) in groups.iter().enumerate() {
        // Kernels before 5.11 charge groups above only where these say so.
        if depth > 0 && values::text(&group.join("memory.use_hierarchy"))?.as_deref() == Some("0") {
            break;
        }
        bounds.extend(bound(group)?);
    }
    bounds.extend(unseen(groups, &bounds)?);
    Ok(bounds)
}

/// The limit of one group, where it has one.
pub(super) fn bound(group: &Path) -> io::Result<Option<Bound>> {
    let path = group.join("memory.limit_in_bytes");
    let Some(text) = values::text(&path)? else { return Ok(None) };
    match values::bytes(&path, &text)? {
        UNLIMITED.. => Ok(None),
        bytes => of(group, bytes, path.display().to_string()).map(Some),
    }
}

/// The limit of a group above those that are mounted, which the kernel tells as the smallest of all on the way up. Of what is
/// left there only this is known: not more than this group leaves of it.
fn unseen(groups: &[PathBuf], seen: &[Bound]) -> io::Result<Option<Bound>> {
    let Some(group) = groups.first() else { return Ok(None) };
    match Stat::of(group)?.get("hierarchical_memory_limit")? {
        Some(bytes) if bytes < UNLIMITED && seen.iter().all(|bound| bytes < bound.bytes) => {
            let by = format!("{} (hierarchical_memory_limit)", group.join("memory.stat").display());
            of(group, bytes, by).map(Some)
        }
        _ => Ok(None),
    }
}

/// `bytes`, and what `group` with all below it leaves of them.
fn of(group: &Path, bytes: u64, by: String) -> io::Result<Bound> {
    // With `total_` for the groups below too, as the usage is.
    let reclaimable = Stat::of(group)?.reclaimable("total_", ["dirty", "writeback"])?;
    let used = values::usage(&group.join("memory.usage_in_bytes"))?.saturating_sub(reclaimable);
    Ok(Bound { bytes, left: bytes.saturating_sub(used), by })
}
