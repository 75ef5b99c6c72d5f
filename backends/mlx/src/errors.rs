//! MLX's errors as those of the contract.

use std::sync::Arc;

use llm_local_core::Error;
use mlx_rs::error::Exception;

use crate::device;

/// [`Error::LoadFailed`] with MLX's error as its cause; [`Error::OutOfMemory`] for an allocator that said no.
pub(crate) fn load_error(what: &str, context: &str, error: Exception) -> Error {
    let reason = format!("{context}: {}", said(&error));
    if is_out_of_memory(&error) {
        return Error::out_of_memory(device::ID, format!("{what}: {reason}"));
    }
    Error::LoadFailed { model: what.to_owned(), reason, source: Some(Arc::new(error)) }
}

/// [`Error::GenerationFailed`] with MLX's error as its cause; [`Error::OutOfMemory`] for an allocator that said no.
pub(crate) fn generation_error(context: &str, error: Exception) -> Error {
    let reason = format!("{context}: {}", said(&error));
    if is_out_of_memory(&error) {
        return Error::out_of_memory(device::ID, reason);
    }
    Error::GenerationFailed { reason, source: Some(Arc::new(error)) }
}

/// [`Error::AdapterMergeFailed`] with MLX's error as its cause, or [`Error::OutOfMemory`] for an allocator that said no.
pub(crate) fn adapter_error(adapters: &str, context: &str, error: Exception) -> Error {
    let reason = format!("{context}: {}", said(&error));
    if is_out_of_memory(&error) {
        return Error::out_of_memory(device::ID, reason).into_adapter(adapters);
    }
    Error::AdapterMergeFailed { adapter: adapters.to_owned(), reason, source: Some(Arc::new(error)) }
}

/// The error of memory for `bytes` bytes that there is not, as MLX says it on Metal.
pub(crate) fn no_memory(bytes: usize) -> Exception {
    Exception::custom(format!("{} {bytes} bytes.", OUT_OF_MEMORY[0]))
}

/// What MLX said, without the place in its sources that its C interface adds: ` at <file>:<line>`.
pub(crate) fn said(error: &Exception) -> &str {
    let what = error.what();
    let is_place = |place: &str| {
        let Some((file, line)) = place.rsplit_once(':') else { return false };
        file.ends_with(".cpp") && !line.is_empty() && line.bytes().all(|b| b.is_ascii_digit())
    };
    match what.rsplit_once(" at ") {
        Some((said, place)) if is_place(place) => said,
        _ => what,
    }
}

/// What an allocator that said no is told by in MLX 0.32: a buffer that Metal did not make, one larger than Metal makes any,
/// more buffers than it makes, a command buffer whose memory could not be made resident (`MTLCommandBufferErrorOutOfMemory`,
/// in the system's words), and C++'s own.
const OUT_OF_MEMORY: [&str; 5] = [
    "[malloc] Unable to allocate",
    "[metal::malloc] Attempting to allocate",
    "[metal::malloc] Resource limit",
    "kIOGPUCommandBufferCallbackErrorOutOfMemory",
    "std::bad_alloc",
];

fn is_out_of_memory(error: &Exception) -> bool {
    OUT_OF_MEMORY.iter().any(|code| error.what().contains(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allocator_that_says_no_is_out_of_memory_whatever_was_being_done() {
        for text in [
            "[malloc] Unable to allocate 4096 bytes. at /src/mlx/c/transforms.cpp:73",
            "[metal::malloc] Attempting to allocate 21474836480 bytes which is greater than the maximum allowed buffer \
             size of 17179869184 bytes.",
            "[metal::malloc] Resource limit (499000) exceeded.",
            "[METAL] Command buffer execution failed: Insufficient Memory \
             (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
            "std::bad_alloc at /src/mlx/c/array.cpp:1",
        ] {
            let error = || Exception::custom(text);
            for (error, what) in
                [(load_error("w", "no", error()), "w"), (generation_error("step 7", error()), "step 7")]
            {
                let Error::OutOfMemory { device, reason } = &error else { panic!("{text}: {error:?}") };
                assert_eq!(device, device::ID);
                assert!(reason.contains(what) && !reason.contains(".cpp"), "{reason}");
            }
            let adapter = adapter_error("a", "no", error());
            assert!(adapter.is_out_of_memory() && adapter.code() == "adapter_merge_failed", "{adapter}");
        }
        assert!(is_out_of_memory(&no_memory(7)));
    }

    #[test]
    fn any_other_error_keeps_its_kind_and_says_no_place_in_sources() {
        let error = || Exception::custom("[matmul] the shapes at the end do not fit at /src/mlx/c/ops.cpp:12");
        let load = load_error("w", "it broke", error());
        assert_eq!(load.to_string(), "loading `w` failed: it broke: [matmul] the shapes at the end do not fit");
        let generation = generation_error("step 7", error());
        assert_eq!((generation.code(), generation.is_out_of_memory()), ("generation_failed", false));
        let adapter = adapter_error("a", "no", error());
        assert_eq!((adapter.code(), adapter.is_out_of_memory()), ("adapter_merge_failed", false));
        assert_eq!(said(&Exception::custom("look at a.txt:9")), "look at a.txt:9");
    }
}
