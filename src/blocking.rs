//! Blocking work off the caller's executor, on any executor.

use llm_local_core::{Error, Result};

/// Runs `work` on a thread of its own and waits for it. Dropping the future lets the thread finish unheard.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name(format!("llm-local {what}"))
        .spawn(move || {
            let _ = sender.send(work());
        })
        .map_err(|e| Error::load(what, format!("the operating system gave no thread: {e}")))?;
    // The sender is dropped without a value only by a panic, whose message the panic hook has printed.
    receiver.await.unwrap_or_else(|_| Err(Error::load(what, "it panicked; this is a bug in llm-local")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error() {
        let error = pollster::block_on(blocking::<()>("test", || panic!("on purpose"))).unwrap_err();
        assert!(error.to_string().contains("panicked"), "{error}");
        assert_eq!(pollster::block_on(blocking("test", || Ok(7))).unwrap(), 7);
    }
}
