//! Token ids to the residual stream.

use candle_core::{DType, Result, Tensor};

use super::linear::Matrix;

/// The embedding, shape (vocab, hidden). A tied head holds the same matrix.
#[derive(Debug, Clone)]
pub(crate) struct Embedding {
    weight: Matrix,
    scale: f64,
}

impl Embedding {
    /// Rows of `weight`, times `scale`.
    pub(crate) fn new(weight: Matrix, scale: f64) -> Self {
        Self { weight, scale }
    }

    /// Rows of `ids`, shape (n), as (n, hidden) in `dtype`. Quantized rows are widened as they are looked up.
    pub(crate) fn forward(&self, ids: &Tensor, dtype: DType) -> Result<Tensor> {
        let rows = match &self.weight {
            Matrix::Dense(w) => w.index_select(ids, 0)?,
            Matrix::Quantized { blocks, .. } => blocks.embedding(ids)?,
        };
        let rows = rows.to_dtype(dtype)?;
        if self.scale == 1.0 { Ok(rows) } else { rows * self.scale }
    }
}
