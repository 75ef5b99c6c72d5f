//! The heap that loads and models leave behind.

use std::any::Any;

/// Gives back to the system what the allocator keeps of freed memory. glibc keeps tens of megabytes after a load, and
/// nearly all of an unloaded model.
pub(crate) fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes no pointer, and may be called by any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Gives back what the allocator keeps at the end of the calling thread's own part of the heap, which [`trim`] does not reach:
/// glibc's `malloc_trim` gives back the end of the main thread's part alone (`mtrim` in malloc/malloc.c). For a thread that
/// made much garbage: a tokenizer of 49 thousand tokens leaves 4 MB there, an unloaded model up to 7 MB.
pub(crate) fn trim_end_of_thread() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // Below the size from which glibc maps what is asked for by itself, and as many as cover a few megabytes.
        const BYTES: usize = 120 * 1024;
        // SAFETY: it takes no pointer.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let Ok(page) = usize::try_from(page) else { return };
        // SAFETY: any size may be asked for.
        let all = [(); 64].map(|()| unsafe { libc::malloc(BYTES) });
        for start in all.into_iter().filter(|start| !start.is_null()) {
            let before = start.align_offset(page);
            let whole = BYTES.saturating_sub(before) / page * page;
            if whole > 0 {
                // SAFETY: these pages lie in what was allocated just now, which nobody else has and nothing was written to.
                // `malloc_trim` does the same to what is free.
                unsafe { libc::madvise(start.byte_add(before), whole, libc::MADV_DONTNEED) };
            }
        }
        for start in all {
            // SAFETY: it came from `malloc`, is freed once, and may be null.
            unsafe { libc::free(start) };
        }
    }
}

/// Trims the heap when it is dropped: behind a model, before its reservation ends.
pub(crate) struct TrimOnDrop {
    _reservation: Option<Box<dyn Any + Send + Sync>>,
}

impl TrimOnDrop {
    pub(crate) fn new(reservation: Option<Box<dyn Any + Send + Sync>>) -> Self {
        Self { _reservation: reservation }
    }
}

impl Drop for TrimOnDrop {
    fn drop(&mut self) {
        trim();
        trim_end_of_thread();
    }
}
