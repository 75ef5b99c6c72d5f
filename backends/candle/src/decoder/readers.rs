//! The threads that read a model's layers.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use llm_local_core::Result;

use crate::heap;

/// What `first` and all of the `count` calls of `part` give, in order, on at most `threads` threads, this one included.
///
/// This thread begins with `first`, which should be the largest; then each takes the next part that nobody has. A thread
/// holds what it works on and nothing else, which a pool that shares out nested work does not promise.
///
/// # Errors
/// The first in order, `first` before all parts, however the threads ran. No part is begun after one has failed.
///
/// # Panics
/// As the closures do, in the same order as errors.
pub(super) fn read<A, T: Send>(
    threads: usize,
    first: impl FnOnce() -> Result<A>,
    count: usize,
    part: impl Fn(usize) -> Result<T> + Sync,
) -> Result<(A, Vec<T>)> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    // Parts are taken in order and never dropped once taken, so those before a failed one all come to their end.
    let work = || {
        let mut done = Vec::new();
        while !failed.load(Ordering::Relaxed) {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= count {
                break;
            }
            done.push((i, noting(&failed, || part(i))));
        }
        done
    };
    let (first, mut parts) = thread::scope(|scope| {
        let read = || {
            let done = work();
            heap::trim_end_of_thread();
            done
        };
        let reader = || thread::Builder::new().name("llm-reader".into()).spawn_scoped(scope, read);
        // Where the system gives no more threads, those that are there do it all.
        let others: Vec<_> = (1..threads.min(count + 1)).map_while(|_| reader().ok()).collect();
        let first = noting(&failed, first);
        let mut parts = work();
        for other in others {
            parts.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        (first, parts)
    });
    let first = first.unwrap_or_else(|panic| resume_unwind(panic))?;
    parts.sort_unstable_by_key(|(i, _)| *i);
    let parts = parts.into_iter().map(|(_, part)| part.unwrap_or_else(|panic| resume_unwind(panic)));
    Ok((first, parts.collect::<Result<_>>()?))
}

/// What `work` gives, or its panic; `failed` is set if it is no success.
fn noting<T>(failed: &AtomicBool, work: impl FnOnce() -> Result<T>) -> thread::Result<Result<T>> {
    let result = catch_unwind(AssertUnwindSafe(work));
    if !matches!(result, Ok(Ok(_))) {
        failed.store(true, Ordering::Relaxed);
    }
    result
}

#[cfg(test)]
mod tests;
