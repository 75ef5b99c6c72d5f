//! Panics turned into errors.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
};

use futures_util::FutureExt as _;

/// What `f` returns, or the message of its panic.
///
/// Unwind safety is asserted because whoever catches a panic gives up what the closure was changing: a failed task's
/// KV cache is dropped, and weights do not change after the load.
pub(super) fn caught<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|payload| message(&*payload))
}

/// What `future` gives, or the message of a panic in one of its turns; as [`caught`].
pub(super) async fn caught_in<T>(future: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(future).catch_unwind().await.map_err(|payload| message(&*payload))
}

/// Drops `value`; a panic in that is logged and goes no further.
pub(super) fn discard<T>(what: &'static str, value: T) {
    if let Err(panic) = caught(|| drop(value)) {
        tracing::error!(what, panic, "dropping panicked");
    }
}

fn message(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "without a message".to_owned()
    }
}
