//! Time under a test's hand.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;

use super::{Timer, Wait};

/// A timer whose clocks stand still but for the sleeps that end: [`Wait::Backoff`] and [`Wait::Lock`] end at once, are
/// recorded and move the clocks on by their length; [`Wait::Stall`] ends only when [`FakeTimer::end_stalls`] says so.
#[derive(Clone)]
pub struct FakeTimer {
    state: Arc<Mutex<State>>,
    stalls: Arc<Semaphore>,
}

struct State {
    now: Duration,
    start: SystemTime,
    sleeps: Vec<(Wait, Duration)>,
}

impl Default for FakeTimer {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeTimer {
    /// At second 1,800,000,000 of the Unix epoch, nothing recorded.
    pub fn new() -> Self {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let state = State { now: Duration::ZERO, start, sleeps: Vec::new() };
        Self { state: Arc::new(Mutex::new(state)), stalls: Arc::new(Semaphore::new(0)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves both clocks on.
    pub fn advance(&self, by: Duration) {
        self.state().now += by;
    }

    /// The lengths of the sleeps of one kind so far, stalls apart, which are not recorded.
    pub fn sleeps(&self, wait: Wait) -> Vec<Duration> {
        self.state().sleeps.iter().filter(|(w, _)| *w == wait).map(|(_, d)| *d).collect()
    }

    /// Lets `count` sleeps for [`Wait::Stall`] end, present ones or those to come: as many connections are taken for
    /// stalled once they have nothing to read.
    pub fn end_stalls(&self, count: usize) {
        self.stalls.add_permits(count);
    }
}

impl Timer for FakeTimer {
    fn now(&self) -> Duration {
        self.state().now
    }

    fn wall(&self) -> SystemTime {
        let state = self.state();
        state.start + state.now
    }

    fn sleep(&self, duration: Duration, wait: Wait) -> BoxFuture<'static, ()> {
        if wait == Wait::Stall {
            let stalls = self.stalls.clone();
            return Box::pin(async move {
                if let Ok(permit) = stalls.acquire().await {
                    permit.forget();
                }
            });
        }
        let mut state = self.state();
        state.now += duration;
        state.sleeps.push((wait, duration));
        drop(state);
        // Whoever is waited for must get the thread.
        Box::pin(tokio::task::yield_now())
    }
}
