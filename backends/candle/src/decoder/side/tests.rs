//! Adapters beside a matrix against sums in f64.

use candle_core::{DType, Device};
use half::{bf16, f16};
use llm_local_backend_common::decoder::adapters::Values;

use super::*;
use crate::decoder::parts::{beside_blocks, on_rayon};

/// Fixed numbers in (-1, 1), others for each seed.
fn numbers(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| (((i + 977 * seed) as f64 * 12.9898).sin() * 43758.5453).fract() as f32).collect()
}

/// The same numbers in one of three types.
fn values(n: usize, seed: usize) -> Values {
    let v = numbers(n, seed);
    match seed % 3 {
        0 => Values::F32(v),
        1 => Values::F16(v.into_iter().map(f16::from_f32).collect()),
        _ => Values::Bf16(v.into_iter().map(bf16::from_f32).collect()),
    }
}

fn side(out: usize, width: usize, pieces: &[(usize, Range<usize>)], factors: bool) -> SidePath {
    let piece = |(i, (rank, rows)): (usize, &(usize, Range<usize>))| Piece {
        rank: *rank,
        rows: rows.clone(),
        a: values(rank * width, 2 * i + 1),
        b: values(rank * rows.len(), 3 * i + 2),
        scale: 0.5 + i as f32,
    };
    let pieces = pieces.iter().enumerate().map(piece).collect();
    SidePath { width, out, pieces, factors: factors.then(|| numbers(out, 50)), on_device: None }
}

/// What `side` adds to the matrix, row by row: its factor, and the delta.
fn delta(side: &SidePath) -> (Vec<f64>, Vec<f64>) {
    let factors = (0..side.out).map(|i| side.factors.as_ref().map_or(1.0, |f| f64::from(f[i]))).collect();
    let mut delta = vec![0f64; side.out * side.width];
    for piece in &side.pieces {
        let (a, b) = (piece.a.all(), piece.b.all());
        for (i, row) in piece.rows.clone().enumerate() {
            for k in 0..piece.rank {
                for j in 0..side.width {
                    delta[row * side.width + j] += f64::from(piece.scale)
                        * f64::from(b[k * piece.rows.len() + i])
                        * f64::from(a[k * side.width + j]);
                }
            }
        }
    }
    (factors, delta)
}

fn expected(side: &SidePath, x: &[f32], y: &[f32]) -> Vec<f64> {
    let (factors, delta) = delta(side);
    let rows = x.chunks_exact(side.width).zip(y.chunks_exact(side.out));
    rows.flat_map(|(x, y)| {
        let added = delta.chunks_exact(side.width);
        let added = added.map(|row| row.iter().zip(x).map(|(d, x)| d * f64::from(*x)).sum::<f64>());
        y.iter().zip(&factors).zip(added).map(|((y, f), added)| f64::from(*y) * f + added).collect::<Vec<_>>()
    })
    .collect()
}

/// The largest error relative to the largest number.
fn error(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(1.0f64, |m, x| m.max(x.abs()));
    let error = found.iter().zip(expected).map(|(x, y)| (f64::from(*x) - y).abs());
    error.fold(0.0, |m: f64, d| if d.is_nan() { f64::INFINITY } else { m.max(d) }) / largest
}

/// Sides whose ranks, rows and columns are no multiples of what is computed at one time.
fn sides() -> Vec<SidePath> {
    let two = |a: usize, b: usize| [(3, 0..a), (1, a..b), (8, 0..a)];
    vec![
        side(40, 64, &[(8, 0..40)], false),
        side(300, 520, &two(270, 300), true),
        side(33, 100, &[(70, 5..33)], false),
        side(20, 10, &[], true),
        side(700, 600, &[(131, 0..300), (66, 300..700), (5, 100..200)], true),
    ]
}

#[test]
fn a_few_rows_and_many_are_what_the_sum_is() {
    for (i, side) in sides().iter().enumerate() {
        for rows in [1, 2, 4, 5, 37] {
            let (x, y) = (numbers(rows * side.width, 7), numbers(rows * side.out, 8));
            let expected = expected(side, &x, &y);
            let mut ways = vec![y.clone(), y.clone(), y.clone(), y.clone()];
            side.add(&x, &mut ways[0], &on_rayon).unwrap();
            few::add(side, &x, &mut ways[1]);
            many::add(side, &x, &mut ways[2], 3, &on_rayon).unwrap();
            if rows == 1 {
                few::add_shared(side, &x, &mut ways[3], 3, &beside_blocks).unwrap();
            } else {
                ways.pop();
            }
            for (way, found) in ways.iter().enumerate() {
                let error = error(found, &expected);
                assert!(error < 2e-6, "side {i}, {rows} rows, way {way}: {error}");
            }
        }
    }
}

#[test]
fn rows_that_are_looked_up_have_their_delta() {
    for (i, side) in sides().iter().enumerate() {
        let ids = [7u32, 0, 19, 7];
        let (factors, delta) = delta(side);
        let y = numbers(ids.len() * side.width, 8);
        let expected: Vec<f64> = ids
            .iter()
            .zip(y.chunks_exact(side.width))
            .flat_map(|(id, y)| {
                let row = *id as usize * side.width;
                let (factor, delta) = (factors[*id as usize], &delta[row..row + side.width]);
                y.iter().zip(delta).map(|(y, d)| f64::from(*y) * factor + d).collect::<Vec<_>>()
            })
            .collect();
        let (y, ids) = (tensor(&y, (4, side.width)), Tensor::new(&ids, &Device::Cpu).unwrap());
        let found = side.beside_rows(y.copy().unwrap(), &ids).unwrap();
        assert!(error(&elements(&found), &expected) < 2e-6, "side {i}");
        let found = on_device(side).beside_rows(y, &ids).unwrap();
        assert!(error(&elements(&found), &expected) < 2e-6, "side {i}, as on a device");
    }
}

/// With candle's products as they run on a GPU, here on the CPU.
#[test]
fn one_product_for_all_pieces_is_what_the_sum_is() {
    for (i, side) in sides().iter().enumerate() {
        let (x, y) = (numbers(3 * side.width, 7), numbers(3 * side.out, 8));
        let expected = expected(side, &x, &y);
        let (x, y) = (tensor(&x, (3, side.width)), tensor(&y, (3, side.out)));
        let found = on_device(side).beside(y, &x, &on_rayon).unwrap();
        assert!(error(&elements(&found), &expected) < 2e-6, "side {i}");
    }
}

#[test]
fn a_result_of_another_shape_is_an_error() {
    let side = &sides()[0];
    assert!(side.add(&[0.0; 64], &mut [0.0; 80], &on_rayon).is_err());
    assert!(side.add(&[0.0; 63], &mut [0.0; 40], &on_rayon).is_err());
}

fn on_device(side: &SidePath) -> SidePath {
    let (shape, factors) = ((side.out, side.width), side.factors.as_deref());
    let made = OnDevice::new(shape, &side.pieces, factors, DType::F32, &Device::Cpu).unwrap();
    SidePath { width: side.width, out: side.out, pieces: Vec::new(), factors: None, on_device: Some(made) }
}

fn tensor(v: &[f32], shape: (usize, usize)) -> Tensor {
    Tensor::from_slice(v, shape, &Device::Cpu).unwrap()
}

fn elements(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}
