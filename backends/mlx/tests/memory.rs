//! What MLX's allocator has while models come and go, and what was estimated of it. The allocator is the process's, so one
//! test at a time looks at it.
#![cfg(mlx)]

mod common;

use std::{
    any::Any,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use common::{checkpoint, dense, load, packed, weights};
use llm_local_core::{
    Error, FloatType, GenerateRequest, GenerationEvent, InferenceBackend, KvCacheType, LoadOptions, Result, SessionId,
    TensorData, TensorEntry, TensorSource, TrimLevel,
};
use llm_local_mlx::{MlxBackend, MlxMemory};
use pollster::block_on;

fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

fn memory() -> MlxMemory {
    MlxBackend::new().memory().unwrap()
}

/// Has MLX made what it makes once.
fn warm() {
    let model = load(dense(), LoadOptions::new(64)).unwrap();
    block_on(model.generate(GenerateRequest::new(vec![1, 2]).with_max_tokens(2)).complete()).unwrap();
    block_on(model.unload()).unwrap();
}

#[test]
fn unloading_while_a_model_generates_gives_all_of_it_back() {
    let _alone = alone();
    warm();
    let before = memory();
    assert_eq!(before.cache, 0);
    for checkpoint in [dense, packed] {
        let model = load(checkpoint(), LoadOptions::new(512)).unwrap();
        let mut running = model.generate(GenerateRequest::new(vec![393; 300]).with_ignore_eos(true));
        assert!(matches!(block_on(running.next()), Some(Ok(GenerationEvent::Token { .. }))));
        assert!(memory().active > before.active + model.memory().total() / 2);
        block_on(model.unload()).unwrap();
        assert_eq!((memory().active, memory().cache), (before.active, 0));
        assert_eq!(block_on(running.complete()).unwrap_err().code(), "model_not_loaded");
    }
}

/// A source that fails at one tensor, and says what MLX had then.
struct Failing {
    inner: Arc<dyn TensorSource>,
    name: &'static str,
    active: Arc<AtomicU64>,
}

impl TensorSource for Failing {
    fn entries(&self) -> &[TensorEntry] {
        self.inner.entries()
    }

    fn read(&self, name: &str, want: Option<FloatType>) -> Result<TensorData<'_>> {
        if name == self.name {
            self.active.store(memory().active, Ordering::Relaxed);
            return Err(Error::load(name, "the disk is gone"));
        }
        self.inner.read(name, want)
    }
}

/// Says what MLX had when it was dropped.
struct Reservation(Arc<Mutex<Option<MlxMemory>>>);

impl Drop for Reservation {
    fn drop(&mut self) {
        *self.0.lock().unwrap() = Some(memory());
    }
}

#[test]
fn the_reservation_ends_when_the_memory_is_back_of_a_load_that_fails_too() {
    let _alone = alone();
    warm();
    let before = memory().active;
    let seen = Arc::new(Mutex::new(None));
    let reserved = || -> Box<dyn Any + Send + Sync> { Box::new(Reservation(seen.clone())) };
    let backend = MlxBackend::new();
    for checkpoint in [dense, packed] {
        let active = Arc::new(AtomicU64::new(0));
        let mut half = checkpoint();
        half.tensors = Arc::new(Failing {
            inner: half.tensors,
            name: "model.layers.3.mlp.down_proj.weight",
            active: active.clone(),
        });
        let loading = backend.load(weights(half).with_reservation(reserved()), LoadOptions::new(64));
        assert!(block_on(loading).is_err());
        assert!(active.load(Ordering::Relaxed) > before + 100_000, "nothing was loaded by then");
        let then = seen.lock().unwrap().take().expect("the reservation is gone");
        assert_eq!((then.active, then.cache), (before, 0));

        let weights = weights(checkpoint()).with_reservation(reserved());
        let model = block_on(backend.load(weights, LoadOptions::new(64))).unwrap();
        assert!(seen.lock().unwrap().is_none());
        block_on(model.unload()).unwrap();
        let then = seen.lock().unwrap().take().expect("the reservation is gone");
        assert_eq!((then.active, then.cache), (before, 0));
    }
}

