//! One thread for all models of a backend.

use std::{
    fmt,
    future::poll_fn,
    pin::pin,
    sync::{Mutex, PoisonError},
    task::Poll,
    thread,
};

use futures_util::{
    StreamExt as _,
    future::{Either, LocalBoxFuture, select},
    stream::FuturesUnordered,
};
use llm_local_core::{Error, Result};
use tokio::sync::{mpsc, oneshot};

use super::caught::{caught_in, discard};

/// A thread that several models share, for libraries whose values belong to the thread that made them.
///
/// It starts with its first use, and ends when this is dropped and nothing is left on it: that of a `static` never does.
/// Everything on it takes turns: a step of one model, then a step of the next, then a tensor of a load. A panic ends what it
/// is in, and nothing else. With nothing to do it sleeps.
///
/// Whatever runs on it must not block on it: the thread would wait for itself.
pub struct SharedThread {
    backend: &'static str,
    /// Until the first use.
    jobs: Mutex<Option<mpsc::UnboundedSender<Job>>>,
}

/// Called on the thread, it gives what takes turns there.
pub(super) type Job = Box<dyn FnOnce() -> LocalBoxFuture<'static, ()> + Send>;

impl SharedThread {
    /// The thread of the backend with this name. It does not start yet.
    pub const fn new(backend: &'static str) -> Self {
        Self { backend, jobs: Mutex::new(None) }
    }

    /// Calls `f` on the thread, behind one turn at most of all that is there already. Dropped before that, it does not call it.
    ///
    /// # Errors
    /// [`Error::BackendUnavailable`] if `f` panics or the thread cannot start.
    pub async fn call<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        self.run(async move || f()).await
    }

    /// Runs `f` on the thread, which others use at each [`yield_now`]. Dropped before the end, it drops the future of `f`, on the
    /// thread, where that stands then.
    ///
    /// # Errors
    /// As [`SharedThread::call`].
    pub async fn run<T: Send + 'static>(&self, f: impl AsyncFnOnce() -> T + Send + 'static) -> Result<T> {
        let (mut reply, answer) = oneshot::channel();
        self.submit(async move || {
            if let Some(outcome) = caught_in(unless(reply.closed(), async move { f().await })).await.transpose() {
                // Whoever has given up meanwhile does not want it.
                let _ = reply.send(outcome);
            }
        })?;
        let outcome = answer.await.map_err(|_| self.unavailable("its thread gave no answer"))?;
        outcome.map_err(|panic| self.unavailable(format!("it panicked: {panic}")))
    }

    /// Has `job` take turns on the thread. A panic in it is logged, and ends it.
    pub(super) fn submit(&self, job: impl AsyncFnOnce() + Send + 'static) -> Result<()> {
        let job = async move || {
            if let Err(panic) = caught_in(async move { job().await }).await {
                tracing::error!(panic, "what ran on a shared thread panicked");
            }
        };
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = match &mut *jobs {
            Some(sender) => sender,
            none => none.insert(self.start()?),
        };
        sender.send(Box::new(move || Box::pin(job()))).map_err(|_| self.unavailable("its thread has ended"))
    }

    fn start(&self) -> Result<mpsc::UnboundedSender<Job>> {
        let (sender, jobs) = mpsc::unbounded_channel();
        thread::Builder::new()
            .name(format!("llm-{}", self.backend))
            .spawn(move || pollster::block_on(host(jobs)))
            .map_err(|e| self.unavailable(format!("its thread cannot start: {e}")))?;
        Ok(sender)
    }

    fn unavailable(&self, reason: impl Into<String>) -> Error {
        Error::backend_unavailable(self.backend, reason)
    }
}

impl fmt::Debug for SharedThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedThread").field("backend", &self.backend).finish_non_exhaustive()
    }
}

/// Runs what `jobs` gives until nothing is left and nothing can come. Those that are woken have their turns in the order in which
/// they were woken, so who goes on has its next one behind all others.
pub(super) async fn host(mut jobs: mpsc::UnboundedReceiver<Job>) {
    let mut running = FuturesUnordered::new();
    let mut open = true;
    poll_fn(|cx| {
        while open && let Poll::Ready(job) = jobs.poll_recv(cx) {
            match job {
                Some(job) => running.push(job()),
                None => open = false,
            }
        }
        // Pending every few turns too, so that jobs are looked at.
        while let Poll::Ready(Some(())) = running.poll_next_unpin(cx) {}
        if open || !running.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
}

/// Gives all others on the thread a turn.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// What `work` gives, or nothing if `given_up` is ready before one of its turns: then it is dropped where it stands.
pub(super) async fn unless<T>(given_up: impl Future<Output = ()>, work: impl Future<Output = T>) -> Option<T> {
    match select(pin!(given_up), Box::pin(work)).await {
        Either::Left(((), work)) => {
            discard("work that was given up", work);
            None
        }
        Either::Right((outcome, _)) => Some(outcome),
    }
}
