//! A few rows of activations: plain loops over what is stored, without anything allocated. At rank 8 a call of candle's
//! product costs more than all of this: 18 ms per token were measured on SmolLM2 with two such calls per matrix, against
//! 0.5 ms.

use std::ops::Range;

use candle_core::Result;
use llm_local_backend_common::decoder::adapters::Values;
use pulp::{Arch, NullaryFnOnce};

use super::{
    Piece, SidePath,
    values::{CHUNK, some},
};
use crate::decoder::parts::{Run, in_parts};

/// Rows of activations up to which this is used.
pub(super) const MOST_ROWS: usize = 4;

/// Ranks that are computed at one time.
const RANKS: usize = 64;

/// Columns of B that are added at one time.
const AT_ONCE: usize = 4;

/// Adds what is beside the matrix to `y`, row by row of `x`: at most [`MOST_ROWS`].
pub(super) fn add(side: &SidePath, x: &[f32], y: &mut [f32]) {
    side.multiply(y, 0..side.out);
    for piece in &side.pieces {
        for first in (0..piece.rank).step_by(RANKS) {
            let ranks = first..piece.rank.min(first + RANKS);
            for (x, y) in x.chunks_exact(side.width).zip(y.chunks_exact_mut(side.out)) {
                let mut narrow = [0f32; RANKS];
                let narrow = &mut narrow[..ranks.len()];
                project(piece, side.width, ranks.clone(), x, narrow);
                widen(piece, ranks.clone(), narrow, 0..piece.rows.len(), &mut y[piece.rows.clone()]);
            }
        }
    }
}

/// The same for one row and large adapters, with the work shared by so many threads.
pub(super) fn add_shared(side: &SidePath, x: &[f32], y: &mut [f32], threads: usize, run: &Run<'_>) -> Result<()> {
    let ranks: usize = side.pieces.iter().map(|p| p.rank).sum();
    let mut narrow = vec![0f32; ranks];
    in_parts(&mut narrow, ranks.div_ceil(threads), run, |i, narrow| {
        let part = i * ranks.div_ceil(threads)..i * ranks.div_ceil(threads) + narrow.len();
        for (piece, of_piece) in within(side) {
            let (start, end) = (part.start.max(of_piece.start), part.end.min(of_piece.end));
            if start < end {
                let own = start - of_piece.start..end - of_piece.start;
                project(piece, side.width, own, x, &mut narrow[start - part.start..end - part.start]);
            }
        }
        Ok(())
    })?;
    let columns = side.out.div_ceil(threads);
    in_parts(y, columns, run, |i, y| {
        let part = i * columns..i * columns + y.len();
        side.multiply(y, part.clone());
        for (piece, of_piece) in within(side) {
            let (start, end) = (part.start.max(piece.rows.start), part.end.min(piece.rows.end));
            if start < end {
                let own = start - piece.rows.start..end - piece.rows.start;
                widen(piece, 0..piece.rank, &narrow[of_piece], own, &mut y[start - part.start..end - part.start]);
            }
        }
        Ok(())
    })
}

/// Each piece, with where its ranks are among all.
fn within(side: &SidePath) -> impl Iterator<Item = (&Piece, Range<usize>)> {
    side.pieces.iter().scan(0, |end, piece| {
        let start = *end;
        *end += piece.rank;
        Some((piece, start..*end))
    })
}

/// `narrow = scale · A x` for some ranks.
fn project(piece: &Piece, width: usize, ranks: Range<usize>, x: &[f32], narrow: &mut [f32]) {
    // With the widest vectors that the processor has: the crate is built for old ones.
    Arch::new().dispatch(Project { piece, width, ranks, x, narrow });
}

struct Project<'a> {
    piece: &'a Piece,
    width: usize,
    ranks: Range<usize>,
    x: &'a [f32],
    narrow: &'a mut [f32],
}

impl NullaryFnOnce for Project<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let mut buffer = [0f32; CHUNK];
        for (rank, narrow) in self.ranks.zip(self.narrow) {
            let mut sum = 0f32;
            for (i, x) in self.x.chunks(CHUNK).enumerate() {
                let at = rank * self.width + i * CHUNK;
                sum += dot(some(&self.piece.a, at..at + x.len(), &mut buffer), x);
            }
            *narrow = self.piece.scale * sum;
        }
    }
}

/// `y += B narrow` for some ranks, whose numbers `narrow` has, and some columns of the piece, which `y` has.
fn widen(piece: &Piece, ranks: Range<usize>, narrow: &[f32], columns: Range<usize>, y: &mut [f32]) {
    Arch::new().dispatch(Widen { piece, ranks, narrow, columns, y });
}

struct Widen<'a> {
    piece: &'a Piece,
    ranks: Range<usize>,
    narrow: &'a [f32],
    columns: Range<usize>,
    y: &'a mut [f32],
}

impl NullaryFnOnce for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let mut buffers = [[0f32; CHUNK]; AT_ONCE];
        let (b, width): (&Values, _) = (&self.piece.b, self.piece.rows.len());
        for (i, y) in self.y.chunks_mut(CHUNK).enumerate() {
            let at = self.columns.start + i * CHUNK;
            for (first, narrow) in self.ranks.clone().step_by(AT_ONCE).zip(self.narrow.chunks(AT_ONCE)) {
                let mut by = [0f32; AT_ONCE];
                by[..narrow.len()].copy_from_slice(narrow);
                // Behind the last rank stands the first again, times 0.
                let start = |k: usize| (if k < narrow.len() { first + k } else { first }) * width + at;
                let [b0, b1, b2, b3] = &mut buffers;
                let b = [
                    some(b, start(0)..start(0) + y.len(), b0),
                    some(b, start(1)..start(1) + y.len(), b1),
                    some(b, start(2)..start(2) + y.len(), b2),
                    some(b, start(3)..start(3) + y.len(), b3),
                ];
                add_four(y, b, by);
            }
        }
    }
}

/// Adds what is beside some rows of the matrix, looked up by `ids`, to `y`, shape (ids, in).
pub(super) fn add_rows(side: &SidePath, ids: &[u32], y: &mut [f32]) -> Result<()> {
    let mut buffer = [0f32; CHUNK];
    for (id, y) in ids.iter().map(|id| *id as usize).zip(y.chunks_exact_mut(side.width)) {
        if let Some(factors) = &side.factors {
            y.iter_mut().for_each(|y| *y *= factors[id]);
        }
        for piece in side.pieces.iter().filter(|p| p.rows.contains(&id)) {
            for rank in 0..piece.rank {
                let by = piece.scale * piece.b.get(rank * piece.rows.len() + id - piece.rows.start);
                for (i, y) in y.chunks_mut(CHUNK).enumerate() {
                    let at = rank * side.width + i * CHUNK;
                    let a = some(&piece.a, at..at + y.len(), &mut buffer);
                    y.iter_mut().zip(a).for_each(|(y, a)| *y += by * a);
                }
            }
        }
    }
    Ok(())
}

/// Sums of several lanes, which a compiler may keep in registers.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 32;
    let mut sums = [0f32; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f32>() + rest
}

#[inline(always)]
fn add_four(y: &mut [f32], [a, b, c, d]: [&[f32]; AT_ONCE], by: [f32; AT_ONCE]) {
    let n = y.len();
    let (a, b, c, d) = (&a[..n], &b[..n], &c[..n], &d[..n]);
    for i in 0..n {
        y[i] += by[0] * a[i] + by[1] * b[i] + by[2] * c[i] + by[3] * d[i];
    }
}
