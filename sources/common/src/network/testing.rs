//! Time under a test's hand.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, watch};

use super::{Timer, Wait};

/// A timer whose clocks stand still but for the sleeps that end: all but [`Wait::Stall`] end at once, are recorded and move
/// the clocks on by their length, unless they are [held](FakeTimer::holding); [`Wait::Stall`] ends only when
/// [`FakeTimer::end_stalls`] says so.
#[derive(Clone)]
pub struct FakeTimer {
    state: Arc<Mutex<State>>,
    stalls: Arc<Semaphore>,
    now: Arc<watch::Sender<Duration>>,
    held: Arc<[Wait]>,
}

struct State {
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
        let state = Arc::new(Mutex::new(State { start, sleeps: Vec::new() }));
        let now = Arc::new(watch::Sender::new(Duration::ZERO));
        Self { state, stalls: Arc::new(Semaphore::new(0)), now, held: Arc::default() }
    }

    /// Sleeps of these kinds end only once [`FakeTimer::advance`] has moved the clocks on to their end.
    pub fn holding(mut self, waits: &[Wait]) -> Self {
        self.held = waits.into();
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves both clocks on.
    pub fn advance(&self, by: Duration) {
        self.now.send_modify(|now| *now += by);
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
        *self.now.borrow()
    }

    fn wall(&self) -> SystemTime {
        self.state().start + self.now()
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
        self.state().sleeps.push((wait, duration));
        if self.held.contains(&wait) {
            let (mut now, end) = (self.now.subscribe(), self.now() + duration);
            return Box::pin(async move {
                // The sender lives as long as the timer; without it, nobody waits for this.
                let _ = now.wait_for(|now| *now >= end).await;
            });
        }
        self.advance(duration);
        // Whoever is waited for must get the thread.
        Box::pin(tokio::task::yield_now())
    }
}
