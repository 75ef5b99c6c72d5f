use mlx_rs::{Dtype, ops::quantize};

use super::*;
use crate::decoder::{linear::Matrix, mask::mask};

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;

fn numbers(shape: [usize; 4], seed: f32) -> Array {
    let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|i| (i as f32 * 0.7 + seed).sin()).collect();
    Array::from_slice(&values, &ints(shape))
}

fn dimensions(kv: KvForm) -> Dimensions {
    Dimensions {
        kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        context_length: 64,
        activations: Dtype::Float32,
        kv,
        kernels: false,
    }
}

fn attention(soft_cap: Option<f64>) -> Attention {
    let none = || Linear::new(Matrix::Dense(Array::from_f32(0.0)), None);
    Attention {
        projections: Projections::Fused(none()),
        output: none(),
        qk_norm: None,
        heads: HEADS,
        scale: 0.3,
        soft_cap,
    }
}

/// Attention by its formula in f64, in the order of `q`'s elements. A query sees `window` keys, itself included.
fn expected(q: &Array, keys: &Array, values: &Array, window: usize, cap: Option<f64>) -> Vec<f64> {
    let (rows, seen) = (length(q, 2), length(keys, 2));
    let floats = |x: &Array| -> Vec<f64> { x.as_slice::<f32>().iter().map(|x| f64::from(*x)).collect() };
    let (q, keys, values) = (floats(q), floats(keys), floats(values));
    let mut all = Vec::new();
    for (i, q) in q.chunks(HEAD_DIM).enumerate() {
        let (head, row) = (i / rows / (HEADS / KV_HEADS), i % rows);
        let last = seen - rows + row;
        let visible = (last + 1).saturating_sub(window)..=last;
        let of = |x: &[f64], j: usize| x[(head * seen + j) * HEAD_DIM..][..HEAD_DIM].to_vec();
        let score = |j| {
            let s = 0.3 * of(&keys, j).iter().zip(q).map(|(k, q)| k * q).sum::<f64>();
            cap.map_or(s, |cap| cap * (s / cap).tanh()).exp()
        };
        let sum: f64 = visible.clone().map(score).sum();
        for d in 0..HEAD_DIM {
            all.push(visible.clone().map(|j| score(j) / sum * of(&values, j)[d]).sum());
        }
    }
    all
}

fn worst(found: &Array, expected: &[f64]) -> f64 {
    let found = found.contiguous().unwrap();
    found.eval().unwrap();
    let found = found.as_slice::<f32>();
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(f, e)| (f64::from(*f) - e).abs()).fold(0.0, f64::max)
}

#[test]
fn both_ways_are_the_formula() {
    let of = dimensions(KvForm::Activations);
    for (rows, seen, window) in [(1, 9, None), (3, 9, None), (3, 9, Some(5))] {
        let q = numbers([1, HEADS, rows, HEAD_DIM], 0.0);
        let (keys, values) = (numbers([1, KV_HEADS, seen, HEAD_DIM], 1.0), numbers([1, KV_HEADS, seen, HEAD_DIM], 2.0));
        let mask_of = |named| mask(seen - rows, rows, None, named, Dtype::Float32).unwrap();
        for cap in [None, Some(2.0)] {
            // All keys are given, as to a layer without a window, and the mask hides what a window would.
            let hidden = window.map_or_else(
                || mask_of(false),
                |window: usize| {
                    let visible = |row: usize, j: usize| j <= seen - rows + row && j + window > seen - rows + row;
                    let values: Vec<f32> = (0..rows * seen)
                        .map(|i| if visible(i / seen, i % seen) { 0.0 } else { f32::NEG_INFINITY })
                        .collect();
                    Some(Mask::Added(Array::from_slice(&values, &ints([rows, seen]))))
                },
            );
            let attention = attention(cap);
            let expected = expected(&q, &keys, &values, window.unwrap_or(usize::MAX), cap);
            let kept = (vec![keys.clone()], vec![values.clone()]);
            let y = attention.by_products(&q, &kept.0, &kept.1, hidden.as_ref(), &of).unwrap();
            assert!(worst(&y, &expected) < 2e-6, "by products: {rows} rows, {window:?}, {cap:?}");
            if cap.is_none() {
                let masks = [hidden, mask_of(true).filter(|_| window.is_none())];
                for mask in masks.iter().filter(|mask| rows == 1 || mask.is_some()) {
                    let y = attention.by_kernel(&q, &keys, &values, mask.as_ref()).unwrap();
                    assert!(worst(&y, &expected) < 2e-6, "by kernel: {rows} rows, {mask:?}");
                }
            }
        }
    }
}

#[test]
fn quantized_keys_and_values_are_off_by_what_their_bits_lose() {
    // Values span 2 in steps of 2/255 or 2/15; what scores lose comes on top. Measured: 5.7e-3 and 0.121.
    for (bits, tolerance) in [(8, 8e-3), (4, 0.15)] {
        let of = dimensions(KvForm::Affine { bits, group_size: 64 });
        for (rows, seen) in [(1, 9), (3, 9)] {
            let q = numbers([1, HEADS, rows, HEAD_DIM], 0.0);
            let (keys, values) =
                (numbers([1, KV_HEADS, seen, HEAD_DIM], 1.0), numbers([1, KV_HEADS, seen, HEAD_DIM], 2.0));
            let kept = |x: &Array| -> Kept {
                let (integers, scales, biases) = quantize(x, 64, bits).unwrap();
                vec![integers, scales, biases]
            };
            let mask = mask(seen - rows, rows, None, false, Dtype::Float32).unwrap();
            let y = attention(None).by_products(&q, &kept(&keys), &kept(&values), mask.as_ref(), &of).unwrap();
            let off = worst(&y, &expected(&q, &keys, &values, usize::MAX, None));
            assert!(off > 0.0 && off < tolerance, "{bits} bits, {rows} rows: {off}");
        }
    }
}
