//! Many rows of activations: matrix products, some rows at a time on each thread.

use candle_core::Result;

use super::SidePath;
use crate::decoder::{
    parts::{Run, in_parts},
    product::{add_product, product},
};

/// Rows of activations that a product wants at least.
const FEWEST_ROWS: usize = 16;

/// Adds what is beside the matrix to `y`, shape (rows, out). `x` has the shape (rows, in).
pub(super) fn add(side: &SidePath, x: &[f32], y: &mut [f32], threads: usize, run: &Run<'_>) -> Result<()> {
    let rows = (y.len() / side.out).div_ceil(threads).max(FEWEST_ROWS);
    in_parts(y, rows * side.out, run, |i, y| {
        let first = i * rows * side.width;
        let x = &x[first..first + y.len() / side.out * side.width];
        side.multiply(y, 0..side.out);
        for piece in &side.pieces {
            let narrow = product(x, &piece.a.all(), side.width);
            add_product(y, (side.out, piece.rows.start), &narrow, &piece.b.all(), piece.rank, piece.scale);
        }
        Ok(())
    })
}
