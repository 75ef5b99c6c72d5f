//! The heap that loads and models leave behind.

use std::{
    any::Any,
    sync::atomic::{AtomicBool, Ordering},
};

use candle_core::Device;

use crate::device;

/// Whether [`in_pool`] has run anything, so that candle's pool has threads.
static HAS_POOL: AtomicBool = AtomicBool::new(false);

/// What `compute` gives, on a thread of candle's pool, where operations do not wait for one each.
pub(crate) fn in_pool<R: Send>(compute: impl FnOnce() -> R + Send) -> R {
    HAS_POOL.store(true, Ordering::Relaxed);
    candle_core::utils::with_threadpool(compute)
}

/// Gives back to the system what the allocator keeps of freed memory. glibc keeps tens of megabytes after a load, and
/// nearly all of an unloaded model.
pub(crate) fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes no pointer, and may be called by any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Rows of a step from which what it leaves in the heap is worth a [`trim_thread`] behind it. The tensors of a prompt's chunks
/// grow with the sequence, so that each finds no place where those of the last one were: what is kept of all of them would come
/// to several times what one takes. Behind every fourth chunk is not enough: 302 MB at 2048 tokens of SmolLM2 Q4_1, not 248.
pub(crate) const MANY_ROWS: usize = 32;

/// Bytes of KV caches moved to larger ones from which a [`trim`] within a step is worth it. The next layer's larger cache finds
/// no place where those before it were: what is kept of all of them would come to a second KV cache.
pub(crate) const MUCH_MOVED: u64 = 8 << 20;

/// [`trim`], and [`trim_end_of_thread`] for the calling thread.
pub(crate) fn trim_thread() {
    trim();
    trim_end_of_thread();
}

/// Gives back what the allocator keeps at the end of the calling thread's own part of the heap, which [`trim`] does not reach:
/// glibc's `malloc_trim` gives back the end of the main thread's part alone (`mtrim` in malloc/malloc.c), and `free` keeps up
/// to 64 MiB there. For a thread that made much garbage: a tokenizer of 49 thousand tokens leaves 4 MB, an unloaded model up to
/// 7 MB, a prompt of some thousand tokens tens of megabytes.
pub(crate) fn trim_end_of_thread() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // As much as one part of the heap can be (`HEAP_MAX_SIZE`), in pieces that it gives out where larger ones were freed
        // before; and some below the size from which glibc else maps what is asked for by itself.
        const PIECES: [(usize, usize); 2] = [(1 << 20, 64), (120 * 1024, 64)];
        // SAFETY: it takes no pointer.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let Ok(page) = usize::try_from(page) else { return };
        let sizes = PIECES.iter().flat_map(|(bytes, count)| std::iter::repeat_n(*bytes, *count));
        // SAFETY: any size may be asked for.
        let all: Vec<_> = sizes.map(|bytes| (unsafe { libc::malloc(bytes) }, bytes)).collect();
        for (start, bytes) in all.iter().filter(|(start, _)| !start.is_null()) {
            let before = start.align_offset(page);
            let whole = bytes.saturating_sub(before) / page * page;
            if whole > 0 {
                // SAFETY: these pages lie in what was allocated just now, which nobody else has and nothing was written to.
                // `malloc_trim` does the same to what is free.
                unsafe { libc::madvise(start.byte_add(before), whole, libc::MADV_DONTNEED) };
            }
        }
        for (start, _) in all {
            // SAFETY: it came from `malloc`, is freed once, and may be null.
            unsafe { libc::free(start) };
        }
    }
}

/// [`trim_thread`], and [`trim_end_of_thread`] for the threads of candle's pool: any of them may have computed a step. It waits
/// for steps of other models.
pub(crate) fn trim_all() {
    trim_thread();
    if HAS_POOL.load(Ordering::Relaxed) {
        candle_core::utils::with_threadpool(|| rayon::broadcast(|_| trim_end_of_thread()));
    }
}

/// [`trim_end_of_thread`] for the parts of the heap that threads had which have ended: a model is read by such threads, and what
/// another thread frees there stays at these parts' ends (64 MB of an unloaded model in f16, now and then). glibc gives the
/// parts that nobody has to new threads, so there are as many of those here, at one time, as a load has had.
fn trim_ends_without_thread() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // The readers, the tokenizer's thread, and the worker before this one.
        const THREADS: usize = 10;
        let gate = std::sync::RwLock::new(());
        std::thread::scope(|scope| {
            let closed = gate.write();
            for _ in 0..THREADS {
                let trim = || {
                    // Once all are there, each has a part of its own.
                    drop(gate.read());
                    trim_end_of_thread();
                };
                // Where the system gives no more threads, some parts are not reached.
                if std::thread::Builder::new().name("llm-trim".into()).spawn_scoped(scope, trim).is_err() {
                    break;
                }
            }
            drop(closed);
        });
    }
}

/// Gives back what is left in the heap and on the device when it is dropped: behind a model, before its reservation ends.
pub(crate) struct TrimOnDrop {
    device: Device,
    _reservation: Option<Box<dyn Any + Send + Sync>>,
}

impl TrimOnDrop {
    pub(crate) fn new(reservation: Option<Box<dyn Any + Send + Sync>>, device: Device) -> Self {
        Self { device, _reservation: reservation }
    }
}

impl Drop for TrimOnDrop {
    fn drop(&mut self) {
        device::release(&self.device);
        trim_all();
        trim_ends_without_thread();
    }
}
