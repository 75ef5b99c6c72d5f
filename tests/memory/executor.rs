//! Futures that are polled by hand, in an order that a test chooses. One that is pending is polled again only when its waker
//! was woken, so that a wake-up that gets lost leaves it pending for good.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use crate::world::{Journal, lock};

/// How long a thread may take to look for a model's files before the test gives up.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Default)]
struct Woken {
    is_woken: AtomicBool,
    at: (Mutex<()>, Condvar),
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        let _at = lock(&self.at.0);
        self.is_woken.store(true, SeqCst);
        self.at.1.notify_all();
    }
}

/// A future.
pub(crate) struct Task<T> {
    /// The model that it is about, if loads are among what it does.
    pub(crate) model: Option<String>,
    future: Pin<Box<dyn Future<Output = T> + Send>>,
    woken: Arc<Woken>,
    journal: Arc<Journal>,
}

impl<T> Task<T> {
    pub(crate) fn new(
        journal: &Arc<Journal>,
        model: Option<&str>,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Self {
        let woken = Arc::new(Woken { is_woken: AtomicBool::new(true), ..Woken::default() });
        Self { model: model.map(str::to_owned), future: Box::pin(future), woken, journal: journal.clone() }
    }

    /// Whether a poll may get it on.
    pub(crate) fn is_woken(&self) -> bool {
        self.woken.is_woken.load(SeqCst)
    }

    /// Polls it once if it was woken; one whose model's files are being looked for is waited for before.
    pub(crate) fn step(&mut self) -> Option<T> {
        if self.model.as_ref().is_some_and(|model| self.journal.is_preparing(model)) {
            self.wait();
        }
        if !self.woken.is_woken.swap(false, SeqCst) {
            return None;
        }
        self.journal.set_current(self.model.as_deref());
        let polled = self.future.as_mut().poll(&mut Context::from_waker(&Waker::from(self.woken.clone())));
        self.journal.set_current(None);
        match polled {
            Poll::Ready(output) => {
                if let Some(model) = &self.model {
                    self.journal.is_over(model);
                }
                Some(output)
            }
            Poll::Pending => None,
        }
    }

    /// Polls it until it is ready, or waits for something that only the test can do.
    pub(crate) fn run(&mut self) -> Option<T> {
        loop {
            let is_preparing = self.model.as_ref().is_some_and(|model| self.journal.is_preparing(model));
            if !is_preparing && !self.is_woken() {
                return None;
            }
            if let Some(output) = self.step() {
                return Some(output);
            }
        }
    }

    fn wait(&self) {
        let at = lock(&self.woken.at.0);
        let is_asleep = |_: &mut ()| !self.is_woken();
        let (_at, timeout) = self.woken.at.1.wait_timeout_while(at, PATIENCE, is_asleep).unwrap();
        assert!(!timeout.timed_out(), "nobody woke the load of {:?}", self.model);
    }
}

impl<T> Task<T> {
    /// As [`Task::run`], of one that must be ready then.
    pub(crate) fn finish(mut self) -> T {
        self.run().unwrap_or_else(|| panic!("the task of {:?} waits for something", self.model))
    }
}
