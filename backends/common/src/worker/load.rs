//! A worker, from the load to its end.

use std::sync::Arc;

use llm_local_core::{CancellationToken, Error, LoadedInfo, Result};
use tokio::sync::oneshot;

use super::{
    Built, StepModel,
    adapters::Sets,
    caught::{caught_in, discard},
    clock::Clock,
    command::Inbox,
    run_loop::{RunLoop, Served},
    shared::{EndOfWorker, Shared},
};

/// What the handle knows of the model.
pub(super) struct Loaded {
    pub(super) info: LoadedInfo,
    pub(super) keeps_sessions: bool,
    pub(super) runs_adapters: bool,
    pub(super) replaces_tensors: bool,
}

/// What moves to the thread.
pub(super) struct Worker {
    pub(super) inbox: Inbox,
    pub(super) ready: oneshot::Sender<Result<Loaded>>,
    pub(super) cancel: CancellationToken,
    pub(super) shared: Arc<Shared>,
    pub(super) clock: Clock,
}

impl Worker {
    /// All that is done on the thread for one model.
    pub(super) async fn run<M: StepModel>(self, build: impl Future<Output = Result<Built<M>>>) {
        let Self { inbox, ready, cancel, shared, clock } = self;
        // Dropped last, after the loop and all it owned.
        let _end = EndOfWorker(shared.clone());
        let started = clock();
        let (built, sets) = match self::build(build, &cancel, &shared).await {
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
        run_loop.run().await;
        discard("the reservation of a model", reservation);
    }
}

/// Builds the model, and makes its own set of adapters ready. A panic is a failed load, and a load cancelled meanwhile is
/// dropped.
async fn build<M: StepModel>(
    build: impl Future<Output = Result<Built<M>>>,
    cancel: &CancellationToken,
    shared: &Arc<Shared>,
) -> Result<(Built<M>, Sets<M::Adapters>)> {
    let mut built = caught_in(build)
        .await
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
