//! What Apple's systems tell of memory: dispatch's source of memory pressure.
//!
//! It tells of changes. Of the level that held before, macOS tells whoever asks; iOS does not. What an app of iOS may still take
//! is not in it: that is what [`super::Polling`] sees.

#[cfg(target_vendor = "apple")]
pub(super) use source::sources;

use super::PressureLevel;

/// `DISPATCH_MEMORYPRESSURE_NORMAL`, which like the other two is also a value of macOS's `kern.memorystatus_vm_pressure_level`.
const NORMAL: usize = 1;
/// `DISPATCH_MEMORYPRESSURE_WARN`.
const WARN: usize = 2;
/// `DISPATCH_MEMORYPRESSURE_CRITICAL`.
const CRITICAL: usize = 4;

/// The worst of the levels in `flags`: several changes can come as one. None of them is no news.
fn level(flags: usize) -> Option<PressureLevel> {
    [(CRITICAL, PressureLevel::Critical), (WARN, PressureLevel::Warn), (NORMAL, PressureLevel::Normal)]
        .into_iter()
        .find_map(|(flag, level)| (flags & flag != 0).then_some(level))
}

#[cfg(target_vendor = "apple")]
mod source {
    use std::{
        io,
        sync::{
            Arc, Mutex, PoisonError,
            mpsc::{self, Receiver},
        },
        thread::{self, ThreadId},
    };

    use block2::RcBlock;
    use dispatch2::{
        _dispatch_source_type_memorypressure, DispatchObject, DispatchQueue, DispatchQueueAttr, DispatchRetained,
        DispatchSource, dispatch_source_memorypressure_flags_t as Flags,
    };

    use super::{
        super::{Pressure, PressureSink, PressureSource, Watch, watch::tell},
        CRITICAL, NORMAL, WARN, level,
    };

    const _: () = assert!(
        Flags::DISPATCH_MEMORYPRESSURE_NORMAL.0 as usize == NORMAL
            && Flags::DISPATCH_MEMORYPRESSURE_WARN.0 as usize == WARN
            && Flags::DISPATCH_MEMORYPRESSURE_CRITICAL.0 as usize == CRITICAL
    );

    pub(in super::super) fn sources() -> Vec<Arc<dyn PressureSource>> {
        vec![Arc::new(MemoryPressure)]
    }

    const NAME: &str = "dispatch memory pressure";

    struct MemoryPressure;

    impl PressureSource for MemoryPressure {
        fn name(&self) -> &str {
            NAME
        }

        fn watch(&self, sink: PressureSink) -> io::Result<Box<dyn Watch>> {
            let listener = Arc::new(Listener { sink, called_by: Mutex::new(None) });
            // One of its own, on which one thing is done at a time: an application may keep the others busy.
            let queue = DispatchQueue::new("llm-local.memory-pressure", DispatchQueueAttr::SERIAL);
            let kind = (&raw const _dispatch_source_type_memorypressure).cast_mut();
            // SAFETY: this type of dispatch's has no handle, and a mask of these flags.
            let source = unsafe { DispatchSource::new(kind, 0, NORMAL | WARN | CRITICAL, Some(&queue)) };
            #[cfg(target_os = "macos")]
            match level_now() {
                Ok(NORMAL) => {}
                Ok(flags) => {
                    let listener = listener.clone();
                    queue.exec_async(move || listener.hear(flags));
                }
                Err(error) => tracing::warn!(%error, "the memory pressure so far is not known, only what changes"),
            }
            let on_event = block({
                // Dispatch lets the block go when the source is cancelled, and so both no longer hold each other.
                let (listener, source) = (listener.clone(), source.clone());
                move || listener.hear(source.data())
            });
            let (cancelled, until_cancelled) = mpsc::channel();
            let on_cancel = block(move || {
                // Nobody is there to hear of it if the watch was leaked.
                let _ = cancelled.send(());
            });
            // SAFETY: both are blocks without arguments, which dispatch copies, and can be called on any thread.
            unsafe {
                source.set_event_handler_with_block(RcBlock::as_ptr(&on_event));
                source.set_cancel_handler_with_block(RcBlock::as_ptr(&on_cancel));
            }
            source.activate();
            Ok(Box::new(Running { source, listener, until_cancelled }))
        }
    }

    /// A block that dispatch may call on threads of its own.
    fn block(closure: impl Fn() + Send + 'static) -> RcBlock<dyn Fn()> {
        RcBlock::new(closure)
    }

    struct Listener {
        sink: PressureSink,
        /// The thread that the sink is being called by. Dispatch says of no thread which queue it works for.
        called_by: Mutex<Option<ThreadId>>,
    }

    impl Listener {
        fn hear(&self, flags: usize) {
            let Some(level) = level(flags) else { return };
            let pressure = Pressure::new(level, NAME, format!("the system says that memory pressure is {level}"));
            self.set_called_by(Some(thread::current().id()));
            // It lets no panic reach dispatch, which would end the process.
            tell(&self.sink, pressure);
            self.set_called_by(None);
        }

        fn set_called_by(&self, thread: Option<ThreadId>) {
            *self.called_by.lock().unwrap_or_else(PoisonError::into_inner) = thread;
        }

        fn is_called_here(&self) -> bool {
            *self.called_by.lock().unwrap_or_else(PoisonError::into_inner) == Some(thread::current().id())
        }
    }

    /// The level, as one of the flags.
    #[cfg(target_os = "macos")]
    fn level_now() -> io::Result<usize> {
        let mut level: libc::c_int = 0;
        let mut size = size_of::<libc::c_int>();
        let name = c"kern.memorystatus_vm_pressure_level";
        // SAFETY: the name ends with a zero, `level` has room for `size` bytes, and nothing is set.
        let code = unsafe {
            libc::sysctlbyname(name.as_ptr(), (&raw mut level).cast(), &raw mut size, std::ptr::null_mut(), 0)
        };
        if code != 0 {
            let error = io::Error::last_os_error();
            return Err(io::Error::new(error.kind(), format!("{}: {error}", name.to_string_lossy())));
        }
        usize::try_from(level)
            .map_err(|_| io::Error::other(format!("{}: expected a level, found {level}", name.to_string_lossy())))
    }

    struct Running {
        source: DispatchRetained<DispatchSource>,
        listener: Arc<Listener>,
        until_cancelled: Receiver<()>,
    }

    impl Watch for Running {}

    impl Drop for Running {
        fn drop(&mut self) {
            self.source.cancel();
            // A sink that drops the watch it is called by: nothing is called after it, and it cannot wait for itself.
            if self.listener.is_called_here() {
                return;
            }
            // Dispatch says so once, on the queue, after what it was calling there has returned and before it lets go of the
            // sender. So an error means the same.
            let _ = self.until_cancelled.recv();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_changes_the_worst_counts() {
        assert_eq!(level(NORMAL), Some(PressureLevel::Normal));
        assert_eq!(level(WARN), Some(PressureLevel::Warn));
        assert_eq!(level(CRITICAL), Some(PressureLevel::Critical));
        assert_eq!(level(NORMAL | CRITICAL | WARN), Some(PressureLevel::Critical));
        assert_eq!(level(NORMAL | WARN), Some(PressureLevel::Warn));
        assert_eq!(level(0), None);
        // The limit of a process, which is not asked for.
        assert_eq!(level(0x10), None);
    }
}
