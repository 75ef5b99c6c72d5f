//! Time, as a value that tests replace: nothing in this crate sleeps or reads a clock but through a [`Timer`].

use std::{
    sync::LazyLock,
    time::{Duration, Instant, SystemTime},
};

use futures_util::future::BoxFuture;

/// What a sleep is for, so that a test can let one kind pass and hold another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Wait {
    /// Before the next attempt of a request that failed.
    Backoff,
    /// Before a request to a host that asked, by another request, for a pause.
    Pause,
    /// The limit on how long a connection may stay without a byte: in the ordinary course it never ends.
    Stall,
    /// Before the next look at a lock that somebody else holds.
    Lock,
}

/// Clocks and sleep.
pub trait Timer: Send + Sync + 'static {
    /// A monotonic clock's reading, since an arbitrary start.
    fn now(&self) -> Duration;

    /// The time of day, for headers and records that carry dates.
    fn wall(&self) -> SystemTime;

    /// Ends after `duration`; `wait` says what for. May be called and polled only on the runtime of a
    /// [`Network`](super::Network).
    fn sleep(&self, duration: Duration, wait: Wait) -> BoxFuture<'static, ()>;
}

const _: fn(&dyn Timer) = |_| {};

/// The machine's clocks, and sleep by tokio.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokioTimer;

impl Timer for TokioTimer {
    fn now(&self) -> Duration {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        START.elapsed()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, duration: Duration, _: Wait) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}
