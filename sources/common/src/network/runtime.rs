//! The threads that requests run on, whatever executor the caller has.

use llm_local_core::{Error, Result};
use tokio::runtime::{Builder, Handle, Runtime};

/// A runtime that may be dropped anywhere: dropping a [`Runtime`] within a task panics, since that waits for its threads.
pub(super) struct Threads(Option<Runtime>);

impl Threads {
    /// Two threads for sockets and timers; blocking work gets threads of its own when it comes.
    pub(super) fn start() -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("llm-local-network")
            .enable_all()
            .build()
            .map_err(|e| Error::io("start the threads of", "the network", e))?;
        Ok(Self(Some(runtime)))
    }

    pub(super) fn handle(&self) -> &Handle {
        // Only `drop` takes it.
        self.0.as_ref().map(Runtime::handle).unwrap_or_else(|| unreachable!("the runtime is there until it is dropped"))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
