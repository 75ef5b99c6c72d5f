//! What Apple's systems say of memory beyond what sysinfo reads.
//!
//! sysinfo counts active pages as available. Most of them are memory that processes use, this one's models among them, and it
//! can only be had by compressing or swapping it. So macOS is asked here.
//!
//! On iOS what is available is up to the system, which ends other apps for the one in front. What counts is what it lets this
//! app have.

#[cfg(target_vendor = "apple")]
pub(super) use calls::*;

#[cfg(any(test, all(target_os = "ios", target_abi = "")))]
use super::MemoryLimit;

/// Pages of macOS, counted by who holds them.
#[cfg(any(test, target_os = "macos"))]
struct Pages {
    /// Unused, with those that were read ahead.
    free: u64,
    /// Read ahead from files, which are files' as well.
    speculative: u64,
    /// Of files.
    external: u64,
    /// Of processes that said they can do without them.
    purgeable: u64,
}

#[cfg(any(test, target_os = "macos"))]
impl Pages {
    /// Those that can be taken without compressing or swapping anything.
    fn available(&self) -> u64 {
        self.free.saturating_sub(self.speculative) + self.external + self.purgeable
    }
}

/// The limit of an app that has `footprint` bytes and may take `available` more.
#[cfg(any(test, all(target_os = "ios", target_abi = "")))]
fn limit_of_app(footprint: u64, available: u64) -> MemoryLimit {
    MemoryLimit::new(footprint.saturating_add(available), available, "iOS's limit for this app")
}

#[cfg(target_os = "macos")]
mod calls {
    use std::{io, sync::LazyLock};

    use super::{super::MemoryLimit, Pages};

    /// One for the process: each call for it takes a right that would have to be given back.
    static HOST: LazyLock<libc::mach_port_t> = LazyLock::new(|| {
        // SAFETY: it has no arguments, and always gives a port.
        #[allow(deprecated, reason = "libc names another crate for it, which would be there for this one call")]
        unsafe {
            libc::mach_host_self()
        }
    });

    /// Bytes that can be taken without compressing or swapping anything.
    pub(in super::super) fn available() -> io::Result<u64> {
        // SAFETY: it is numbers, which may all be 0.
        let mut statistics: libc::vm_statistics64 = unsafe { std::mem::zeroed() };
        let mut count = libc::HOST_VM_INFO64_COUNT;
        // SAFETY: there is room for `count` words, which is what this request fills at most.
        let code = unsafe {
            libc::host_statistics64(*HOST, libc::HOST_VM_INFO64, (&raw mut statistics).cast(), &raw mut count)
        };
        if code != libc::KERN_SUCCESS {
            return Err(io::Error::other(format!("host_statistics64(HOST_VM_INFO64) returned {code}, expected 0")));
        }
        let pages = Pages {
            free: statistics.free_count.into(),
            speculative: statistics.speculative_count.into(),
            external: statistics.external_page_count.into(),
            purgeable: statistics.purgeable_count.into(),
        };
        // SAFETY: it has no condition.
        let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        match u64::try_from(size) {
            Ok(size) if size > 0 => Ok(pages.available().saturating_mul(size)),
            _ => Err(io::Error::other(format!("sysconf(_SC_PAGESIZE) returned {size}, expected a size"))),
        }
    }

    /// macOS sets none.
    pub(in super::super) fn limits() -> io::Result<Vec<MemoryLimit>> {
        Ok(Vec::new())
    }
}

#[cfg(all(target_os = "ios", target_abi = ""))]
mod calls {
    use std::io;

    use super::{super::MemoryLimit, limit_of_app};

    // <os/proc.h>, from iOS 13 on.
    unsafe extern "C" {
        safe fn os_proc_available_memory() -> usize;
    }

    /// `struct task_vm_info` of <mach/task_info.h> as far as its first revision goes.
    #[repr(C)]
    #[derive(Default)]
    struct TaskVmInfo {
        before: [u64; 18],
        phys_footprint: u64,
    }

    const TASK_VM_INFO: libc::task_flavor_t = 22;

    /// In words, as the call counts.
    const TASK_VM_INFO_REV1_COUNT: libc::mach_msg_type_number_t = 38;

    const _: () = assert!(size_of::<TaskVmInfo>() == 4 * TASK_VM_INFO_REV1_COUNT as usize);

    /// What iOS lets this app have. 0 bytes are left to what is no app, too, such as an extension without a limit of its own.
    pub(in super::super) fn limits() -> io::Result<Vec<MemoryLimit>> {
        let mut info = TaskVmInfo::default();
        let mut count = TASK_VM_INFO_REV1_COUNT;
        // SAFETY: the port is this process's, and there is room for `count` words, beyond which the call does not write.
        #[allow(deprecated, reason = "libc names another crate for the port, which would be there for this one call")]
        let code =
            unsafe { libc::task_info(libc::mach_task_self(), TASK_VM_INFO, (&raw mut info).cast(), &raw mut count) };
        if code != libc::KERN_SUCCESS || count < TASK_VM_INFO_REV1_COUNT {
            let found = format!("task_info(TASK_VM_INFO) returned {code} with {count} words");
            return Err(io::Error::other(format!("{found}, expected 0 with {TASK_VM_INFO_REV1_COUNT}")));
        }
        Ok(vec![limit_of_app(info.phys_footprint, os_proc_available_memory() as u64)])
    }
}

#[cfg(all(target_vendor = "apple", not(target_os = "macos"), not(all(target_os = "ios", target_abi = ""))))]
mod calls {
    use std::io;

    use super::super::MemoryLimit;

    /// An app in a simulator or on a Mac has the Mac's memory.
    pub(in super::super) fn limits() -> io::Result<Vec<MemoryLimit>> {
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_processes_use_are_not_available_and_none_counts_twice() {
        let pages = Pages { free: 100, speculative: 30, external: 200, purgeable: 5 };
        assert_eq!(pages.available(), 275);
        // Counted one after the other, while they change.
        let pages = Pages { free: 10, speculative: 30, external: 200, purgeable: 0 };
        assert_eq!(pages.available(), 200);
    }

    #[test]
    fn an_app_may_have_what_it_has_and_what_it_may_still_take() {
        let limit = limit_of_app(300, 700);
        assert_eq!((limit.bytes, limit.available), (1000, 700));
        assert_eq!(limit_of_app(300, 0).bytes, 300);
    }
}
