//! A matrix with everything that adapters can do: values replaced, pairs added, rows scaled to DoRA's magnitudes.

use rayon::prelude::*;

use super::{
    kernel::{Delta, Dora, Place, ROWS, Sum, Tiles, Touched},
    overlay::{Strip, apply},
    product::Tile,
};

/// One matrix of a [`Touched`].
pub(super) struct Mixed<'a> {
    touched: &'a Touched<'a>,
    sum: &'a Sum,
    /// The matrix's first row in the whole tensor.
    first: usize,
    /// For each DoRA, `weight * m / n` of each column; empty where it is of rows.
    columns: Vec<Vec<f32>>,
}

/// For each DoRA, `weight * m / n` of each row of the block; empty where it is of columns.
type Factors = Vec<Vec<f32>>;

impl<'a> Mixed<'a> {
    pub(super) fn new(touched: &'a Touched<'a>, sum: &'a Sum, first: usize) -> Self {
        let mut mixed = Self { touched, sum, first, columns: Vec::new() };
        mixed.columns = sum.doras.iter().map(|dora| mixed.column_factors(dora)).collect();
        mixed
    }

    /// Writes a tile of the base, with what replaces it.
    fn base(&self, Place { first, left, tile }: Place, values: &mut [f32], spare: &mut Vec<f32>) {
        let Touched { columns, base_rows, stored, overlays: [tensors, rows], .. } = self.touched;
        for (within, values) in values.chunks_mut(tile.columns).enumerate() {
            let row = self.first + first + within;
            let strip = Strip { row, columns: *columns, left };
            let own = |out: &mut [f32], _: &mut Vec<f32>| match stored {
                Some(stored) if row < *base_rows => stored.widen(row * columns + left, out),
                // A row that is nowhere must not become a number.
                _ => out.fill(f32::NAN),
            };
            apply(rows, strip, values, spare, |out, spare| apply(tensors, strip, out, spare, own));
        }
    }

    /// Writes `W + delta`.
    fn with(&self, delta: &Delta, place: Place, values: &mut [f32], spare: &mut Vec<f32>) {
        self.base(place, values, spare);
        delta.add(place, values);
    }

    fn row_factors(&self, dora: &Dora, first: usize, rows: usize, scratch: &mut [Vec<f32>; 2]) -> Vec<f32> {
        if dora.is_of_columns {
            return Vec::new();
        }
        let (columns, width) = (self.touched.columns, self.touched.tile_columns(1));
        let [values, spare] = scratch;
        let mut squares = vec![0f64; rows];
        for left in (0..columns).step_by(width) {
            let tile = Tile { rows, columns: width.min(columns - left) };
            values.resize(values.len().max(rows * tile.columns), 0.0);
            let values = &mut values[..rows * tile.columns];
            self.with(&dora.delta, Place { first, left, tile }, values, spare);
            for (sum, values) in squares.iter_mut().zip(values.chunks(tile.columns)) {
                *sum += values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
            }
        }
        dora.factors(first, &squares)
    }

    /// Each task takes some columns of all rows, so that the sums do not depend on the number of threads.
    fn column_factors(&self, dora: &Dora) -> Vec<f32> {
        if !dora.is_of_columns {
            return Vec::new();
        }
        let (columns, rows) = (self.touched.columns, self.touched.rows);
        let width = self.touched.tile_columns(1);
        let mut squares = vec![0f64; columns];
        squares.par_chunks_mut(width).enumerate().for_each_init(Default::default, |scratch, (index, squares)| {
            let [values, spare]: &mut [Vec<f32>; 2] = scratch;
            for first in (0..rows).step_by(ROWS) {
                let tile = Tile { rows: ROWS.min(rows - first), columns: squares.len() };
                values.resize(values.len().max(tile.rows * tile.columns), 0.0);
                let values = &mut values[..tile.rows * tile.columns];
                self.with(&dora.delta, Place { first, left: index * width, tile }, values, spare);
                for values in values.chunks(tile.columns) {
                    squares.iter_mut().zip(values).for_each(|(sum, v)| *sum += f64::from(*v).powi(2));
                }
            }
        });
        dora.factors(0, &squares)
    }
}

impl Dora {
    /// `weight * m / n` from the squares of norms, of rows or columns from `first` on. A row that the adapter does not have
    /// stays as it is.
    fn factors(&self, first: usize, squares: &[f64]) -> Vec<f32> {
        let of = |(magnitude, square): (&Option<f32>, &f64)| match magnitude {
            Some(magnitude) => (self.weight * f64::from(*magnitude) / square.sqrt()) as f32,
            None => self.weight as f32,
        };
        self.magnitude[first..].iter().zip(squares).map(of).collect()
    }
}

impl Tiles for Mixed<'_> {
    type Block = Factors;

    fn block(&self, first: usize, rows: usize, scratch: &mut [Vec<f32>; 2]) -> Factors {
        self.sum.doras.iter().map(|dora| self.row_factors(dora, first, rows, scratch)).collect()
    }

    fn write(&self, factors: &Factors, place: Place, values: &mut [f32], scratch: &mut [Vec<f32>; 2]) {
        let [scaled, spare] = scratch;
        self.base(place, values, spare);
        // What is left of W itself: each DoRA takes its weight away.
        let rest = 1.0 - self.sum.doras.iter().map(|dora| dora.weight).sum::<f64>();
        let own = |values: &mut [f32]| values.iter_mut().for_each(|value| *value = (f64::from(*value) * rest) as f32);
        if !self.sum.doras.is_empty() {
            own(values);
        }
        self.sum.plain.add(place, values);
        for ((dora, rows), columns) in self.sum.doras.iter().zip(factors).zip(&self.columns) {
            scaled.resize(scaled.len().max(values.len()), 0.0);
            let scaled = &mut scaled[..values.len()];
            self.with(&dora.delta, place, scaled, spare);
            let width = place.tile.columns;
            for (row, (values, scaled)) in values.chunks_mut(width).zip(scaled.chunks(width)).enumerate() {
                if dora.is_of_columns {
                    let factors = &columns[place.left..];
                    values.iter_mut().zip(scaled).zip(factors).for_each(|((out, v), factor)| *out += v * factor);
                } else {
                    values.iter_mut().zip(scaled).for_each(|(out, v)| *out += v * rows[row]);
                }
            }
        }
    }
}
