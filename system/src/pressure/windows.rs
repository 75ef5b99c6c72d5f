//! What Windows tells of memory: notifications that it is low, and that there is enough.
//!
//! Both say what is, not what changes, so each is waited for in its turn. Low comes late: when about 32 MB of each 4 GB are
//! available, and at most 64 MB; high comes from three times as much on.

#[cfg(windows)]
pub(super) use source::sources;

use super::{PressureLevel, Shares};
use crate::probe::windows::Commit;

/// How short memory is once it is low. Windows then pages, which is slow and goes on; what is fatal is that nothing is left to
/// commit, for no allocation succeeds then.
fn level_when_low(commit: Commit, shares: &Shares) -> PressureLevel {
    shares.level(commit.left, commit.limit).max(PressureLevel::Warn)
}

#[cfg(windows)]
mod source {
    use std::{
        io,
        os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle},
        ptr,
        sync::Arc,
        thread::{self, JoinHandle},
    };

    use windows_sys::Win32::{
        Foundation::{HANDLE, WAIT_OBJECT_0, WAIT_TIMEOUT},
        System::{
            Memory::{
                CreateMemoryResourceNotification, HighMemoryResourceNotification, LowMemoryResourceNotification,
                QueryMemoryResourceNotification,
            },
            Threading::{CreateEventW, INFINITE, SetEvent, WaitForMultipleObjects},
        },
    };

    use super::{
        super::{
            Pressure, PressureLevel, PressureSink, PressureSource, Shares, Watch,
            watch::{join, tell},
        },
        level_when_low,
    };
    use crate::probe::windows::{commit, failed};

    pub(in super::super) fn sources() -> Vec<Arc<dyn PressureSource>> {
        vec![Arc::new(Notifications::default())]
    }

    /// How long is waited while memory is low before it is said again, in milliseconds.
    const PAUSE: u32 = 1000;

    const NAME: &str = "memory resource notification";

    /// The system's notifications, with the shares of the commit limit by which low memory is critical.
    #[derive(Default)]
    struct Notifications {
        shares: Shares,
    }

    impl PressureSource for Notifications {
        fn name(&self) -> &str {
            NAME
        }

        fn watch(&self, sink: PressureSink) -> io::Result<Box<dyn Watch>> {
            // SAFETY: each call gives a new handle, or none.
            let (low, high, stop) = unsafe {
                (
                    owned(
                        CreateMemoryResourceNotification(LowMemoryResourceNotification),
                        "CreateMemoryResourceNotification",
                    )?,
                    owned(
                        CreateMemoryResourceNotification(HighMemoryResourceNotification),
                        "CreateMemoryResourceNotification",
                    )?,
                    // It stays set, for whoever waits for it later.
                    owned(CreateEventW(ptr::null(), 1, 0, ptr::null()), "CreateEvent")?,
                )
            };
            let stop = Arc::new(stop);
            let watching = Watching { low, high, stop: stop.clone(), shares: self.shares, sink };
            let thread = thread::Builder::new().name("llm-memory-low".into()).spawn(move || {
                if let Err(error) = watching.run() {
                    tracing::error!(%error, "low memory is no longer heard of");
                }
            })?;
            Ok(Box::new(Running { stop, thread: Some(thread) }))
        }
    }

    /// # Safety
    /// `handle` is null, or nobody else closes it.
    unsafe fn owned(handle: HANDLE, call: &str) -> io::Result<OwnedHandle> {
        if handle.is_null() {
            return Err(failed(call));
        }
        // SAFETY: it is not null, and the rest is the caller's promise.
        Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
    }

    /// What ended a wait.
    enum Woken {
        Stopped,
        Signalled,
        TimedOut,
    }

    struct Watching {
        low: OwnedHandle,
        high: OwnedHandle,
        stop: Arc<OwnedHandle>,
        shares: Shares,
        sink: PressureSink,
    }

    impl Watching {
        /// Reports until it is stopped: low memory for as long as it lasts, and once that there is enough again.
        fn run(&self) -> io::Result<()> {
            loop {
                match self.wait(&self.low, INFINITE)? {
                    Woken::Stopped => return Ok(()),
                    Woken::Signalled | Woken::TimedOut => self.report_low(),
                }
                loop {
                    match self.wait(&self.high, PAUSE)? {
                        Woken::Stopped => return Ok(()),
                        Woken::Signalled => break,
                        Woken::TimedOut if self.is_low()? => self.report_low(),
                        // Neither low nor enough.
                        Woken::TimedOut => {}
                    }
                }
                self.report(PressureLevel::Normal, "the system says that memory is no longer low".into());
            }
        }

        fn report_low(&self) {
            let (level, reason) = match commit() {
                Ok(commit) => {
                    let left = format!("{} of {} bytes are left to commit", commit.left, commit.limit);
                    (level_when_low(commit, &self.shares), format!("the system says that memory is low, and {left}"))
                }
                Err(error) => (
                    PressureLevel::Warn,
                    format!("the system says that memory is low; what is left is unknown: {error}"),
                ),
            };
            self.report(level, reason);
        }

        fn report(&self, level: PressureLevel, reason: String) {
            tell(&self.sink, Pressure::new(level, NAME, reason));
        }

        fn wait(&self, notification: &OwnedHandle, milliseconds: u32) -> io::Result<Woken> {
            let handles = [self.stop.as_raw_handle(), notification.as_raw_handle()];
            // SAFETY: there are so many handles, and they stay open as long as `self`.
            match unsafe { WaitForMultipleObjects(handles.len() as u32, handles.as_ptr(), 0, milliseconds) } {
                WAIT_OBJECT_0 => Ok(Woken::Stopped),
                number if number == WAIT_OBJECT_0 + 1 => Ok(Woken::Signalled),
                WAIT_TIMEOUT => Ok(Woken::TimedOut),
                _ => Err(failed("WaitForMultipleObjects")),
            }
        }

        fn is_low(&self) -> io::Result<bool> {
            let mut low = 0;
            // SAFETY: the handle is a notification's, and open.
            match unsafe { QueryMemoryResourceNotification(self.low.as_raw_handle(), &raw mut low) } {
                0 => Err(failed("QueryMemoryResourceNotification")),
                _ => Ok(low != 0),
            }
        }
    }

    struct Running {
        stop: Arc<OwnedHandle>,
        thread: Option<JoinHandle<()>>,
    }

    impl Watch for Running {}

    impl Drop for Running {
        fn drop(&mut self) {
            // SAFETY: the handle is an event's, and open.
            if unsafe { SetEvent(self.stop.as_raw_handle()) } == 0 {
                // Whoever joined the thread now would wait for ever.
                tracing::error!(error = %failed("SetEvent"), "what waits for low memory could not be stopped");
                return;
            }
            join(self.thread.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_memory_is_critical_when_little_is_left_to_commit() {
        let of = |left| level_when_low(Commit { limit: 1000, left }, &Shares::new(0.1, 0.05));
        assert_eq!(of(900), PressureLevel::Warn);
        assert_eq!(of(60), PressureLevel::Warn);
        assert_eq!(of(49), PressureLevel::Critical);
        assert_eq!(of(0), PressureLevel::Critical);
    }
}
