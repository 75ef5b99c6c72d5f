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
    }
}
