//! `C += B @ A` on slices.

/// Rows and columns of a tile of a row-major matrix.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tile {
    pub(super) rows: usize,
    pub(super) columns: usize,
}

/// Adds `b @ a` to `c`. `c` is a whole (rows, columns) tile, `b` is (rows, rank), and `a` is (rank, columns) with
/// `a_stride` elements from one row to the next; all row-major. In the calling thread alone.
///
/// # Panics
/// If a slice is too short for its shape.
pub(super) fn add_product(c: &mut [f32], tile: Tile, b: &[f32], a: &[f32], a_stride: usize, rank: usize) {
    let Tile { rows, columns } = tile;
    if rows == 0 || columns == 0 || rank == 0 {
        return;
    }
    assert_eq!(c.len(), rows * columns, "C must be a whole tile");
    assert_eq!(b.len(), rows * rank, "B must have the shape (rows, rank)");
    assert!(columns <= a_stride && a.len() >= (rank - 1) * a_stride + columns, "A must hold (rank, columns)");
    // SAFETY: `gemm` reads `(row, column)` of an operand at `row * rs + column * cs` from its pointer. The asserts above
    // bound the largest such index by the length of its slice, for C (rows, columns), B (rows, rank) and A (rank,
    // columns). A slice is at most isize::MAX bytes long, so no stride overflows. `c` is borrowed mutably, so it overlaps
    // neither input, and with `Parallelism::None` no other thread gets a pointer. (Unsafe, because the crate has no safe
    // entry; its microkernels choose AVX2, AVX-512 or NEON at run time, which plain loops here could not.)
    unsafe {
        gemm::gemm(
            rows,
            columns,
            rank,
            c.as_mut_ptr(),
            1,
            columns as isize,
            true,
            b.as_ptr(),
            1,
            rank as isize,
            a.as_ptr(),
            1,
            a_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
