//! The thread, and the load on it.

use std::{
    sync::{Arc, Mutex},
    thread,
};

use llm_local_core::{CancellationToken, Error, LoadOptions, LoadedInfo, LoadedModel, Result};
use tokio::sync::{mpsc, oneshot};

use super::{
    Built, StepModel,
    adapters::Sets,
    caught::{caught, discard},
    clock::{self, Clock},
    command::Inbox,
    handle::Handle,
    run_loop::{RunLoop, Served},
    shared::{EndOfThread, Shared},
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

/// [`spawn`], with the time from `clock`.
pub(super) async fn spawn_with_clock<M: StepModel>(
    options: &LoadOptions,
    clock: Clock,
    build: impl FnOnce() -> Result<Built<M>> + Send + 'static,
) -> Result<Arc<dyn LoadedModel>> {
    let (commands, receiver) = mpsc::unbounded_channel();
    let (ready, loaded) = oneshot::channel();
    let shared = Arc::new(Shared::default());
    let worker = Worker {
        inbox: Inbox::new(receiver),
        ready,
        cancel: options.cancel.clone(),
        shared: shared.clone(),
        clock: clock.clone(),
    };
    let thread = thread::Builder::new()
        // Linux shows 15 characters.
        .name("llm-worker".into())
        .spawn(move || worker.run(build))
        .map_err(|e| Error::load("the model", format!("its worker thread cannot start: {e}")))?;
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
        thread: Mutex::new(Some(thread)),
    }))
}

/// What the handle knows of the model.
struct Loaded {
    info: LoadedInfo,
    keeps_sessions: bool,
    runs_adapters: bool,
    replaces_tensors: bool,
}

/// What moves to the thread.
struct Worker {
    inbox: Inbox,
    ready: oneshot::Sender<Result<Loaded>>,
    cancel: CancellationToken,
    shared: Arc<Shared>,
    clock: Clock,
}

impl Worker {
    /// All that the thread does.
    fn run<M: StepModel>(self, build: impl FnOnce() -> Result<Built<M>>) {
        let Self { inbox, ready, cancel, shared, clock } = self;
        // Dropped last, after the loop and all it owned.
        let _end = EndOfThread(shared.clone());
        let started = clock();
        let (built, sets) = match self::build(build, &cancel, &shared) {
            Ok(built) => built,
            Err(error) => {
                tracing::debug!(%error, "load failed");
                // Where nobody waits for the load any more, nobody needs its error.
                let _ = ready.send(Err(error));
                return;
            }
        };
        let Built { model, info, text, prefill_chunk, adapters, reservation } = built;
        // A model keeps of them what it computes with.
        drop(adapters);
        // Dropped after the loop, which has the model.
        let _reservation = reservation;
        let info = info.with_chat_template(text.has_chat_template()).with_load_time(clock().saturating_sub(started));
        shared.set_weights(model.weight_bytes());
        tracing::debug!(model = info.model, load_time = ?info.load_time, "loaded");
        let loaded = Loaded {
            info: info.clone(),
            keeps_sessions: model.keeps_sessions(),
            runs_adapters: model.runs_adapters(),
            replaces_tensors: model.replaces_tensors(),
        };
        let run_loop = RunLoop::new(inbox, Served { model, sets, text, info, prefill_chunk }, shared, clock);
        // Where the load was given up in this moment, no handle is there and the loop ends at once.
        let _ = ready.send(Ok(loaded));
        pollster::block_on(run_loop.run());
    }
}

/// Builds the model, and makes its own set of adapters ready. A panic is a failed load, and a load cancelled meanwhile is
/// dropped.
fn build<M: StepModel>(
    build: impl FnOnce() -> Result<Built<M>>,
    cancel: &CancellationToken,
    shared: &Arc<Shared>,
) -> Result<(Built<M>, Sets<M::Adapters>)> {
    let mut built = caught(build)
        .unwrap_or_else(|panic| Err(Error::load("the model", format!("the backend panicked: {panic}"))))?;
    let sets = if cancel.is_cancelled() {
        Err(Error::Cancelled)
    } else {
        Sets::new(&built.adapters, &mut built.model, shared)
    };
    match sets {
        Ok(sets) if !cancel.is_cancelled() => Ok((built, sets)),
        sets => {
            let error = sets.map(|sets| discard("adapters that are not wanted any more", sets)).err();
            let Built { model, text, reservation, .. } = built;
            discard("a model that is not wanted any more", model);
            drop((text, reservation));
            Err(error.unwrap_or(Error::Cancelled))
        }
    }
}
