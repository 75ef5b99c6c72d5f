//! Counters and bytes in use, read without asking the thread.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use llm_local_core::{CancellationToken, Counters, MemoryReport};

/// What thread and handle both see.
#[derive(Debug, Default)]
pub(super) struct Shared {
    weights: AtomicU64,
    /// Of sets of adapters that are in use.
    adapters: AtomicU64,
    kv_cache: AtomicU64,
    forward_steps: AtomicU64,
    forward_tokens: AtomicU64,
    /// Cancelled when the model is to be unloaded, so that what takes long is given up.
    pub(super) unloading: CancellationToken,
    /// Cancelled when everything is dropped.
    pub(super) ended: CancellationToken,
}

impl Shared {
    /// Counts a forward step that begins with so many tokens.
    pub(super) fn count_step(&self, tokens: usize) {
        self.forward_steps.fetch_add(1, Relaxed);
        self.forward_tokens.fetch_add(tokens as u64, Relaxed);
    }

    pub(super) fn set_weights(&self, bytes: u64) {
        self.weights.store(bytes, Relaxed);
    }

    pub(super) fn counters(&self) -> Counters {
        Counters::new(self.forward_steps.load(Relaxed), self.forward_tokens.load(Relaxed))
    }

    pub(super) fn memory(&self) -> MemoryReport {
        MemoryReport::new(self.weights.load(Relaxed) + self.adapters.load(Relaxed), self.kv_cache.load(Relaxed))
    }
}

/// The bytes of one KV cache in the sum of all. Dropping it takes them out.
#[derive(Debug)]
pub(super) struct KvBytes {
    shared: Arc<Shared>,
    bytes: u64,
}

impl KvBytes {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, bytes: 0 }
    }

    pub(super) fn get(&self) -> u64 {
        self.bytes
    }

    pub(super) fn set(&mut self, bytes: u64) {
        // Added before subtracted: the sum must not pass below zero.
        self.shared.kv_cache.fetch_add(bytes, Relaxed);
        self.shared.kv_cache.fetch_sub(self.bytes, Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for KvBytes {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// The bytes of one set of adapters in the sum of all. Dropping it takes them out.
#[derive(Debug)]
pub(super) struct AdapterBytes {
    shared: Arc<Shared>,
    bytes: u64,
}

impl AdapterBytes {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, bytes: 0 }
    }

    pub(super) fn set(&mut self, bytes: u64) {
        self.shared.adapters.fetch_add(bytes, Relaxed);
        self.shared.adapters.fetch_sub(self.bytes, Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for AdapterBytes {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Says that the worker has ended, however it ends.
#[derive(Debug)]
pub(super) struct EndOfWorker(pub(super) Arc<Shared>);

impl Drop for EndOfWorker {
    fn drop(&mut self) {
        self.0.set_weights(0);
        self.0.ended.cancel();
    }
}
