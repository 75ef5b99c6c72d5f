//! Progress for consumers that poll.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use futures_core::Stream;
use futures_util::task::AtomicWaker;
use llm_local_core::{DownloadProgress, ProgressEvent, ProgressHandler, Result};

/// A download as a stream of its progress. The work happens while it is polled; dropping it drops the work.
///
/// The first value is what is present, none is lower than one before, and a slow consumer gets the latest. The last
/// item is 1.0, once the work has succeeded, or the error that ended it; then comes `None`.
#[must_use = "a stream does nothing unless it is polled"]
pub struct DownloadStream {
    /// `None` once it has ended.
    work: Option<Pin<Box<dyn Future<Output = Result<()>> + Send>>>,
    slot: Arc<Slot>,
    /// How the work ended, until that is told.
    outcome: Option<Result<()>>,
    /// Bytes of the plan, as told last.
    total: u64,
}

/// Makes a stream of the work that `start` makes, which must tell its progress to the handler it is given.
pub fn download_stream<F>(start: impl FnOnce(Arc<dyn ProgressHandler>) -> F) -> DownloadStream
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let slot = Arc::new(Slot::default());
    let work = Box::pin(start(slot.clone()));
    DownloadStream { work: Some(work), slot, outcome: None, total: 0 }
}

/// What was told and not yet taken.
#[derive(Default)]
struct Slot {
    values: Mutex<Values>,
    waker: AtomicWaker,
}

#[derive(Default)]
struct Values {
    started: bool,
    /// What is present, which no later value may take the place of.
    first: Option<DownloadProgress>,
    latest: Option<DownloadProgress>,
    /// 1.0, which waits for the work to say that it has succeeded.
    last: Option<DownloadProgress>,
}

impl Slot {
    fn values(&self) -> MutexGuard<'_, Values> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ProgressHandler for Slot {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(progress) = event else { return };
        let mut values = self.values();
        let place = if progress.fraction >= 1.0 {
            &mut values.last
        } else if values.started {
            &mut values.latest
        } else {
            &mut values.first
        };
        *place = Some(progress.clone());
        values.started = true;
        drop(values);
        self.waker.wake();
    }
}

impl Stream for DownloadStream {
    type Item = Result<DownloadProgress>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // Before the slot is looked at: a value that comes from now on wakes this task.
        self.slot.waker.register(cx.waker());
        if let Some(work) = &mut self.work
            && let Poll::Ready(outcome) = work.as_mut().poll(cx)
        {
            (self.work, self.outcome) = (None, Some(outcome));
        }
        let mut values = self.slot.values();
        let next = values.first.take().or_else(|| values.latest.take());
        let last = if next.is_none() && self.outcome.is_some() { values.last.take() } else { None };
        drop(values);
        if let Some(progress) = next {
            self.total = progress.total_bytes;
            return Poll::Ready(Some(Ok(progress)));
        }
        if self.work.is_some() {
            return Poll::Pending;
        }
        Poll::Ready(
            self.outcome
                .take()
                .map(|outcome| outcome.map(|()| last.unwrap_or_else(|| DownloadProgress::finished(self.total)))),
        )
    }
}

impl fmt::Debug for DownloadStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DownloadStream").field("ended", &self.work.is_none()).finish_non_exhaustive()
    }
}
