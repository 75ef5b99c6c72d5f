//! A load on a thread of its own, or on one that models share.

use std::{
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use llm_local_core::{Error, LoadOptions, LoadedModel, Result};
use tokio::sync::{mpsc, oneshot};

use super::{
    Built, SharedThread, StepModel,
    clock::{self, Clock},
    command::Inbox,
    handle::Handle,
    load::{Loaded, Worker},
    shared::Shared,
    shared_thread::unless,
};

/// Starts a worker thread, builds the model on it, and returns its handle.
///
/// Dropping the future cancels `options.cancel`, so `build` gives up when it next looks at that token, and the thread
/// drops what there is and ends. A backend whose caller may use the token for more than this load passes options with
/// a child of it, here and to its `build`.
///
/// # Errors
/// What `build` returns; [`Error::LoadFailed`] if it panics or the thread cannot start; [`Error::Cancelled`] if
/// `options.cancel` was cancelled by the time it returns, even if it did not look.
pub async fn spawn<M: StepModel>(
    options: &LoadOptions,
    build: impl FnOnce() -> Result<Built<M>> + Send + 'static,
) -> Result<Arc<dyn LoadedModel>> {
    spawn_with_clock(options, clock::monotonic(), build).await
}

/// As [`spawn`], on a thread that models share: `build` and the model take turns there with all others. A `build` that awaits
/// [`yield_now`](super::yield_now) behind each tensor keeps nobody waiting for longer than for a step.
///
/// Before `build` goes on from where it awaited something, `options.cancel` is looked at; where that is cancelled, what `build`
/// has is dropped, on the thread. All that the worker drops is dropped there, [`Built::reservation`] behind everything else:
/// by the time that `unload` returns, that is gone too.
///
/// # Errors
/// As [`spawn`]; [`Error::BackendUnavailable`] if the thread cannot start.
pub async fn spawn_on<M: StepModel>(
    thread: &SharedThread,
    options: &LoadOptions,
    build: impl AsyncFnOnce() -> Result<Built<M>> + Send + 'static,
) -> Result<Arc<dyn LoadedModel>> {
    spawn_on_with_clock(thread, options, clock::monotonic(), build).await
}

/// [`spawn`], with the time from `clock`.
pub(super) async fn spawn_with_clock<M: StepModel>(
    options: &LoadOptions,
    clock: Clock,
    build: impl FnOnce() -> Result<Built<M>> + Send + 'static,
) -> Result<Arc<dyn LoadedModel>> {
    load(options, clock, move |worker| {
        thread::Builder::new()
            // Linux shows 15 characters.
            .name("llm-worker".into())
            .spawn(move || pollster::block_on(worker.run(async move { build() })))
            .map(Some)
            .map_err(|e| Error::load("the model", format!("its worker thread cannot start: {e}")))
    })
    .await
}

/// [`spawn_on`], with the time from `clock`.
pub(super) async fn spawn_on_with_clock<M: StepModel>(
    thread: &SharedThread,
    options: &LoadOptions,
    clock: Clock,
    build: impl AsyncFnOnce() -> Result<Built<M>> + Send + 'static,
) -> Result<Arc<dyn LoadedModel>> {
    let cancel = options.cancel.clone();
    load(options, clock, move |worker| {
        thread.submit(async move || {
            let built = unless(cancel.cancelled(), async move { build().await });
            worker.run(async move { built.await.unwrap_or(Err(Error::Cancelled)) }).await;
        })?;
        Ok(None)
    })
    .await
}

/// Has `start` run a worker, and gives the handle of its model. `start` returns the thread, if it is the worker's own.
async fn load(
    options: &LoadOptions,
    clock: Clock,
    start: impl FnOnce(Worker) -> Result<Option<JoinHandle<()>>>,
) -> Result<Arc<dyn LoadedModel>> {
    let (commands, receiver) = mpsc::unbounded_channel();
    let (ready, loaded) = oneshot::channel();
    let shared = Arc::new(Shared::default());
    let thread = start(Worker {
        inbox: Inbox::new(receiver),
        ready,
        cancel: options.cancel.clone(),
        shared: shared.clone(),
        clock: clock.clone(),
    })?;
    let abandoned = options.cancel.clone().drop_guard();
    let loaded = loaded.await;
    abandoned.disarm();
    let Loaded { info, keeps_sessions, runs_adapters, replaces_tensors } =
        loaded.unwrap_or_else(|_| Err(Error::load("the model", "its worker thread ended during the load")))?;
    Ok(Arc::new(Handle {
        info,
        keeps_sessions,
        runs_adapters,
        replaces_tensors,
        commands,
        shared,
        clock,
        thread: Mutex::new(thread),
    }))
}
