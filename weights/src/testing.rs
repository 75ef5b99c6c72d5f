//! What the tests share: fixtures, files made for one test, and a count of what a thread allocates.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    path::PathBuf,
};

use llm_local_core::TensorData;

/// A file of `tests/fixtures`.
pub(crate) fn fixture(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures")).join(path)
}

/// A safetensors file: a header, and `data` bytes that count up.
pub(crate) fn safetensors_bytes(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..data).map(|i| i as u8));
    bytes
}

/// The bytes of a tensor's data, whatever form they came in.
pub(crate) fn bytes_of(data: &TensorData<'_>) -> Vec<u8> {
    match data {
        TensorData::Borrowed(b) => b.to_vec(),
        TensorData::F32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        TensorData::Half(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        other => panic!("unexpected {other:?}"),
    }
}

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

/// The most bytes that this thread held at once during `run`, beyond what it held before.
pub(crate) fn peak_bytes<T>(run: impl FnOnce() -> T) -> (usize, T) {
    let before = HELD.get();
    PEAK.set(before);
    let result = run();
    (PEAK.get() - before, result)
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is passed to the system's allocator unchanged; the counters are plain thread-local cells that
// allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.set(HELD.get() + layout.size());
        PEAK.set(PEAK.get().max(HELD.get()));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // Memory may come from another thread.
        HELD.set(HELD.get().saturating_sub(layout.size()));
        // SAFETY: the caller keeps the contract of `dealloc`, and the memory is from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}
