use mlx_rs::{Array, Dtype, ops::dequantize, transforms::eval};

use super::*;
use crate::decoder::numbers::{int, ints, length};

const HEAD_DIM: usize = 64;

fn dimensions(kv: KvForm) -> Dimensions {
    Dimensions {
        kv_heads: 2,
        head_dim: HEAD_DIM,
        context_length: 4096,
        activations: Dtype::Float32,
        kv,
        kernels: false,
    }
}

/// Rows of `count` positions from `position` on, shape (1, 2, count, 64): each tells its position, head and element.
fn rows(position: usize, count: usize) -> Array {
    let row = |head: usize, i: usize| {
        (0..HEAD_DIM).map(move |d| (position + i) as f32 + head as f32 / 2.0 + d as f32 / 1024.0)
    };
    let values: Vec<f32> = (0..2).flat_map(|head| (0..count).flat_map(move |i| row(head, i))).collect();
    Array::from_slice(&values, &ints([1, 2, count, HEAD_DIM]))
}

fn append(cache: &mut LayerCache, position: usize, count: usize, of: &Dimensions) {
    let keys = rows(position, count);
    cache.append(&keys, &keys.negative().unwrap(), 0, of).unwrap();
    eval(cache.arrays()).unwrap();
}

/// The positions of the rows that a query at `position` sees, after what else is in them was compared.
fn seen(cache: &LayerCache, position: usize) -> Vec<usize> {
    let [keys, values] = cache.seen(position).unwrap();
    let count = length(&keys[0], 2);
    let of_head_0 = keys[0].contiguous().unwrap().as_slice::<f32>().to_vec();
    let positions: Vec<usize> = of_head_0.chunks(HEAD_DIM).take(count).map(|row| row[0] as usize).collect();
    let expected = rows(positions[0], count);
    assert!(keys[0].eq_values(&expected).unwrap());
    assert!(values[0].negative().unwrap().eq_values(&expected).unwrap());
    positions
}

fn address(cache: &LayerCache) -> *const f32 {
    cache.arrays().next().unwrap().as_slice::<f32>().as_ptr()
}

#[test]
fn rows_are_written_to_their_place_and_a_step_of_growth_moves_them() {
    let of = dimensions(KvForm::Activations);
    let mut cache = LayerCache::new(None);
    append(&mut cache, 0, 3, &of);
    let (place, bytes) = (address(&cache), cache.bytes());
    assert_eq!(bytes, 2 * 256 * 2 * HEAD_DIM as u64 * 4);
    for position in 3..256 {
        append(&mut cache, position, 1, &of);
        assert_eq!(address(&cache), place, "row {position} was written to a copy");
    }
    assert_eq!(cache.bytes(), bytes);
    append(&mut cache, 256, 1, &of);
    assert_eq!(cache.bytes(), 2 * bytes);
    assert_eq!(seen(&cache, 256), (0..257).collect::<Vec<_>>());
}

#[test]
fn room_is_made_for_the_length_that_is_expected_as_far_as_there_is_context() {
    let of = dimensions(KvForm::Activations);
    let capacity = |expected| {
        let mut cache = LayerCache::new(None);
        cache.append(&rows(0, 3), &rows(0, 3), expected, &of).unwrap();
        length(cache.arrays().next().unwrap(), 2)
    };
    assert_eq!([0, 257, 4090, 9000].map(capacity), [256, 512, 4096, 4096]);
}

#[test]
fn a_window_holds_what_is_seen_and_no_more_than_twice_that() {
    let of = dimensions(KvForm::Activations);
    let mut cache = LayerCache::new(Some(5));
    append(&mut cache, 0, 7, &of);
    for position in 7..60 {
        append(&mut cache, position, 1, &of);
        assert_eq!(seen(&cache, position), (position - 4..=position).collect::<Vec<_>>());
        assert!(length(cache.arrays().next().unwrap(), 2) <= 12, "at {position}");
    }
    assert!(cache.reaches(59) && !cache.reaches(40));
}

#[test]
fn rows_that_are_cut_are_written_anew() {
    let of = dimensions(KvForm::Activations);
    let mut cache = LayerCache::new(None);
    append(&mut cache, 0, 9, &of);
    assert!(cache.reaches(4));
    cache.truncate(4);
    append(&mut cache, 4, 2, &of);
    assert_eq!(seen(&cache, 5), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn a_clone_keeps_its_rows_when_the_other_goes_on() {
    let of = dimensions(KvForm::Activations);
    let mut cache = LayerCache::new(None);
    append(&mut cache, 0, 4, &of);
    let kept = cache.clone();
    cache.truncate(2);
    let other = rows(900, 2);
    cache.append(&other, &other, 0, &of).unwrap();
    eval(cache.arrays()).unwrap();
    assert_eq!(seen(&kept, 3), [0, 1, 2, 3]);
}

#[test]
fn what_is_saved_is_restored() {
    let of = dimensions(KvForm::Activations);
    let mut cache = LayerCache::new(None);
    append(&mut cache, 0, 6, &of);
    let (first, saved) = cache.saved().unwrap();
    let saved = saved.unwrap();
    assert_eq!((first, saved.0.shape()), (0, &[2, 6, 64][..]));
    let mut restored = LayerCache::from_rows(None, first, Some(saved)).unwrap();
    append(&mut restored, 6, 1, &of);
    assert_eq!(seen(&restored, 6), (0..7).collect::<Vec<_>>());
}

#[test]
fn quantized_rows_are_those_that_were_appended_as_far_as_their_bits_go() {
    // A group of 64 spans 63/1024, in steps of that over 255 or 15; half a step, and the rounding of the largest.
    for (bits, tolerance) in [(8, 63.0 / 1024.0 / 255.0), (4, 63.0 / 1024.0 / 15.0)] {
        let of = dimensions(KvForm::Affine { bits, group_size: 64 });
        let mut cache = LayerCache::new(None);
        append(&mut cache, 0, 3, &of);
        append(&mut cache, 3, 1, &of);
        let [keys, _] = cache.seen(3).unwrap();
        let [integers, scales, biases] = &keys[..] else { panic!("{} arrays", keys.len()) };
        assert_eq!(integers.shape(), &[1, 2, 4, int(HEAD_DIM) * bits / 32]);
        let floats = dequantize(integers, scales, biases, 64, bits).unwrap();
        let difference = floats.subtract(rows(0, 4)).unwrap().abs().unwrap().max(None).unwrap().item_exact::<f32>();
        assert!(difference <= tolerance, "{bits} bits: {difference} of {tolerance}");
        let per_position = 2 * 2 * of.kv.head_bytes(HEAD_DIM, 4) as u64;
        assert_eq!(cache.bytes(), 256 * per_position);
    }
}

#[test]
fn the_form_is_what_was_asked_for_or_an_error_that_says_what_can_be() {
    use llm_local_core::{FloatType, KvCacheType as T};
    assert_eq!(kv_supported(48, T::Auto), Ok(KvForm::Activations));
    assert_eq!(kv_supported(48, T::Bf16), Ok(KvForm::Float(FloatType::Bf16)));
    assert_eq!(kv_supported(128, T::Q4), Ok(KvForm::Affine { bits: 4, group_size: 64 }));
    assert_eq!(kv_supported(96, T::Q8), Ok(KvForm::Affine { bits: 8, group_size: 32 }));
    let error = kv_supported(48, T::Q8).unwrap_err();
    assert!(error.contains("kv_cache is q8") && error.contains("48") && error.contains("f16"), "{error}");
}
