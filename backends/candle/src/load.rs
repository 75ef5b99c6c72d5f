//! From weights to a model on its worker's thread.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use llm_local_backend_common::{
    text::TextPipeline,
    worker::{self, Built, StepModel},
};
use llm_local_core::{
    AdapterSet, CancellationToken, DeviceKind, Error, LoadOptions, LoadedInfo, LoadedModel, ModelWeights,
    ProgressEvent, ProgressHandler, Result, TensorSource, TextFiles,
};

use crate::{
    backend::NAME,
    decoder::{Decoder, reading_threads},
    heap::{self, TrimOnDrop},
    support::Supported,
};

/// Tokens of a prompt computed in one step, which is what a cancelled generation has to wait for.
pub(crate) fn prefill_chunk(device: DeviceKind) -> usize {
    match device {
        DeviceKind::Cpu => 256,
        _ => 512,
    }
}

/// Loads the model on a worker's thread.
pub(crate) async fn load(s: Supported, w: ModelWeights, o: LoadOptions) -> Result<Arc<dyn LoadedModel>> {
    let (id, count) = (s.id.clone(), s.decoder.base_tensors(s.layout).len());
    spawn(id, count, w, o, move |source, context, loading| {
        let (device, vocab) = (s.device_info.clone(), s.decoder.vocab_size);
        Ok(Loaded {
            model: Decoder::load(&s, source, context, loading)?,
            info: LoadedInfo::new(&s.id, NAME, device, s.dtype, context, vocab)
                .with_held_in(s.held_in())
                .with_reads_at_once(reading_threads(&s.device)),
            prefill_chunk: prefill_chunk(s.device_info.kind),
        })
    })
    .await
}

/// What [`spawn`]'s closure makes of the weights.
pub(crate) struct Loaded<M> {
    pub(crate) model: M,
    pub(crate) info: LoadedInfo,
    /// Tokens of a prompt computed in one step.
    pub(crate) prefill_chunk: usize,
}

/// Loads the model `id` of `tensors` tensors on a worker's thread, from its weights, for a context of so many tokens.
pub(crate) async fn spawn<M: StepModel>(
    id: String,
    tensors: usize,
    w: ModelWeights,
    o: LoadOptions,
    load: impl FnOnce(&dyn TensorSource, usize, Loading) -> Result<Loaded<M>> + Send + 'static,
) -> Result<Arc<dyn LoadedModel>> {
    // The worker cancels this token when the load is given up; the caller's own may be for more than this load.
    let child = o.cancel.child_token();
    let o = o.with_cancel(child);
    let (options, name) = (o.clone(), id.clone());
    let loaded = worker::spawn(&options, move || {
        // Dropped last, also behind a load that fails or is given up.
        let trim = TrimOnDrop::new(w.reservation);
        let source = w.tensors.ok_or_else(|| Error::load(&id, "it came without its tensors, which candle needs"))?;
        let (text, loaded) = open_beside(&id, &w.text, &o, |o| {
            load(&*source, o.context_length, Loading::new(o, tensors)) //
        })?;
        let Loaded { model, info, prefill_chunk } = loaded;
        // What was read and is not needed any more, before what it leaves in the heap is given back.
        drop((source, w.info, w.text));
        let adapters =
            w.adapters.into_iter().fold(AdapterSet::new(), |set, (adapter, weight)| set.with(adapter, weight));
        heap::trim_thread();
        Ok(Built { model, info, text, prefill_chunk, adapters, reservation: Some(Box::new(trim)) })
    })
    .await;
    loaded.map_err(|error| of_model(&name, error))
}

/// Opens the text side of the model `id` while `load` reads its weights, which stops where that fails: it is the quicker
/// of the two, and its error the one that is told.
fn open_beside<T>(
    id: &str,
    text: &TextFiles,
    o: &LoadOptions,
    load: impl FnOnce(&LoadOptions) -> Result<T>,
) -> Result<(TextPipeline, T)> {
    let cancel = o.cancel.child_token();
    let stoppable = o.clone().with_cancel(cancel.clone());
    let open = || {
        let opened = catch_unwind(AssertUnwindSafe(|| TextPipeline::open(id, text)));
        if !matches!(opened, Ok(Ok(_))) {
            cancel.cancel();
        }
        heap::trim_end_of_thread();
        opened
    };
    let (opened, loaded) = thread::scope(|scope| {
        let opening = thread::Builder::new().name("llm-tokenizer".into()).spawn_scoped(scope, open);
        let loaded = load(&stoppable);
        // Where the system gives no more threads, one after the other.
        let opened = opening.map_or_else(|_| open(), |opening| opening.join().flatten());
        (opened, loaded)
    });
    Ok((opened.unwrap_or_else(|panic| resume_unwind(panic))?, loaded?))
}

/// Names the model in a failure that names less: a tensor, a file, or from the worker only "the model".
fn of_model(id: &str, error: Error) -> Error {
    match error {
        Error::LoadFailed { model, reason, source } if model != id => {
            Error::LoadFailed { model: id.to_owned(), reason: format!("{model}: {reason}"), source }
        }
        Error::OutOfMemory { device, reason } => Error::out_of_memory(device, format!("loading {id}: {reason}")),
        error => error,
    }
}

/// Progress and cancel of one load, tensor by tensor.
pub(crate) struct Loading {
    cancel: CancellationToken,
    progress: Option<Arc<dyn ProgressHandler>>,
    /// Locked while its count is told, so that counts are heard in order.
    done: Mutex<usize>,
    total: usize,
}

impl Loading {
    pub(crate) fn new(options: &LoadOptions, total: usize) -> Self {
        Self { cancel: options.cancel.clone(), progress: options.progress.clone(), done: Mutex::default(), total }
    }

    /// Of tensors that are replaced later, of which nobody hears; `cancel` gives up.
    pub(crate) fn quiet(cancel: CancellationToken) -> Self {
        Self { cancel, progress: None, done: Mutex::default(), total: 0 }
    }

    /// Called before each tensor.
    pub(crate) fn check(&self) -> Result<()> {
        if self.cancel.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Called after each tensor, by any of the threads that read.
    pub(crate) fn tensor_done(&self) {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        *done += 1;
        if let Some(progress) = &self.progress {
            progress.on_progress(&ProgressEvent::loading(*done, self.total));
        }
    }
}