#[test]
fn the_cache_is_bounded_and_cleared_under_pressure() {
    let _alone = alone();
    let run = |backend: &MlxBackend| {
        let model = block_on(backend.load(weights(dense()), LoadOptions::new(512))).unwrap();
        block_on(
            model.generate(GenerateRequest::new(vec![393; 400]).with_max_tokens(4).with_ignore_eos(true)).complete(),
        )
        .unwrap();
        model
    };
    let model = run(&MlxBackend::new());
    let kept = memory().cache;
    assert!(kept > 1 << 20, "{kept} bytes are kept");
    let freed = block_on(model.trim(TrimLevel::Caches)).unwrap();
    assert!(freed >= kept && memory().cache == 0, "{freed} of {kept} bytes were freed");
    block_on(model.unload()).unwrap();
    let limit = 256 << 10;
    let model = run(&MlxBackend::new().with_cache_limit(limit));
    assert!(memory().cache <= limit, "{} bytes are kept", memory().cache);
    block_on(model.unload()).unwrap();
}

#[test]
fn a_budget_is_told_to_the_allocator() {
    let _alone = alone();
    let backend = MlxBackend::new();
    let device = backend.devices().unwrap().remove(0).id;
    backend.set_memory_budget(&device, 1 << 30).unwrap();
    assert_eq!(mlx_rs::memory::memory_limit().unwrap(), 1 << 30);
    backend.set_memory_budget(&device, u64::MAX).unwrap();
}

/// Estimated and measured bytes of `name`, by part: weights, keys and values, and the most at one time beside both.
fn measured(name: &str, options: LoadOptions) -> [(u64, u64); 3] {
    let backend = MlxBackend::new();
    let estimate = backend.estimate(&checkpoint(name).info, &options).unwrap();
    let before = memory().active;
    let context = options.context_length;
    let model = load(checkpoint(name), options).unwrap();
    let held = memory().active - before;
    let prompt = vec![9; context - 2];
    let request = GenerateRequest::new(prompt).with_ignore_eos(true).with_session(SessionId::new("s"));
    mlx_rs::memory::reset_peak_memory().unwrap();
    block_on(model.generate(request).complete()).unwrap();
    let (kv_cache, peak) = (model.memory().kv_cache, memory().peak - before);
    assert_eq!(model.memory().weights, estimate.weights, "{name}");
    block_on(model.unload()).unwrap();
    [(estimate.weights, held), (estimate.kv_cache, kv_cache), (estimate.working, peak.saturating_sub(held + kv_cache))]
}

#[test]
fn models_take_what_is_estimated() {
    let _alone = alone();
    warm();
    for (name, kv_cache) in [
        ("tiny-llama", KvCacheType::Auto),
        ("tiny-llama", KvCacheType::F16),
        ("tiny-llama", KvCacheType::Q8),
        ("tiny-llama-mlx-4bit", KvCacheType::Auto),
        ("tiny-llama-mlx-4bit", KvCacheType::Q4),
        ("arch-gemma2", KvCacheType::Auto),
        ("arch-gemma3", KvCacheType::Auto),
        ("arch-qwen3", KvCacheType::Auto),
    ] {
        let most = checkpoint(name).info.decoder.as_ref().unwrap().max_positions.min(512);
        for context in [most / 2, most] {
            let parts = measured(name, LoadOptions::new(context).with_kv_cache(kv_cache));
            let [weights, kept, working] = parts;
            assert!(weights.1.abs_diff(weights.0) < 1024, "{name} {kv_cache} {context}: {weights:?}");
            assert_eq!(kept.0, kept.1, "{name} {kv_cache} {context}");
            // Of these tiny models most is of the step. Found: up to 1.13 times what is estimated, and down to 0.58 times where
            // windows leave most keys out.
            let (estimated, most) = (weights.0 + kept.0 + working.0, weights.1 + kept.1 + working.1);
            let fits = most <= estimated * 5 / 4 && estimated <= most * 9 / 5;
            assert!(fits, "{name} {kv_cache} {context}: {most} found, {estimated} estimated; of the step {working:?}");
        }
    }
}
