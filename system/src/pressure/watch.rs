//! What a source does for whoever watches it, and how that ends.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::{self, JoinHandle},
};

use super::Pressure;

/// Where reports go. It is called by any thread, and by several at once where there are several reports; it should not block
/// for long. It may drop the [`Watch`] that it is called by. It may panic: that is logged, others are told all the same, and
/// it is called again with the next report.
pub type PressureSink = Arc<dyn Fn(Pressure) + Send + Sync>;

/// What goes on until it is dropped: a thread, a registration. The drop returns when nothing of it runs any more, and the sink
/// is not called after it. Where the sink itself drops it, the drop does not wait for the call that it is in, which is the last
/// one: the rest ends when that returns.
pub trait Watch: Send {}

/// Calls `sink` as [`PressureSink`] promises.
pub(super) fn tell(sink: &PressureSink, pressure: Pressure) {
    let source = pressure.source.clone();
    // Whoever unwinds out of its sink has nothing here that could be left half changed.
    if catch_unwind(AssertUnwindSafe(|| sink(pressure))).is_err() {
        tracing::error!(source, "whoever is told of memory pressure panicked");
    }
}

/// Waits for the end of a watch's thread, which was told to stop, as [`Watch`] promises.
pub(super) fn join(thread: Option<JoinHandle<()>>) {
    let Some(thread) = thread else { return };
    // Its sink drops the watch: it cannot wait for itself.
    if thread.thread().id() == thread::current().id() {
        return;
    }
    let name = thread.thread().name().unwrap_or_default().to_owned();
    if thread.join().is_err() {
        tracing::error!(thread = name, "the thread that watches for memory pressure panicked");
    }
}
