//! Adapters beside a matrix on a GPU, with candle's products: one of each for all adapters together.

use candle_core::{DType, Device, Result, Tensor};
use llm_local_backend_common::decoder::adapters::{OnePair, Piece};

/// All pieces beside a matrix as one, in the type of the activations.
#[derive(Debug)]
pub(in super::super) struct OnDevice {
    /// All A, one below another, transposed: shape (in, ranks).
    a: Tensor,
    /// All scaled B transposed, each at its rows: shape (ranks, out).
    b: Tensor,
    /// Shape (out,).
    factors: Option<Tensor>,
}

impl OnDevice {
    /// `pieces` and `factors` beside a matrix of shape (out, in).
    pub(in super::super) fn new(
        (out, width): (usize, usize),
        pieces: &[Piece],
        factors: Option<&[f32]>,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let OnePair { rank, a, b } = OnePair::new(pieces, (out, width));
        let made = |v: Vec<f32>, shape: (usize, usize)| Tensor::from_vec(v, shape, device)?.to_dtype(dtype);
        Ok(Self {
            a: made(a, (rank, width))?.t()?.contiguous()?,
            b: made(b, (rank, out))?,
            factors: factors.map(|f| Tensor::new(f, device)?.to_dtype(dtype)).transpose()?,
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        let bytes = |t: &Tensor| (t.elem_count() * t.dtype().size_in_bytes()) as u64;
        bytes(&self.a) + bytes(&self.b) + self.factors.as_ref().map_or(0, bytes)
    }

    pub(super) fn beside(&self, y: Tensor, x: &Tensor) -> Result<Tensor> {
        let y = match &self.factors {
            Some(factors) => y.broadcast_mul(factors)?,
            None => y,
        };
        if self.a.dim(1)? == 0 { Ok(y) } else { y + x.matmul(&self.a)?.matmul(&self.b)? }
    }

    pub(super) fn beside_rows(&self, y: Tensor, ids: &Tensor) -> Result<Tensor> {
        let y = match &self.factors {
            Some(factors) => y.broadcast_mul(&factors.index_select(ids, 0)?.unsqueeze(1)?)?,
            None => y,
        };
        if self.a.dim(1)? == 0 {
            return Ok(y);
        }
        let b = self.b.index_select(ids, 1)?.t()?.contiguous()?;
        y + b.matmul(&self.a.t()?.contiguous()?)?
    }
}
