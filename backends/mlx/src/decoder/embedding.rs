//! Token ids to the residual stream.

use std::rc::Rc;

use mlx_rs::{Array, Dtype, error::Result};

use super::{linear::Matrix, numbers::scaled, side::SidePath};

/// The embedding, shape (vocab, hidden). A tied head holds the same matrix.
#[derive(Debug, Clone)]
pub(crate) struct Embedding {
    pub(crate) weight: Matrix,
    scale: f64,
    /// Adapters beside the matrix.
    pub(crate) side: Option<Rc<SidePath>>,
}

impl Embedding {
    /// Rows of `weight`, times `scale`.
    pub(crate) fn new(weight: Matrix, scale: f64) -> Self {
        Self { weight, scale, side: None }
    }

    /// Rows of `ids`, u32 of shape (n), as (n, hidden) in `dtype`.
    pub(crate) fn forward(&self, ids: &Array, dtype: Dtype) -> Result<Array> {
        let mut rows = self.weight.rows(ids)?.as_dtype(dtype)?;
        if let Some(side) = &self.side {
            rows = side.beside_rows(rows, ids)?;
        }
        scaled(rows, self.scale)
    }
}
