//! Linear layers: one matrix, dense or quantized, with an optional bias and a place for a low-rank side path.

use std::sync::Arc;

use candle_core::{
    DType, Device, Result, Tensor, WithDType,
    quantized::{GgmlDType, QTensor},
    utils::with_avx,
};
use half::{bf16, f16, slice::HalfFloatSliceExt};
use llm_local_weights::widen_f16;

use super::{
    parts::{Run, beside_blocks, on_rayon},
    product::{Columns, threads, with_elements},
    side::SidePath,
};

/// f32 elements of one tile of weights on the CPU: small enough for a core's cache, large enough for the product.
const TILE: usize = 64 * 1024;

/// Multiplications below which a product with one row is not worth a second thread.
pub(super) const WORTH_A_THREAD: usize = 128 * 1024;

/// A weight matrix, shape (out, in).
#[derive(Debug, Clone)]
pub(crate) enum Matrix {
    /// Floats.
    Dense(Tensor),
    /// Blocks of a GGUF file, as they are stored there.
    Quantized {
        /// Shared between an embedding and the head that is tied to it.
        blocks: Arc<QTensor>,
        /// On the CPU, rows of activations from which a product with widened weights is faster.
        widen_from: usize,
    },
}

/// `y = W x + bias`, with the side path's update where there is one.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    pub(super) weight: Matrix,
    /// Shape (out,).
    pub(super) bias: Option<Tensor>,
    /// Adapters beside the matrix.
    pub(super) side: Option<Arc<SidePath>>,
}

impl Linear {
    pub(crate) fn new(weight: Matrix, bias: Option<Tensor>) -> Self {
        Self { weight, bias, side: None }
    }

    #[cfg(test)]
    pub(crate) fn widen_always(&mut self) {
        if let Matrix::Quantized { widen_from, .. } = &mut self.weight {
            *widen_from = 1;
        }
    }

    /// Rows of `x`, shape (rows, in), to (rows, out) in the same dtype.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut y = self.weight.apply(x)?;
        if let Some(side) = &self.side {
            y = side.beside(y, x, self.weight.runs_on(x.dim(0)?))?;
        }
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

impl Matrix {
    pub(crate) fn quantized(blocks: QTensor) -> Result<Self> {
        Ok(Self::Quantized { widen_from: widen_from(&blocks)?, blocks: Arc::new(blocks) })
    }

    /// (out, in).
    pub(crate) fn dims(&self) -> Result<(usize, usize)> {
        match self {
            Self::Dense(w) => w.dims2(),
            Self::Quantized { blocks, .. } => blocks.shape().dims2(),
        }
    }

    /// Rows of `x`, shape (rows, in), times the transposed matrix: (rows, out) in the dtype of `x`.
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, _) = x.dims2()?;
        let cpu = x.device().is_cpu() && x.dtype() == DType::F32;
        match self {
            Self::Quantized { widen_from, .. } if cpu && rows >= *widen_from => self.apply_tiles(x),
            Self::Quantized { blocks, .. } => x.apply_op1_no_bwd(blocks.as_ref()),
            // candle's half-precision products are slow for a few rows, and widen all of a bf16 matrix each time.
            Self::Dense(w) if cpu && (w.dtype() == DType::BF16 || w.dtype() == DType::F16 && rows > 1) => {
                self.apply_tiles(x)
            }
            Self::Dense(w) if cpu && rows == 1 && w.dtype() == DType::F16 => one_row::<f16>(x, w),
            Self::Dense(w) if cpu && rows == 1 => one_row::<f32>(x, w),
            Self::Dense(w) => x.to_dtype(w.dtype())?.matmul(&w.t()?)?.to_dtype(x.dtype()),
        }
    }

    /// The product by tiles of rows that are widened to f32 one after another, some threads at a time.
    fn apply_tiles(&self, x: &Tensor) -> Result<Tensor> {
        let (out, width) = self.dims()?;
        // An even share for every thread.
        let rows = tile_rows(width, out.div_ceil(threads()));
        by_columns::<f32>(x, out, rows, self.runs_on(x.dim(0)?), |start, end, columns| {
            self.widened(start, end, columns)
        })
    }

    /// The threads that work with so many rows of activations runs on.
    fn runs_on(&self, rows: usize) -> &'static Run<'static> {
        match self {
            // Those of another pool would compete for the cores with candle's, where products with blocks run.
            Self::Quantized { .. } if rows == 1 => &beside_blocks,
            _ => &on_rayon,
        }
    }

    /// Gives `columns` the rows from `start` to `end`, in f32 on the CPU.
    pub(super) fn widened(&self, start: usize, end: usize, columns: &mut dyn FnMut(&[f32])) -> Result<()> {
        match self {
            Self::Quantized { blocks, .. } => {
                let rows = blocks.embedding(&Tensor::arange(start as u32, end as u32, &Device::Cpu)?)?;
                with_elements(&rows, |wide| {
                    columns(wide);
                    Ok(())
                })
            }
            Self::Dense(w) => {
                let (_, width) = w.dims2()?;
                let range = start * width..end * width;
                if w.dtype() == DType::F32 {
                    return with_elements::<f32, _>(w, |v| {
                        columns(&v[range]);
                        Ok(())
                    });
                }
                let mut wide = vec![0f32; range.len()];
                match w.dtype() {
                    DType::F16 => with_elements::<f16, _>(w, |v| {
                        widen_f16(v[range].reinterpret_cast(), &mut wide);
                        Ok(())
                    })?,
                    _ => with_elements::<bf16, _>(w, |v| {
                        v[range].convert_to_f32_slice(&mut wide);
                        Ok(())
                    })?,
                }
                columns(&wide);
                Ok(())
            }
        }
    }
}

