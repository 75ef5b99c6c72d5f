//! Products of rows of activations with rows of a matrix: in the calling thread alone, straight into the columns of the
//! result. candle's own product asks the system for the number of processors each time, which costs more than a small
//! product does.

use std::{marker::PhantomData, sync::OnceLock};

use candle_core::{Error, Result, Storage, Tensor, WithDType, utils::get_num_threads};

/// How many threads candle computes with.
pub(crate) fn threads() -> usize {
    static THREADS: OnceLock<usize> = OnceLock::new();
    *THREADS.get_or_init(get_num_threads)
}

/// The elements of a contiguous tensor on the CPU.
pub(crate) fn with_elements<T: WithDType, R>(x: &Tensor, f: impl FnOnce(&[T]) -> Result<R>) -> Result<R> {
    let (storage, layout) = x.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(cpu), Some((start, end))) => f(&T::cpu_storage_as_slice(cpu)?[start..end]),
        _ => Err(Error::Msg("a product on the CPU was given a tensor that is elsewhere, or not contiguous".into())),
    }
}

/// Adds `scale` times `x` times `w` to the columns of `y`, row-major with rows of `out` elements, from `start` on. `x` is
/// (rows, width), `w` (width, columns), both row-major.
///
/// # Panics
/// If a slice does not have its shape, or the columns do not lie within the result.
pub(crate) fn add_product(y: &mut [f32], (out, start): (usize, usize), x: &[f32], w: &[f32], width: usize, scale: f32) {
    let (rows, columns) = (y.len() / out, w.len() / width);
    assert_eq!(y.len(), rows * out, "y must have whole rows of {out}");
    assert_eq!(x.len(), rows * width, "x must have the shape (rows, width)");
    assert_eq!(w.len(), width * columns, "w must have the shape (width, columns)");
    assert!(start + columns <= out, "the columns must lie within the result");
    if rows == 0 || columns == 0 {
        return;
    }
    // SAFETY: as in `Columns::multiply`, with w as it is, so that its rows are `columns` apart, and with the result read
    // as well. The result is borrowed mutably here, so nobody else has it.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            width,
            y.as_mut_ptr().add(start),
            1,
            out as isize,
            true,
            x.as_ptr(),
            1,
            width as isize,
            w.as_ptr(),
            1,
            columns as isize,
            1.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// The product of `x` with the transposed `w`: shape (rows, columns), row-major. `x` is (rows, width), `w` (columns,
/// width), both row-major.
///
/// # Panics
/// If a slice is no whole number of rows.
pub(crate) fn product(x: &[f32], w: &[f32], width: usize) -> Vec<f32> {
    let columns = w.len() / width;
    let mut y = vec![0.0; x.len() / width * columns];
    let all = Columns::new(&mut y, columns);
    // SAFETY: this is the only call for these columns.
    unsafe { all.multiply(x, w, width, 0, [0.0, 1.0]) };
    y
}

/// A result of shape (rows, out), whose columns are computed by several threads.
pub(crate) struct Columns<'a, T> {
    y: *mut T,
    rows: usize,
    out: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: the pointer stands for the exclusive borrow in `borrowed`, through which elements are only written by
// `multiply`, whose callers promise that no two of them have a column in common.
unsafe impl<T: Send> Sync for Columns<'_, T> {}

impl<'a, T: Copy + Send + Sync + 'static> Columns<'a, T> {
    /// The columns of `y`, row-major.
    ///
    /// # Panics
    /// If `y` is no whole number of rows of `out` elements.
    pub(crate) fn new(y: &'a mut [T], out: usize) -> Self {
        assert!(out > 0 && y.len().is_multiple_of(out), "the result must have whole rows of {out}");
        Self { y: y.as_mut_ptr(), rows: y.len() / out, out, borrowed: PhantomData }
    }

    /// Sets the columns from `start` on to `x` times the transposed `w`. `x` is (rows, width), `w` (columns, width), both
    /// row-major.
    ///
    /// # Safety
    /// No other call may have any of these columns at the same time.
    ///
    /// # Panics
    /// If a slice does not have its shape, or `w` has more rows than there are columns from `start` on.
    pub(crate) unsafe fn multiply(&self, x: &[T], w: &[T], width: usize, start: usize, [zero, one]: [T; 2]) {
        let columns = w.len() / width;
        assert_eq!(x.len(), self.rows * width, "x must have the shape (rows, width)");
        assert_eq!(w.len(), columns * width, "w must have the shape (columns, width)");
        assert!(start + columns <= self.out, "the columns must lie within the result");
        if self.rows == 0 || columns == 0 {
            return;
        }
        // SAFETY: `gemm` reads `(row, column)` of an operand at `row * rs + column * cs` from its pointer. The asserts
        // above bound the largest such index by the length of the slice: x is (rows, width), the transposed w is (width,
        // columns) with the strides of w exchanged, and the result's rows are `out` apart, from column `start` on. A
        // slice is at most isize::MAX bytes long, so no stride overflows. The result is borrowed mutably, so that it
        // overlaps neither input, and the caller keeps its columns apart. (Unsafe, because the crate has no safe entry.)
        unsafe {
            gemm::gemm(
                self.rows,
                columns,
                width,
                self.y.add(start),
                1,
                self.out as isize,
                false,
                x.as_ptr(),
                1,
                width as isize,
                w.as_ptr(),
                width as isize,
                1,
                zero,
                one,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    }
}
