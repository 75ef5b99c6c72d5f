//! `C += B @ A` on slices.

use pulp::{Arch, Simd, WithSimd};

/// Columns of A that lie together. Whole pairs of vectors of any processor.
pub(super) const PANEL: usize = 32;

/// Rows of C that are computed together, so that what is loaded of A serves all of them. With two vectors each they leave
/// some of 16 registers for the factors.
const TOGETHER: usize = 4;

/// Rows and columns of a tile of a row-major matrix.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tile {
    pub(super) rows: usize,
    pub(super) columns: usize,
}

/// The matrix A, of the shape (rank, columns), as panels of [`PANEL`] columns one after another, each row-major. The last is
/// filled up with zeros.
#[derive(Default)]
pub(super) struct Panels {
    rank: usize,
    columns: usize,
    values: Vec<f32>,
}

impl Panels {
    /// Packs a row-major matrix of `rank` rows.
    pub(super) fn new(a: &[f32], rank: usize, columns: usize) -> Self {
        assert_eq!(a.len(), rank * columns, "A must have the shape (rank, columns)");
        let mut values = vec![0.0; rank * columns.next_multiple_of(PANEL)];
        if rank > 0 {
            for (index, panel) in values.chunks_exact_mut(rank * PANEL).enumerate() {
                let left = index * PANEL;
                let width = PANEL.min(columns - left);
                for (row, to) in panel.chunks_exact_mut(PANEL).enumerate() {
                    to[..width].copy_from_slice(&a[row * columns + left..][..width]);
                }
            }
        }
        Self { rank, columns, values }
    }
}

/// Adds `b @ a` to `c`, a whole tile whose first column is the column `left` of `a`; `b` has the shape (rows, rank). Both are
/// row-major. In the calling thread alone.
///
/// # Panics
/// If a slice does not have its shape, or the tile starts within a panel.
pub(super) fn add_product(c: &mut [f32], tile: Tile, b: &[f32], a: &Panels, left: usize) {
    let Tile { rows, columns } = tile;
    if rows == 0 || columns == 0 || a.rank == 0 {
        return;
    }
    assert_eq!(c.len(), rows * columns, "C must be a whole tile");
    assert_eq!(b.len(), rows * a.rank, "B must have the shape (rows, rank)");
    assert!(left.is_multiple_of(PANEL) && left + columns <= a.columns, "the tile must be one of whole panels");
    let panels = &a.values[left * a.rank..(left + columns).next_multiple_of(PANEL) * a.rank];
    Arch::new().dispatch(Add { c, columns, b, panels, rank: a.rank });
}

struct Add<'a> {
    c: &'a mut [f32],
    columns: usize,
    b: &'a [f32],
    panels: &'a [f32],
    rank: usize,
}

impl WithSimd for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { c, columns, b, panels, rank } = self;
        for (index, panel) in panels.chunks_exact(rank * PANEL).enumerate() {
            let left = index * PANEL;
            let mut rows = c.chunks_exact_mut(TOGETHER * columns);
            let mut factors = b.chunks_exact(TOGETHER * rank);
            for (c, b) in (&mut rows).zip(&mut factors) {
                add_panel::<S, TOGETHER>(simd, c, columns, left, b, panel);
            }
            let rest = rows.into_remainder().chunks_exact_mut(columns).zip(factors.remainder().chunks_exact(rank));
            for (c, b) in rest {
                add_panel::<S, 1>(simd, c, columns, left, b, panel);
            }
        }
    }
}

/// Adds the columns from `left` on that `panel` has, of so many rows.
#[inline(always)]
fn add_panel<S: Simd, const ROWS: usize>(
    simd: S,
    c: &mut [f32],
    columns: usize,
    left: usize,
    b: &[f32],
    panel: &[f32],
) {
    let rank = panel.len() / PANEL;
    let vectors = PANEL / S::F32_LANES;
    let panel = S::as_simd_f32s(panel).0;
    let b: [&[f32]; ROWS] = std::array::from_fn(|row| &b[row * rank..][..rank]);
    for first in (0..vectors).step_by(2) {
        // Summed apart from C, which may be much larger and would round each term.
        let mut sums = [[simd.splat_f32s(0.0); 2]; ROWS];
        for (k, a) in panel.chunks_exact(vectors).enumerate() {
            let a = [a[first], a[first + 1]];
            for (sums, b) in sums.iter_mut().zip(b) {
                let b = simd.splat_f32s(b[k]);
                sums[0] = simd.mul_add_e_f32s(b, a[0], sums[0]);
                sums[1] = simd.mul_add_e_f32s(b, a[1], sums[1]);
            }
        }
        for (c, sums) in c.chunks_exact_mut(columns).zip(sums) {
            let from = (left + first * S::F32_LANES).min(columns);
            for (c, sum) in c[from..].chunks_mut(S::F32_LANES).zip(sums) {
                match S::as_mut_simd_f32s(c) {
                    ([whole], _) => *whole = simd.add_f32s(*whole, sum),
                    (_, rest) => simd.partial_store_f32s(rest, simd.add_f32s(simd.partial_load_f32s(rest), sum)),
                }
            }
        }
    }
}
