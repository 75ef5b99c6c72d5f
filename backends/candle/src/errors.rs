//! candle's errors as those of the contract.

use std::sync::Arc;

use llm_local_core::Error;

use crate::device;

/// [`Error::LoadFailed`] with candle's error as its cause; [`Error::OutOfMemory`] for an allocator that said no.
pub(crate) fn load_error(what: &str, context: &str, error: candle_core::Error) -> Error {
    let error = without_backtrace(error);
    let reason = format!("{context}: {error}");
    match out_of_memory(&error) {
        Some(device) => Error::out_of_memory(device, format!("{what}: {reason}")),
        None => Error::LoadFailed { model: what.to_owned(), reason, source: Some(Arc::new(error)) },
    }
}

/// [`Error::GenerationFailed`] with candle's error as its cause; [`Error::OutOfMemory`] for an allocator that said no.
pub(crate) fn generation_error(context: &str, error: candle_core::Error) -> Error {
    let error = without_backtrace(error);
    let reason = format!("{context}: {error}");
    match out_of_memory(&error) {
        Some(device) => Error::out_of_memory(device, reason),
        None => Error::GenerationFailed { reason, source: Some(Arc::new(error)) },
    }
}

/// [`Error::AdapterMergeFailed`] with candle's error as its cause, or [`Error::OutOfMemory`] for an allocator that said no.
pub(crate) fn adapter_error(adapters: &str, context: &str, error: candle_core::Error) -> Error {
    let error = without_backtrace(error);
    let reason = format!("{context}: {error}");
    match out_of_memory(&error) {
        Some(device) => Error::out_of_memory(device, reason).into_adapter(adapters),
        None => {
            Error::AdapterMergeFailed { adapter: adapters.to_owned(), reason, source: Some(Arc::new(error)) } //
        }
    }
}

/// candle puts a backtrace into the message itself, where one was captured.
fn without_backtrace(error: candle_core::Error) -> candle_core::Error {
    use candle_core::Error as E;
    match error {
        E::WithBacktrace { inner, .. } => without_backtrace(*inner),
        E::Context { inner, context } => E::Context { inner: Box::new(without_backtrace(*inner)), context },
        E::WithPath { inner, path } => E::WithPath { inner: Box::new(without_backtrace(*inner)), path },
        error => error,
    }
}

/// What an allocator that said no is told by in candle 0.11: the codes of CUDA's driver, of cuBLAS and of cuRAND, whose names
/// cudarc's errors print.
const CUDA: [&str; 3] = ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED", "CURAND_STATUS_ALLOCATION_FAILED"];

/// The same of Metal: a buffer that was not made (`MetalKernelError::FailedToCreateResource`), and a command buffer whose
/// memory could not be made resident (`MTLCommandBufferErrorOutOfMemory`, in the system's words).
const METAL: [&str; 2] = ["Failed to create metal resource: Buffer", "kIOGPUCommandBufferCallbackErrorOutOfMemory"];

/// The id of the device whose allocator said no, if that is what happened: of its kind the one of the thread's model. The types
/// of their errors are there only with their features, so candle's variant and the text decide. A text without a variant
/// ([`candle_core::Error::Msg`]) may be about anything.
fn out_of_memory(error: &candle_core::Error) -> Option<String> {
    use candle_core::Error as E;
    let cuda = |text: &str| says(text, &CUDA).then(|| device::here(device::CUDA));
    let metal = |text: &str| says(text, &METAL).then(|| device::here(device::METAL));
    match error {
        E::Cuda(cause) => cuda(&cause.to_string()),
        E::Metal(cause) => metal(&cause.to_string()),
        // Of either, with its type hidden.
        E::Wrapped(cause) => cuda(&cause.to_string()).or_else(|| metal(&cause.to_string())),
        E::WrappedContext { wrapped, .. } => cuda(&wrapped.to_string()).or_else(|| metal(&wrapped.to_string())),
        E::Context { inner, .. } | E::WithPath { inner, .. } | E::WithBacktrace { inner, .. } => out_of_memory(inner),
        _ => None,
    }
}

