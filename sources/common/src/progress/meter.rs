//! What workers count bytes into.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use llm_local_core::{ArtifactRef, ProgressHandler, Result};

use super::{
    delivery::{Delivery, Note},
    tally::Tally,
};
use crate::network::Timer;

/// How far a plan is, told to a [`ProgressHandler`] as
/// [`ProgressEvent::Download`](llm_local_core::ProgressEvent::Download),
/// [`File`](llm_local_core::ProgressEvent::File) and [`Waiting`](llm_local_core::ProgressEvent::Waiting).
///
/// In order: [`Meter::file`] for each file, with what is present of it counted; [`Meter::begin`], whose event tells of
/// that; bytes; [`Meter::finish`], whose event is the one 1.0, or [`Meter::stop`]. Events of one kind come at most every
/// 100 ms, the first, the last and the last of each file apart. What is told never decreases: after a restart it stays
/// until that is passed again.
///
/// The handler is called on a thread of its own, one event at a time. A slow one loses events in between and holds up
/// nothing but [`Meter::finish`] and [`Meter::stop`]; one that panics is called no more. Dropping a meter ends its
/// events without waiting for a call that has begun.
pub struct Meter(Arc<Inner>);

/// Where one file's bytes are counted. Cheap to clone; its calls never wait for a handler.
#[derive(Clone)]
pub struct FileMeter {
    inner: Arc<Inner>,
    index: usize,
}

struct Inner {
    timer: Arc<dyn Timer>,
    tally: Mutex<Tally>,
    delivery: Option<Delivery>,
}

impl Meter {
    /// A plan of `total` bytes, of which nothing is present. Without a handler it counts for nobody and has no thread.
    ///
    /// # Errors
    /// [`Error::DownloadFailed`](llm_local_core::Error::DownloadFailed) if no thread can be started.
    pub fn new(timer: Arc<dyn Timer>, handler: Option<Arc<dyn ProgressHandler>>, total: u64) -> Result<Self> {
        let delivery = handler.map(Delivery::start).transpose()?;
        Ok(Self(Arc::new(Inner { timer, tally: Mutex::new(Tally::new(total)), delivery })))
    }

    /// Takes in a file. What is counted of it before [`Meter::begin`] is what is present.
    pub fn file(&self, reference: ArtifactRef, path: impl Into<String>, size: u64) -> FileMeter {
        let index = self.0.tally().file(reference, path.into(), size);
        FileMeter { inner: self.0.clone(), index }
    }

    /// Tells of what is present, and from now on of what comes. Only the first call does anything.
    pub fn begin(&self) {
        self.0.tell(Tally::begin);
    }

    /// Tells that everything is verified and in place, and ends once the handler has heard it. Nothing comes after it;
    /// after [`Meter::stop`] it tells nothing.
    pub async fn finish(&self) {
        if let Some(delivery) = &self.0.delivery {
            {
                let mut tally = self.0.tally();
                let last = tally.finish(self.0.timer.now());
                delivery.close(last);
            }
            delivery.ended().await;
        } else {
            self.0.tally().stop();
        }
    }

    /// Ends the events, after an error or a cancel: once this has ended, the handler is called no more. It has heard what
    /// was present at the start, if that was known.
    pub async fn stop(&self) {
        self.0.tally().stop();
        if let Some(delivery) = &self.0.delivery {
            delivery.stop();
            delivery.ended().await;
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        // After `finish` there is nothing left to cut. Workers may still hold parts of this meter.
        self.0.cut();
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter").finish_non_exhaustive()
    }
}

impl FileMeter {
    /// `n` more bytes are here.
    pub fn add(&self, n: u64) {
        self.inner.tell(|tally, now| tally.add(self.index, n, now));
    }

    /// `n` bytes are here: what a resume has, or what a restart leaves. They do not count for the speed.
    pub fn reset_to(&self, n: u64) {
        self.inner.tell(|tally, now| tally.reset_to(self.index, n, now));
    }

    /// The file is verified and in place. Its later calls do nothing.
    pub fn done(&self) {
        self.inner.tell(|tally, now| tally.done(self.index, now));
    }

    /// Somebody else fetches the file, and is waited for.
    pub fn waiting(&self, reason: impl Into<String>) {
        let reason = reason.into();
        self.inner.tell(|tally, _| tally.waiting(self.index, reason));
    }
}

impl fmt::Debug for FileMeter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileMeter").field("index", &self.index).finish_non_exhaustive()
    }
}

impl Inner {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, change: impl FnOnce(&mut Tally, Duration) -> Vec<Note>) {
        let Some(delivery) = &self.delivery else { return };
        let mut tally = self.tally();
        // Read and post under the lock, so that the inbox gets events in the order in which they were counted.
        let notes = change(&mut tally, self.timer.now());
        delivery.post(notes);
    }

    fn cut(&self) {
        self.tally().stop();
        if let Some(delivery) = &self.delivery {
            delivery.cut();
        }
    }
}
