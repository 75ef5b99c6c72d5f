//! Adapters beside a matrix against sums in f64.

use std::ops::Range;

use half::{bf16, f16};
use llm_local_backend_common::decoder::adapters::{Piece, Values};

use super::*;
use crate::{
    arrays::to_f32,
    reference_tests::{numbers, on_thread},
};

/// The same numbers in one of three types.
fn values(n: usize, seed: usize) -> Values {
    let v = numbers(n, seed, 1.0);
    match seed % 3 {
        0 => Values::F32(v),
        1 => Values::F16(v.into_iter().map(f16::from_f32).collect()),
        _ => Values::Bf16(v.into_iter().map(bf16::from_f32).collect()),
    }
}

struct Case {
    out: usize,
    width: usize,
    pieces: Pieces,
}

impl Case {
    fn new(out: usize, width: usize, pieces: &[(usize, Range<usize>)], factors: bool) -> Self {
        let piece = |(i, (rank, rows)): (usize, &(usize, Range<usize>))| Piece {
            rank: *rank,
            rows: rows.clone(),
            a: values(rank * width, 2 * i + 1),
            b: values(rank * rows.len(), 3 * i + 2),
            scale: 0.5 + i as f32,
        };
        let pieces = pieces.iter().enumerate().map(piece).collect();
        Self { out, width, pieces: Pieces { pieces, factors: factors.then(|| numbers(out, 50, 1.0)) } }
    }

    fn side(&self, dtype: Dtype) -> SidePath {
        SidePath::new(&self.pieces, (self.out, self.width), dtype).unwrap()
    }

    /// What is added to the matrix, row by row: its factor, and the delta.
    fn delta(&self) -> (Vec<f64>, Vec<f64>) {
        let factors = self.pieces.factors.as_ref();
        let factors = (0..self.out).map(|i| factors.map_or(1.0, |f| f64::from(f[i]))).collect();
        let mut delta = vec![0f64; self.out * self.width];
        for piece in &self.pieces.pieces {
            let (a, b) = (piece.a.all(), piece.b.all());
            for (i, row) in piece.rows.clone().enumerate() {
                for k in 0..piece.rank {
                    let by = f64::from(piece.scale) * f64::from(b[k * piece.rows.len() + i]);
                    for j in 0..self.width {
                        delta[row * self.width + j] += by * f64::from(a[k * self.width + j]);
                    }
                }
            }
        }
        (factors, delta)
    }
}

/// The largest error relative to the largest number.
fn error(found: &Array, expected: &[f64]) -> f64 {
    let found = to_f32(found).unwrap();
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(1.0f64, |m, x| m.max(x.abs()));
    let error = found.iter().zip(expected).map(|(x, y)| (f64::from(*x) - y).abs());
    error.fold(0.0, |m: f64, d| if d.is_nan() { f64::INFINITY } else { m.max(d) }) / largest
}

/// Rows of one matrix and of several, other ones twice or not at all, and factors alone.
fn cases() -> Vec<Case> {
    let two = |a: usize, b: usize| [(3, 0..a), (1, a..b), (8, 0..a)];
    vec![
        Case::new(40, 64, &[(8, 0..40)], false),
        Case::new(300, 520, &two(270, 300), true),
        Case::new(33, 100, &[(70, 5..33)], false),
        Case::new(20, 10, &[], true),
        Case::new(700, 600, &[(131, 0..300), (66, 300..700), (5, 100..200)], true),
    ]
}

/// In half precision activations are rounded to 11 and 8 bits.
const TYPES: [(Dtype, f64); 3] = [(Dtype::Float32, 2e-6), (Dtype::Float16, 5e-3), (Dtype::Bfloat16, 4e-2)];

#[test]
fn products_are_what_the_sum_is() {
    on_thread(|| {
        for (i, case) in cases().iter().enumerate() {
            let (factors, delta) = case.delta();
            for rows in [1, 2, 37] {
                let (x, y) = (numbers(rows * case.width, 7, 1.0), numbers(rows * case.out, 8, 1.0));
                let expected: Vec<f64> = x
                    .chunks_exact(case.width)
                    .zip(y.chunks_exact(case.out))
                    .flat_map(|(x, y)| {
                        let added = delta.chunks_exact(case.width);
                        let added = added.map(|row| row.iter().zip(x).map(|(d, x)| d * f64::from(*x)).sum::<f64>());
                        let sum = y.iter().zip(&factors).zip(added);
                        sum.map(|((y, f), added)| f64::from(*y) * f + added).collect::<Vec<_>>()
                    })
                    .collect();
                for (dtype, bound) in TYPES {
                    let array = |v: &[f32], columns| from_f32(v, &[rows, columns]).unwrap().as_dtype(dtype).unwrap();
                    let found = case.side(dtype).beside(array(&y, case.out), &array(&x, case.width)).unwrap();
                    assert_eq!(found.dtype(), dtype);
                    let error = error(&found, &expected);
                    assert!(error < bound, "case {i}, {rows} rows, {dtype:?}: {error}");
                }
            }
        }
    });
}

#[test]
fn rows_that_are_looked_up_have_their_delta() {
    on_thread(|| {
        for (i, case) in cases().iter().enumerate() {
            let ids = [7u32, 0, 19, 7];
            let (factors, delta) = case.delta();
            let y = numbers(ids.len() * case.width, 8, 1.0);
            let expected: Vec<f64> = ids
                .iter()
                .zip(y.chunks_exact(case.width))
                .flat_map(|(id, y)| {
                    let row = *id as usize * case.width;
                    let (factor, delta) = (factors[*id as usize], &delta[row..row + case.width]);
                    y.iter().zip(delta).map(|(y, d)| f64::from(*y) * factor + d).collect::<Vec<_>>()
                })
                .collect();
            for (dtype, bound) in TYPES {
                let y = from_f32(&y, &[4, case.width]).unwrap().as_dtype(dtype).unwrap();
                let found = case.side(dtype).beside_rows(y, &Array::from_slice(&ids, &[4])).unwrap();
                assert_eq!(found.dtype(), dtype);
                let error = error(&found, &expected);
                assert!(error < bound, "case {i}, {dtype:?}: {error}");
            }
        }
    });
}

/// One pair in memory: A of all ranks, and B with a place for each rank in each row.
#[test]
fn the_memory_that_it_takes_is_said() {
    on_thread(|| {
        let case = Case::new(300, 520, &[(3, 0..270), (1, 270..300)], true);
        assert_eq!(case.side(Dtype::Float32).bytes(), (4 * 520 + 4 * 300 + 300) * 4);
        assert_eq!(case.side(Dtype::Bfloat16).bytes(), (4 * 520 + 4 * 300 + 300) * 2);
    });
}
