//! One thread computes with MLX, however much is generated and loaded, and its memory is back at the end.
#![cfg(all(mlx, target_os = "linux"))]

mod common;

use common::{dense, load};
use llm_local_core::{GenerateRequest, LoadOptions};
use llm_local_mlx::MlxBackend;
use pollster::block_on;

/// The names of the threads of this process.
fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    // One that has just ended has no name any more.
    tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok()).collect()
}

/// Threads that are there for good: those of tokenizers end when they have been read, which the load waits for, but a thread
/// is seen for a moment longer.
fn settled() -> usize {
    loop {
        let all = threads();
        if !all.iter().any(|name| name.starts_with("llm-tokenizer")) {
            return all.len();
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_thousand_generations_and_a_hundred_loads_leave_threads_and_memory_as_they_were() {
    let options = || LoadOptions::new(64);
    let request = || GenerateRequest::new(vec![1, 393, 17]).with_max_tokens(2).with_ignore_eos(true);
    let backend = MlxBackend::new();
    // What is made once in a process: MLX's own threads, and its tables.
    let model = load(dense(), options()).unwrap();
    block_on(model.generate(request()).complete()).unwrap();
    block_on(model.unload()).unwrap();
    drop(model);
    let (before, active) = (settled(), backend.memory().unwrap().active);
    // Those that MLX starts are called as the one that computes with it: Linux gives them its name.
    let of_mlx = || threads().iter().filter(|name| name.trim_end() == "llm-mlx").count();
    let mlx = of_mlx();

    let model = load(dense(), options()).unwrap();
    let held = backend.memory().unwrap().active - active;
    assert!(held >= 902_272 * 4, "{held} bytes are held for {} of weights", 902_272 * 4);
    for _ in 0..1000 {
        let done = block_on(model.generate(request()).complete()).unwrap();
        assert_eq!(done.tokens.len(), 2);
    }
    assert_eq!(settled(), before, "threads behind 1000 generations: {:?}", threads());
    block_on(model.unload()).unwrap();
    drop(model);

    for _ in 0..100 {
        block_on(load(dense(), options()).unwrap().unload()).unwrap();
        assert_eq!(backend.memory().unwrap().cache, 0);
    }
    assert_eq!(settled(), before, "threads behind 100 loads: {:?}", threads());
    assert_eq!(of_mlx(), mlx, "{:?}", threads());
    assert_eq!(backend.memory().unwrap().active, active);
}
