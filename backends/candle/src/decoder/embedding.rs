//! Token ids to the residual stream.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor};

use super::{linear::Matrix, side::SidePath};

/// The embedding, shape (vocab, hidden). A tied head holds the same matrix.
#[derive(Debug, Clone)]
pub(crate) struct Embedding {
    pub(super) weight: Matrix,
    scale: f64,
    /// Adapters beside the matrix.
    pub(super) side: Option<Arc<SidePath>>,
}

impl Embedding {
    /// Rows of `weight`, times `scale`.
    pub(crate) fn new(weight: Matrix, scale: f64) -> Self {
        Self { weight, scale, side: None }
    }

    /// Rows of `ids`, shape (n), as (n, hidden) in `dtype`. Quantized rows are widened as they are looked up.
    pub(crate) fn forward(&self, ids: &Tensor, dtype: DType) -> Result<Tensor> {
        let rows = match &self.weight {
            Matrix::Dense(w) => w.index_select(ids, 0)?,
            Matrix::Quantized { blocks, .. } => blocks.embedding(ids)?,
        };
        let mut rows = rows.to_dtype(dtype)?;
        if let Some(side) = &self.side {
            rows = side.beside_rows(rows, ids)?;
        }
        if self.scale == 1.0 { Ok(rows) } else { rows * self.scale }
    }
}
