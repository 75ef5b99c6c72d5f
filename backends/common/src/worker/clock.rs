//! Time, so that tests can set it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// The time since some fixed moment. It never goes back.
pub(super) type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// The machine's monotonic clock.
pub(super) fn monotonic() -> Clock {
    let start = Instant::now();
    Arc::new(move || start.elapsed())
}