/// The product of `x`, shape (rows, in), with a matrix of `out` rows, of which `read` gives some at a time to the closure
/// it gets: (rows, out). The parts are computed by `run`.
fn by_columns<T: WithDType>(
    x: &Tensor,
    out: usize,
    at_once: usize,
    run: &Run<'_>,
    read: impl Fn(usize, usize, &mut dyn FnMut(&[T])) -> Result<()> + Sync,
) -> Result<Tensor> {
    let (count, width) = x.dims2()?;
    let x = x.contiguous()?;
    let mut y = vec![T::zero(); count * out];
    with_elements(&x, |x| {
        let columns = Columns::new(&mut y, out);
        let part = |i: usize| {
            let (start, end) = (i * at_once, out.min((i + 1) * at_once));
            read(start, end, &mut |w: &[T]| {
                assert_eq!(w.len(), (end - start) * width, "a part is exactly its rows");
                // SAFETY: parts begin `at_once` columns apart, each is computed once, and none has more than those.
                unsafe { columns.multiply(x, w, width, start, [T::zero(), T::one()]) }
            })
        };
        match out.div_ceil(at_once) {
            1 => part(0),
            parts => run(parts, &part),
        }
    })?;
    Tensor::from_vec(y, (count, out), &Device::Cpu)
}

/// A product with one row, which the matrix library computes on one thread.
fn one_row<T: WithDType>(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let (out, width) = w.dims2()?;
    let threads = threads().min(out * width / WORTH_A_THREAD).max(1);
    let rows = out.div_ceil(threads).next_multiple_of(16);
    let input = x.to_dtype(w.dtype())?;
    let y = with_elements::<T, _>(w, |w| {
        by_columns::<T>(&input, out, rows, &on_rayon, |start, end, columns| {
            columns(&w[start * width..end * width]);
            Ok(())
        })
    })?;
    y.to_dtype(x.dtype())
}

/// Rows of activations from which it is faster on the CPU to widen a quantized matrix than to multiply with it as it is.
///
/// Measured with one thread of a plain x86-64 build, on a matrix of 3072 × 576; milliseconds as it is / widened, the
/// latter with f32 activations instead of 8-bit ones:
///
/// | rows | Q4_0 | Q4_1 | Q5_0 | Q8_0 |
/// |---|---|---|---|---|
/// | 1 | 0.18 / 0.72 | 0.83 / 0.70 | 1.09 / 1.15 | 0.18 / 0.72 |
/// | 4 | 0.71 / 1.24 | 3.4 / 1.25 | 4.4 / 1.6 | 0.68 / 1.27 |
/// | 8 | 1.44 / 1.42 | 6.7 / 1.5 | 8.6 / 1.8 | 1.35 / 1.43 |
/// | 256 | 47 / 9.5 | 209 / 9.4 | 285 / 9.8 | 45 / 9.6 |
///
/// and 576 × 1536, where candle has kernels for Q8_0, Q4_K and Q6_K that look for AVX-512 as they run:
///
/// | rows | Q2_K | Q3_K | Q5_K | Q8_0 | Q4_K | Q6_K |
/// |---|---|---|---|---|---|---|
/// | 64 | 1.6 / 1.6 | 2.1 / 2.0 | 2.3 / 2.1 | 0.63 / 1.5 | 0.58 / 1.5 | 0.72 / 1.6 |
/// | 256 | 6.6 / 4.8 | 11 / 5.2 | 9.1 / 5.1 | 2.5 / 4.5 | 2.3 / 4.6 | 3.0 / 4.7 |
fn widen_from(w: &QTensor) -> Result<usize> {
    let (out, width) = w.shape().dims2()?;
    // What candle repacks (`repack_x86::select`).
    let packed = out.is_multiple_of(16) && width.is_multiple_of(256);
    Ok(match w.dtype() {
        GgmlDType::Q4_1 => 1,
        // candle asserts an even number of blocks where it is compiled with assertions.
        GgmlDType::Q5_0 | GgmlDType::Q5_1 => {
            if width.is_multiple_of(64) {
                2
            } else {
                1
            }
        }
        // Elsewhere candle has kernels for the others.
        _ if !cfg!(target_arch = "x86_64") => 64,
        // Without AVX2, none for any of them.
        _ if !with_avx() => 2,
        GgmlDType::Q4K | GgmlDType::Q6K | GgmlDType::Q8_0 if packed => usize::MAX,
        GgmlDType::Q4_0 | GgmlDType::Q8_0 => 8,
        _ => 64,
    })
}

/// Rows of `width` elements of one tile, of a share of so many rows.
pub(super) fn tile_rows(width: usize, share: usize) -> usize {
    // Whole registers of the product.
    (TILE / width).clamp(1, share.max(1)).next_multiple_of(16)
}

/// Bytes that widened tiles of matrices of at most `width` columns take at one time.
pub(crate) fn tile_bytes(width: usize) -> u64 {
    let widest = tile_rows(width, usize::MAX) * width;
    (threads() * widest.max(TILE) * size_of::<f32>()) as u64
}

#[cfg(test)]
mod tests;
