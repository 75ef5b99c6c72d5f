//! What MLX's allocator has, and what it may have. All of it is the process's: models share one allocator.

use std::any::Any;

use llm_local_core::{Error, Result};
use mlx_rs::{Array, error::Exception, memory};

use crate::{NAME, device, errors::said};

/// What MLX's allocator has in this process, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MlxMemory {
    /// In use: weights, KV caches, and what is being computed.
    pub active: u64,
    /// Freed, and kept for what is computed next. It is the process's memory like what is in use.
    pub cache: u64,
    /// The most that was in use at one time.
    pub peak: u64,
}

/// What the cache may have on phones, where the system ends an application that takes much: what buffers of a few tokens take.
const ON_PHONES: u64 = 20 << 20;

/// What the cache may have on the processor. A step makes and frees buffers of the same sizes again and again; without a cache
/// each goes back to the system, and is zeroed when it comes again. Those of most chunks of a prompt fit in it.
const ON_PROCESSORS: u64 = 128 << 20;

/// The part of the recommended working set that the cache may have on Apple's desktops, and the most: behind a chunk of a
/// prompt an 8B model leaves some hundred megabytes, and what is kept beyond that is found by no step.
const PART_ON_DESKTOPS: u64 = 16;
const MOST_ON_DESKTOPS: u64 = 1 << 30;

/// What the cache may have where nobody said it, in bytes, with a recommended working set if there is one.
fn default_cache_limit(is_phone: bool, recommended: Option<u64>) -> u64 {
    match recommended {
        _ if is_phone => ON_PHONES,
        Some(bytes) => (bytes / PART_ON_DESKTOPS).clamp(ON_PHONES, MOST_ON_DESKTOPS),
        None => ON_PROCESSORS,
    }
}

/// Bounds the cache to `limit` bytes, or to what suits the device.
///
/// # Errors
/// [`Error::BackendUnavailable`] with what MLX said.
pub(crate) fn limit_cache(limit: Option<u64>) -> Result<()> {
    let is_phone = cfg!(all(target_vendor = "apple", not(target_os = "macos")));
    let limit = limit.unwrap_or_else(|| default_cache_limit(is_phone, device::recommended().ok()));
    memory::set_cache_limit(clamped(limit)).map(drop).map_err(|e| failed("bound its cache", &e))
}

/// Tells the allocator how much models may take in all: beyond it, it gives back what it keeps, and computes one step after
/// another instead of ahead. On Apple's GPUs as much of that as the system allows stays in memory whatever else runs.
///
/// # Errors
/// [`Error::BackendUnavailable`] with what MLX said.
pub(crate) fn set_budget(bytes: u64) -> Result<()> {
    memory::set_memory_limit(clamped(bytes)).map_err(|e| failed("bound its memory", &e))?;
    if let Ok(most) = device::recommended() {
        memory::set_wired_limit(clamped(bytes.min(most))).map_err(|e| failed("bound its wired memory", &e))?;
    }
    tracing::debug!(bytes, "MLX's memory was bounded");
    Ok(())
}

/// What the allocator has now.
///
/// # Errors
/// [`Error::BackendUnavailable`] with what MLX said.
pub(crate) fn now() -> Result<MlxMemory> {
    let read = || -> mlx_rs::error::Result<MlxMemory> {
        Ok(MlxMemory {
            active: memory::active_memory()? as u64,
            cache: memory::cache_memory()? as u64,
            peak: memory::peak_memory()? as u64,
        })
    };
    read().map_err(|e| failed("say what memory it has", &e))
}

/// Gives back what the allocator keeps. Returns the bytes. `when` is for the log.
///
/// # Errors
/// [`Error::BackendUnavailable`] with what MLX said.
pub(crate) fn clear(when: &'static str) -> Result<u64> {
    let before = now()?;
    memory::clear_cache().map_err(|e| failed("give back its cache", &e))?;
    let after = now()?;
    let MlxMemory { active, cache, peak } = after;
    tracing::debug!(when, active, cache, peak, freed = before.cache.saturating_sub(cache), "MLX's cache was cleared");
    Ok(before.cache.saturating_sub(after.cache))
}

/// Clears the cache when it is dropped, on MLX's thread: behind a model, before its reservation ends.
pub(crate) struct ClearOnDrop {
    _reservation: Option<Box<dyn Any + Send + Sync>>,
}

impl ClearOnDrop {
    pub(crate) fn new(reservation: Option<Box<dyn Any + Send + Sync>>) -> Self {
        Self { _reservation: reservation }
    }
}

impl Drop for ClearOnDrop {
    fn drop(&mut self) {
        let cleared = settle().map_err(|e| failed("end what it computes", &e)).and_then(|()| clear("unloaded"));
        if let Err(error) = cleared {
            tracing::warn!(%error, "memory of a model may not be back");
        }
    }
}

/// Waits until all that was begun is done, so that nothing holds arrays any more: what comes last on a stream ends last.
fn settle() -> mlx_rs::error::Result<()> {
    Array::from_f32(0.0).add(Array::from_f32(0.0))?.eval()
}

fn clamped(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn failed(what: &str, error: &Exception) -> Error {
    Error::backend_unavailable(NAME, format!("it cannot {what}: {}", said(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_small_on_phones_and_grows_with_what_a_desktop_has() {
        let gb = |n: u64| n << 30;
        assert_eq!(default_cache_limit(true, Some(gb(5))), 20 << 20);
        assert_eq!(default_cache_limit(true, None), 20 << 20);
        for (recommended, limit) in [(gb(5), gb(5) / 16), (gb(12), gb(12) / 16), (gb(96), gb(1)), (1 << 20, 20 << 20)] {
            assert_eq!(default_cache_limit(false, Some(recommended)), limit);
        }
        assert_eq!(default_cache_limit(false, None), 128 << 20);
    }
}
