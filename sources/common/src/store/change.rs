//! One change of a store at a time.

use std::{
    fmt,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant, SystemTime},
};

use futures_util::future::BoxFuture;
use llm_local_core::{Error, Result};
use tokio_util::sync::CancellationToken;

use super::Store;
use crate::{
    disk::{FileLock, prepare_root},
    network::{Timer, Wait},
};

/// The first waits, which nobody is told of, since changes are short: how many of how many milliseconds.
const SHORT_WAITS: [(usize, u64); 3] = [(8, 1), (8, 4), (8, 16)];
/// How long a cancel may go unnoticed.
const SLICE: Duration = Duration::from_millis(20);

/// The right to change a store, until it is dropped.
#[derive(Debug)]
pub(super) struct Changing {
    // Dropping it gives it back.
    _lock: FileLock,
}

/// How the calls of a store wait for that right.
#[derive(Clone)]
pub(super) struct Waiting {
    pub(super) cancel: CancellationToken,
    pub(super) on_wait: Arc<dyn Fn(&str) + Send + Sync>,
    pub(super) timer: Arc<dyn Timer>,
}

impl Store {
    /// Ends calls that wait for another process to be done with a change: with [`Error::Cancelled`], soon after `cancel`.
    pub fn with_cancel(mut self, cancel: CancellationToken) -> Self {
        self.waiting.cancel = cancel;
        self
    }

    /// Tells `on_wait` what a call waits for, each time that is another; without it, that is logged.
    pub fn with_on_wait(mut self, on_wait: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.waiting.on_wait = Arc::new(on_wait);
        self
    }

    /// Waits for the right to change the store. Whoever has it makes no request and hashes nothing, so that the wait is
    /// short. Makes the store's folder.
    pub(super) fn change(&self) -> Result<Changing> {
        prepare_root(self.root())?;
        let path = self.locks().join("store.lock");
        let Waiting { cancel, on_wait, timer } = &self.waiting;
        for wait in SHORT_WAITS.into_iter().flat_map(|(count, wait)| std::iter::repeat_n(wait, count)) {
            if let Some(lock) = FileLock::try_acquire(&path)? {
                return Ok(Changing { _lock: lock });
            }
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            block_on(timer.sleep(Duration::from_millis(wait), Wait::Lock));
        }
        let lock = block_on(FileLock::acquire(&path, &**timer, cancel, |reason| on_wait(&reason)))?;
        Ok(Changing { _lock: lock })
    }
}

impl Default for Waiting {
    fn default() -> Self {
        Self {
            cancel: CancellationToken::new(),
            on_wait: Arc::new(|reason| tracing::info!(reason, "waiting to change the store")),
            timer: Arc::new(ThreadTimer),
        }
    }
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").field("cancel", &self.cancel).finish_non_exhaustive()
    }
}

/// Polls `future` until it is done: its sleeps block, so that there is nothing else to wait for.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let (mut future, mut context) = (pin!(future), Context::from_waker(Waker::noop()));
    loop {
        if let Poll::Ready(done) = future.as_mut().poll(&mut context) {
            return done;
        }
    }
}

/// Sleeps that block the thread that polls them. A store's calls block, on threads with or without a runtime.
struct ThreadTimer;

impl Timer for ThreadTimer {
    fn now(&self) -> Duration {
        crate::network::TokioTimer.now()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, duration: Duration, _: Wait) -> BoxFuture<'static, ()> {
        Box::pin(Sleep { end: Instant::now() + duration })
    }
}

/// Blocks for a slice of it with each poll, so that whatever else is waited for is looked at in between.
struct Sleep {
    end: Instant,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Poll::Ready(());
        }
        thread::sleep(left.min(SLICE));
        context.waker().wake_by_ref();
        Poll::Pending
    }
}
