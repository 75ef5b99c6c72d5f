//! candle's errors as those of the contract.

use std::sync::Arc;

use llm_local_core::Error;

/// [`Error::LoadFailed`] with candle's error as its cause.
pub(crate) fn load_error(what: &str, context: &str, error: candle_core::Error) -> Error {
    let error = without_backtrace(error);
    Error::LoadFailed { model: what.to_owned(), reason: format!("{context}: {error}"), source: Some(Arc::new(error)) }
}

/// [`Error::GenerationFailed`] with candle's error as its cause.
pub(crate) fn generation_error(context: &str, error: candle_core::Error) -> Error {
    let error = without_backtrace(error);
    Error::GenerationFailed { reason: format!("{context}: {error}"), source: Some(Arc::new(error)) }
}

/// [`Error::AdapterMergeFailed`] with candle's error as its cause.
pub(crate) fn adapter_error(adapters: &str, context: &str, error: candle_core::Error) -> Error {
    let error = without_backtrace(error);
    let reason = format!("{context}: {error}");
    Error::AdapterMergeFailed { adapter: adapters.to_owned(), reason, source: Some(Arc::new(error)) }
}

/// candle puts a backtrace into the message itself, where one was captured.
fn without_backtrace(error: candle_core::Error) -> candle_core::Error {
    match error {
        candle_core::Error::WithBacktrace { inner, .. } => without_backtrace(*inner),
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_no_backtrace() {
        let inner = Box::new(candle_core::Error::Msg("no kernel".into()));
        let backtrace = Box::new(std::backtrace::Backtrace::force_capture());
        let error = candle_core::Error::WithBacktrace { inner, backtrace };
        assert_eq!(load_error("m", "it broke", error).to_string(), "loading `m` failed: it broke: no kernel");
    }
}
