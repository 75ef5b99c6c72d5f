use mlx_rs::{
    ops::{quantize, subtract},
    transforms::eval,
};

use super::*;
use crate::decoder::numbers::ints;

fn numbers(shape: [usize; 2], seed: f32) -> Array {
    let values: Vec<f32> = (0..shape[0] * shape[1]).map(|i| (i as f32 * 0.7 + seed).sin()).collect();
    Array::from_slice(&values, &ints(shape))
}

fn quantized(dense: &Array, bits: i32) -> Matrix {
    let (weight, scales, biases) = quantize(dense, 32, bits).unwrap();
    Matrix::Quantized(Quantized { weight, scales, biases, bits, group_size: 32 })
}

/// The largest difference between elements.
fn difference(a: &Array, b: &Array) -> f32 {
    assert_eq!(a.shape(), b.shape());
    subtract(a, b).unwrap().abs().unwrap().max(None).unwrap().item_exact::<f32>()
}

#[test]
fn a_quantized_matrix_is_the_floats_that_it_stands_for() {
    let dense = numbers([6, 64], 0.0);
    for bits in [4, 8] {
        let matrix = quantized(&dense, bits);
        assert_eq!(matrix.dims(), (6, 64));
        let wide = matrix.widened(0..6).unwrap();
        // Of a range of 2, half a step, and the rounding of the largest.
        assert!(difference(&wide, &dense) <= 2.0 / f32::from((1u16 << bits) - 1));
        assert_eq!(difference(&matrix.widened(2..5).unwrap(), &wide.try_index(2..5).unwrap()), 0.0);
        let ids = Array::from_slice(&[5u32, 0, 5], &[3]);
        assert_eq!(difference(&matrix.rows(&ids).unwrap(), &wide.take_axis(&ids, 0).unwrap()), 0.0);
        let wide = Matrix::Dense(wide);
        for rows in [1, 3, 7, 8, 20] {
            let x = numbers([rows, 64], 1.0);
            let expected = wide.product(&x).unwrap();
            // The same sums of 64 products, in another order.
            assert!(difference(&matrix.product(&x).unwrap(), &expected) < 2e-5);
        }
        assert_eq!(matrix.bytes(), 6 * 64 * bits as u64 / 8 + 2 * 6 * 2 * 4);
    }
}

#[test]
fn rows_of_several_are_one_matrix_where_they_are_held_alike() {
    let (a, b) = (numbers([4, 64], 0.0), numbers([2, 64], 5.0));
    let x = numbers([1, 64], 1.0);
    for held in [|m: &Array| Matrix::Dense(m.clone()), |m: &Array| quantized(m, 4)] {
        let (a, b) = (held(&a), held(&b));
        let both = Matrix::concatenated(&[a.clone(), b.clone()]).unwrap();
        assert_eq!(both.dims(), (6, 64));
        let apart = concatenate(&[a.product(&x).unwrap(), b.product(&x).unwrap()], 1).unwrap();
        assert!(difference(&both.product(&x).unwrap(), &apart) < 1e-6);
    }
    let mixed = [quantized(&a, 4), quantized(&b, 8)];
    assert!(Matrix::concatenated(&mixed).is_err() && Matrix::concatenated(&[]).is_err());
}

#[test]
fn a_layer_adds_its_bias_and_keeps_the_type_of_the_activations() {
    let weight = Matrix::Dense(numbers([3, 64], 0.0));
    let bias = Array::from_slice(&[1f32, -2.0, 0.5], &[3]);
    let x = numbers([2, 64], 1.0);
    let y = Linear::new(weight.clone(), Some(bias.clone())).forward(&x).unwrap();
    assert_eq!(difference(&y, &weight.product(&x).unwrap().add(&bias).unwrap()), 0.0);
    let half = x.as_dtype(Dtype::Float16).unwrap();
    let y = Linear::new(weight, None).forward(&half).unwrap();
    eval([&y]).unwrap();
    assert_eq!(y.dtype(), Dtype::Float16);
}
