//! What Linux tells of pressure. Each source has one thread, which sleeps in poll(2) until the kernel wakes it.
//!
//! | source | files | hears of |
//! |---|---|---|
//! | [`MemoryEvents`] | cgroup v2 `memory.events` | a group at its limit |
//! | [`GroupNotifications`] | cgroup v1 `cgroup.event_control` | a group that comes near its limit, and one at it |
//! | [`Psi`] | cgroup v2 `memory.pressure`, `/proc/pressure/memory` | tasks that stand still for want of memory |
//!
//! Groups are folders, which whoever makes a source names. A process that is moved to another group hears on of the one it was in.
//! A group that is removed is not watched any more, and with the last of a source its thread ends.

mod events;
mod groups;
mod listen;
mod psi;
mod v1;

pub use events::MemoryEvents;
pub use psi::{Psi, Stall, Trigger};
pub use v1::GroupNotifications;

use std::sync::Arc;

use super::PressureSource;
use crate::CgroupTree;

/// Every source for this process, best first. Those of groups are left out where it is in none.
pub(super) fn sources() -> Vec<Arc<dyn PressureSource>> {
    let groups = CgroupTree::of_process().unwrap_or_else(|error| {
        tracing::warn!(%error, "the control groups of this process are not known, and so not watched");
        CgroupTree::default()
    });
    let mut sources: Vec<Arc<dyn PressureSource>> = Vec::new();
    if !groups.v2().is_empty() {
        sources.push(Arc::new(MemoryEvents::at(groups.v2())));
    }
    if !groups.v1().is_empty() {
        sources.push(Arc::new(GroupNotifications::at(groups.v1())));
    }
    if let Some(own) = groups.v2().first() {
        sources.push(Arc::new(Psi::at(own)));
    }
    sources.push(Arc::new(Psi::system()));
    sources
}