fn says(text: &str, codes: &[&str]) -> bool {
    codes.iter().any(|code| text.contains(code))
}

#[cfg(test)]
mod tests {
    use candle_core::{Error as E, MetalError};

    use super::*;

    /// As cudarc's `DriverError` prints itself.
    const DRIVER: &str = r#"DriverError(CUDA_ERROR_OUT_OF_MEMORY, "out of memory")"#;

    const BUFFER: &str = "Failed to create metal resource: Buffer";
    const COMMAND: &str = "Command buffer had following error: Insufficient Memory \
                           (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)";

    fn with_backtrace(inner: E) -> E {
        let backtrace = Box::new(std::backtrace::Backtrace::force_capture());
        E::WithBacktrace { inner: Box::new(inner), backtrace }
    }

    fn metal(text: &str) -> E {
        E::Metal(MetalError::Message(text.into()))
    }

    #[test]
    fn messages_have_no_backtrace() {
        let error = with_backtrace(E::Msg("no kernel".into()));
        assert_eq!(load_error("m", "it broke", error).to_string(), "loading `m` failed: it broke: no kernel");
    }

    #[test]
    fn an_allocator_that_says_no_is_out_of_memory_whatever_was_being_done() {
        type Case = (fn() -> E, &'static str);
        let cases: Vec<Case> = vec![
            (|| E::Cuda(DRIVER.into()), "cuda"),
            (|| E::Cuda(format!("{DRIVER} when loading ternary").into()), "cuda"),
            (|| E::Cuda("CublasError(CUBLAS_STATUS_ALLOC_FAILED)".into()), "cuda"),
            (|| with_backtrace(E::Cuda(DRIVER.into())), "cuda"),
            (|| with_backtrace(E::Cuda(DRIVER.into())).context("in the head").with_path("a.gguf"), "cuda"),
            (|| E::Wrapped(Box::new(DRIVER)), "cuda"),
            (|| E::WrappedContext { wrapped: DRIVER.into(), context: "matmul".into() }, "cuda"),
            (|| metal(BUFFER), "metal"),
            (|| metal(COMMAND), "metal"),
            (|| E::Wrapped(Box::new(BUFFER)), "metal"),
        ];
        for (case, id) in cases {
            let text = without_backtrace(case()).to_string();
            for (error, what) in
                [(load_error("blk.0", "no", case()), "blk.0"), (generation_error("step 7", case()), "step 7")]
            {
                let Error::OutOfMemory { device, reason } = error else { panic!("{text}: {error:?}") };
                assert_eq!(device, id, "{text}");
                assert!(reason.contains(what) && !reason.contains("backtrace"), "{reason}");
            }
            let error = adapter_error("a/lora", "no", case());
            assert!(error.code() == "adapter_merge_failed" && error.is_out_of_memory(), "{text}: {error}");
        }
    }

    #[test]
    fn all_else_stays_what_it_is() {
        let cases: Vec<fn() -> E> = vec![
            || E::Cuda(r#"DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered")"#.into()),
            || E::Cuda("CublasError(CUBLAS_STATUS_NOT_INITIALIZED)".into()),
            || metal("Failed to create metal resource: CommandQueue"),
            || metal("Could not lock resource: poisoned"),
            // Texts that anybody may have written, a tensor's name in them.
            || E::Msg("no tensor CUDA_ERROR_OUT_OF_MEMORY".into()),
            || E::CannotFindTensor { path: DRIVER.into() },
        ];
        for case in cases {
            assert_eq!(load_error("m", "it broke", case()).code(), "load_failed");
            assert_eq!(generation_error("it broke", case()).code(), "generation_failed");
            let error = adapter_error("a", "it broke", case());
            assert!(error.code() == "adapter_merge_failed" && !error.is_out_of_memory(), "{error}");
        }
    }
}
