//! The one thread that owns arrays and streams.

use llm_local_backend_common::worker::SharedThread;

use crate::NAME;

/// All that computes with MLX in this process runs here: a stream belongs to the thread that made it, an array that is not
/// computed yet to its stream, and each thread that computes leaves one of MLX's behind. It starts with the first use, and its
/// stream is on MLX's default device: the GPU where MLX has one, and else the processor.
///
/// What MLX's allocator says of itself may be asked anywhere.
pub(crate) static MLX: SharedThread = SharedThread::new(NAME);
