//! From weights to a model on its worker's thread.

use std::sync::Arc;

use llm_local_backend_common::{
    text::TextPipeline,
    worker::{self, Built},
};
use llm_local_core::{
    CancellationToken, DeviceKind, Error, LoadOptions, LoadedInfo, LoadedModel, ModelWeights, ProgressEvent,
    ProgressHandler, Result,
};

use crate::{backend::NAME, decoder::Decoder, support::Supported};

/// Tokens of a prompt computed in one step, which is what a cancelled generation has to wait for.
pub(crate) fn prefill_chunk(device: DeviceKind) -> usize {
    match device {
        DeviceKind::Cpu => 256,
        _ => 512,
    }
}

/// Loads the model on a worker's thread.
pub(crate) async fn load(s: Supported, w: ModelWeights, o: LoadOptions) -> Result<Arc<dyn LoadedModel>> {
    // The worker cancels this token when the load is given up; the caller's own may be for more than this load.
    let child = o.cancel.child_token();
    let o = o.with_cancel(child);
    let options = o.clone();
    let id = s.id.clone();
    let loaded = worker::spawn(&options, move || {
        let source = w.tensors.ok_or_else(|| Error::load(&s.id, "it came without its tensors, which candle needs"))?;
        // First, because it is quick to fail.
        let text = TextPipeline::open(&s.id, &w.text)?;
        let loading = Loading::new(&o, s.decoder.base_tensors(s.layout).len());
        let model = Decoder::load(&s, &*source, o.context_length, loading)?;
        let vocab = s.decoder.vocab_size;
        Ok(Built {
            model,
            info: LoadedInfo::new(&s.id, NAME, s.device_info.clone(), s.dtype, o.context_length, vocab),
            text,
            prefill_chunk: prefill_chunk(s.device_info.kind),
            reservation: w.reservation,
        })
    })
    .await;
    loaded.map_err(|error| of_model(&id, error))
}

/// Names the model in a failure that names less: a tensor, a file, or from the worker only "the model".
fn of_model(id: &str, error: Error) -> Error {
    match error {
        Error::LoadFailed { model, reason, source } if model != id => {
            Error::LoadFailed { model: id.to_owned(), reason: format!("{model}: {reason}"), source }
        }
        error => error,
    }
}

/// Progress and cancel of one load, tensor by tensor.
pub(crate) struct Loading {
    cancel: CancellationToken,
    progress: Option<Arc<dyn ProgressHandler>>,
    done: usize,
    total: usize,
}

impl Loading {
    pub(crate) fn new(options: &LoadOptions, total: usize) -> Self {
        Self { cancel: options.cancel.clone(), progress: options.progress.clone(), done: 0, total }
    }

    /// Called before each tensor.
    pub(crate) fn check(&self) -> Result<()> {
        if self.cancel.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Called after each tensor.
    pub(crate) fn tensor_done(&mut self) {
        self.done += 1;
        if let Some(progress) = &self.progress {
            progress.on_progress(&ProgressEvent::loading(self.done, self.total));
        }
    }
}
