//! How much memory there is to take.

use sysinfo::{MemoryRefreshKind, ProcessRefreshKind, ProcessesToUpdate, System, get_current_pid};

/// Bytes of memory that this process can take now, swap left aside: what the system says is available, or less where a
/// control group limits it. `None` where that cannot be told.
///
/// Of a control group's limit only anonymous memory is taken away: the rest is cached files, which go when memory is needed.
pub(super) fn available() -> Option<u64> {
    let mut system = System::new();
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    // What sysinfo gives where it does not know.
    let free = Some(system.available_memory()).filter(|_| system.total_memory() > 0);
    let own = get_current_pid().ok().and_then(|pid| {
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, ProcessRefreshKind::nothing());
        system.process(pid)?.cgroup_limits()
    });
    let limited = own.or_else(|| system.cgroup_limits()).map(|limit| limit.total_memory.saturating_sub(limit.rss));
    [free, limited].into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_memory_and_not_more_than_the_machine_has() {
        let mut system = System::new();
        system.refresh_memory();
        let available = available().unwrap();
        assert!(available > 1 << 20 && available <= system.total_memory(), "{available}");
    }
}
