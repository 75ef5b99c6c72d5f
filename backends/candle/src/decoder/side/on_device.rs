//! Adapters beside a matrix on a GPU, with candle's products: one of each for all adapters together.

use candle_core::{DType, Device, Result, Tensor};

use super::Piece;

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
        let ranks = pieces.iter().map(|p| p.rank).sum();
        let mut b = vec![0f32; ranks * out];
        let mut a = Vec::with_capacity(ranks * width);
        let mut rank = 0;
        for piece in pieces {
            a.extend_from_slice(&piece.a.all());
            for row in piece.b.all().chunks_exact(piece.rows.len()) {
                let at = &mut b[rank * out..(rank + 1) * out][piece.rows.clone()];
                at.iter_mut().zip(row).for_each(|(to, from)| *to = from * piece.scale);
                rank += 1;
            }
        }
        let made = |v: Vec<f32>, shape: (usize, usize)| Tensor::from_vec(v, shape, device)?.to_dtype(dtype);
        Ok(Self {
            a: made(a, (ranks, width))?.t()?.contiguous()?,
            b: made(b, (ranks, out))?,
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
