//! Work in parts, some threads at a time.

use std::sync::{Mutex, OnceLock, PoisonError};

use candle_core::{Result, utils::barrier_pool};
use rayon::prelude::*;

/// Computes parts 0 to a count, each once, some threads at a time.
pub(super) type Run<'a> = dyn Fn(usize, &(dyn Fn(usize) -> Result<()> + Sync)) -> Result<()> + 'a;

/// On the threads that candle multiplies single rows with blocks on. A part must not use those itself, because they wait
/// for it here.
pub(super) fn beside_blocks(count: usize, part: &(dyn Fn(usize) -> Result<()> + Sync)) -> Result<()> {
    let failed = OnceLock::new();
    barrier_pool().execute_chunked(count, |range| {
        for i in range {
            if let Err(error) = part(i) {
                let _ = failed.set(error);
            }
        }
    });
    failed.into_inner().map_or(Ok(()), Err)
}

pub(super) fn on_rayon(count: usize, part: &(dyn Fn(usize) -> Result<()> + Sync)) -> Result<()> {
    (0..count).into_par_iter().map(part).collect()
}

/// Gives each stretch of `at_once` elements of `y` to `part`, with its number. A single one is computed here.
pub(super) fn in_parts<T: Send>(
    y: &mut [T],
    at_once: usize,
    run: &Run<'_>,
    part: impl Fn(usize, &mut [T]) -> Result<()> + Sync,
) -> Result<()> {
    if y.len() <= at_once {
        return part(0, y);
    }
    let parts: Vec<_> = y.chunks_mut(at_once).map(Mutex::new).collect();
    run(parts.len(), &|i| part(i, &mut parts[i].lock().unwrap_or_else(PoisonError::into_inner)))
}
