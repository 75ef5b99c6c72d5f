//! Progress and cancel of a load, and whose error it is.

use std::sync::{Arc, Mutex, PoisonError};

use llm_local_core::{CancellationToken, Error, LoadOptions, ProgressEvent, ProgressHandler, Result};

/// Progress and cancel of one load, tensor by tensor.
pub struct Loading {
    cancel: CancellationToken,
    progress: Option<Arc<dyn ProgressHandler>>,
    /// Locked while its count is told, so that counts are heard in order.
    done: Mutex<usize>,
    total: usize,
}

impl Loading {
    /// Of a load of `total` tensors.
    pub fn new(options: &LoadOptions, total: usize) -> Self {
        Self { cancel: options.cancel.clone(), progress: options.progress.clone(), done: Mutex::default(), total }
    }

    /// Of tensors that are replaced later, of which nobody hears; `cancel` gives up.
    pub fn quiet(cancel: CancellationToken) -> Self {
        Self { cancel, progress: None, done: Mutex::default(), total: 0 }
    }

    /// Called before each tensor.
    ///
    /// # Errors
    /// [`Error::Cancelled`] once the load is cancelled.
    pub fn check(&self) -> Result<()> {
        if self.cancel.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Called after each tensor, by any of the threads that read.
    pub fn tensor_done(&self) {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        *done += 1;
        if let Some(progress) = &self.progress {
            progress.on_progress(&ProgressEvent::loading(*done, self.total));
        }
    }
}

/// Names the model in a failure that names less: a tensor, a file, or from the worker only "the model".
pub fn of_model(id: &str, error: Error) -> Error {
    match error {
        Error::LoadFailed { model, reason, source } if model != id => {
            Error::LoadFailed { model: id.to_owned(), reason: format!("{model}: {reason}"), source }
        }
        Error::OutOfMemory { device, reason } => Error::out_of_memory(device, format!("loading {id}: {reason}")),
        error => error,
    }
}
