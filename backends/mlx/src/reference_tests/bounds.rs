//! What is checked before a step, and what is held against what was estimated.

use super::*;
use crate::estimate;

/// Dense, and quantized.
fn models() -> [Decoder; 2] {
    [tiny(ComputeDtype::F32), load(&checkpoint("tiny-llama-mlx-4bit", None), ComputeDtype::Auto)]
}

#[test]
fn a_step_beyond_the_context_the_vocabulary_or_the_sequence_is_an_error() {
    on_thread(|| {
        for mut model in models() {
            let mut cache = model.new_cache(0).unwrap();
            assert_eq!(model.forward(&mut cache, &[1; 513], 0, None).unwrap_err().code(), "context_length_exceeded");
            let error = model.forward(&mut cache, &[896], 0, None).unwrap_err().to_string();
            assert!(error.contains("token 896"), "{error}");
            assert!(model.forward(&mut cache, &[], 0, None).is_err());
            let error = model.forward(&mut cache, &[1], 7, None).unwrap_err().to_string();
            assert!(error.contains("position 7") && error.contains("0 tokens"), "{error}");
            assert_eq!(model.forward(&mut cache, &[895; 512], 0, None).map(|l| l.len()).unwrap(), 896);
            assert_eq!(model.forward(&mut cache, &[1], 512, None).unwrap_err().code(), "context_length_exceeded");
        }
    });
}

#[test]
fn generations_do_not_share_a_cache() {
    on_thread(|| {
        for mut model in models() {
            let (a, b) = ([393, 388, 262, 391], [1, 332, 202, 509]);
            let mut cache = model.new_cache(0).unwrap();
            prefill(&mut model, &mut cache, &a, 0, 4, None);
            let alone = model.forward(&mut cache, &[380], 4, None).unwrap();
            let (mut first, mut second) = (model.new_cache(0).unwrap(), model.new_cache(0).unwrap());
            prefill(&mut model, &mut first, &a, 0, 4, None);
            prefill(&mut model, &mut second, &b, 0, 4, None);
            assert_eq!(model.forward(&mut first, &[380], 4, None).unwrap(), alone);
        }
    });
}

/// 300 tokens, so that the cache grows and several chunks are needed.
#[test]
fn long_prompts_in_chunks_give_what_one_step_gives() {
    on_thread(|| {
        let prompts = Reference::open("tiny-llama").rows;
        let prompt: Vec<u32> =
            prompts.iter().flat_map(|r| r.prompt.iter().chain(&r.greedy)).copied().cycle().take(300).collect();
        for mut model in models() {
            let mut cache = model.new_cache(0).unwrap();
            let whole = prefill(&mut model, &mut cache, &prompt, 0, usize::MAX, None);
            for size in [1, 64, 256] {
                let mut cache = model.new_cache(0).unwrap();
                let error = difference(&prefill(&mut model, &mut cache, &prompt, 0, size, None), &whole);
                assert!(error <= 2e-5, "chunks of {size}: {error}");
            }
        }
    });
}

#[test]
fn the_weights_held_are_those_that_were_estimated() {
    on_thread(|| {
        for (checkpoint, dtype) in [
            (checkpoint("tiny-llama", None), ComputeDtype::F32),
            (checkpoint("tiny-llama", None), ComputeDtype::F16),
            (checkpoint("arch-qwen2", None), ComputeDtype::Bf16),
            (checkpoint("arch-gemma2", None), ComputeDtype::Auto),
            (checkpoint("tiny-llama-mlx-4bit", None), ComputeDtype::Auto),
            (checkpoint("tiny-llama-mlx-8bit", None), ComputeDtype::Bf16),
        ] {
            let s = supported(&checkpoint.info, &options(128, dtype));
            let estimated = estimate::estimate(&s, &checkpoint.info, 128).weights;
            assert_eq!(estimated, load(&checkpoint, dtype).weight_bytes(), "{}, {dtype:?}", checkpoint.info.id);
        }
        let f16 = load(&checkpoint("tiny-llama", None), ComputeDtype::F16);
        assert_eq!(f16.weight_bytes(), 902_272 * 2);
    });
}

#[test]
fn a_cache_that_fills_the_context_takes_what_was_estimated_and_a_window_bounds_it() {
    on_thread(|| {
        for (model, rows) in [("arch-llama3rope", 3 * 256), ("arch-mistral", 3 * 16), ("arch-gemma2", 2 * 16 + 256)] {
            let checkpoint = checkpoint(model, None);
            let mut decoder = load(&checkpoint, ComputeDtype::F32);
            let mut cache = decoder.new_cache(0).unwrap();
            assert_eq!(decoder.cache_bytes(&cache, 0), 0);
            for position in 0..256 {
                decoder.forward(&mut cache, &[(position % 300) as u32], position, None).unwrap();
            }
            let row = 2 * 2 * checkpoint.info.decoder.as_ref().unwrap().head_dim as u64 * 4;
            assert_eq!(decoder.cache_bytes(&cache, 256), rows * row, "{model}");
            let s = supported(&checkpoint.info, &options(256, ComputeDtype::F32));
            let estimated = estimate::estimate(&s, &checkpoint.info, 256).kv_cache;
            // A prompt's chunks may be longer than a window.
            assert!(estimated >= rows * row && estimated <= 3 * 256 * row, "{model}: {estimated}");
        }
    });
}
