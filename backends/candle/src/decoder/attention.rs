//! Attention: grouped queries over cached keys and values, without repeating a head of them.

use candle_core::{Result, Tensor};
use candle_nn::ops::softmax_last_dim;
use llm_local_core::model::QkNorm;

use super::{
    cache::{Dimensions, LayerCache},
    linear::Linear,
    norm::RmsNorm,
    rotary::Angles,
};

/// The projections to queries, keys and values.
#[derive(Debug, Clone)]
pub(crate) enum Projections {
    /// One matrix, with the rows of queries, keys and values in this order.
    Fused(Linear),
    /// Three.
    Split {
        /// Queries.
        q: Linear,
        /// Keys.
        k: Linear,
        /// Values.
        v: Linear,
    },
}

/// The attention block of a layer.
#[derive(Debug, Clone)]
pub(crate) struct Attention {
    pub(crate) projections: Projections,
    pub(crate) output: Linear,
    /// Norms of queries and keys.
    pub(crate) qk_norm: Option<(QkNorm, RmsNorm, RmsNorm)>,
    pub(crate) heads: usize,
    /// What scores are multiplied by.
    pub(crate) scale: f64,
    pub(crate) soft_cap: Option<f64>,
}

/// What one kind of layer shares within a step: full attention, or a window.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) angles: Angles,
    /// Shape (queries, keys), added to the scores.
    pub(crate) mask: Option<Tensor>,
}

/// Columns of a projection: (rows, all · head_dim), of which `count` heads from `first` on, as (count, rows, head_dim).
fn heads(x: &Tensor, first: usize, count: usize, head_dim: usize) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    if rows == 1 {
        return x.reshape((width / head_dim, 1, head_dim))?.narrow(0, first, count);
    }
    x.reshape((rows, width / head_dim, head_dim))?.narrow(1, first, count)?.transpose(0, 1)?.contiguous()
}

impl Attention {
    /// The block's output for `x`, shape (queries, hidden); the keys and values of these positions go into `cache`.
    /// With `last` only the last query's output is computed.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        view: &View,
        cache: &mut LayerCache,
        expected: usize,
        last: bool,
        of: &Dimensions,
    ) -> Result<Tensor> {
        let (queries, _) = x.dims2()?;
        let (kv_heads, width) = (of.kv_heads, of.head_dim);
        let (q, k, v) = self.project(x, &view.angles, of)?;
        let (keys, values) = cache.append(&k, &v, expected, of)?;
        let wanted = if last { 1 } else { queries };
        let q = q.narrow(1, queries - wanted, wanted)?;
        // Queries that share a head of keys are rows of one product.
        let group = self.heads / kv_heads;
        let q = (q * self.scale)?.reshape((kv_heads, group * wanted, width))?;
        let mut scores = q.matmul(&keys.t()?)?;
        if let Some(cap) = self.soft_cap {
            scores = ((scores * (1.0 / cap))?.tanh()? * cap)?;
        }
        if let Some(mask) = view.mask.as_ref().filter(|_| wanted > 1) {
            let (_, seen) = mask.dims2()?;
            scores = scores.reshape((self.heads, wanted, seen))?.broadcast_add(mask)?.reshape((
                kv_heads,
                group * wanted,
                seen,
            ))?;
        } else if let Some(mask) = &view.mask {
            // The last query of a chunk sees fewer keys than the chunk does.
            scores = scores.broadcast_add(&mask.narrow(0, queries - 1, 1)?)?;
        }
        let mixed = softmax_last_dim(&scores)?.matmul(&values)?;
        let mixed =
            mixed.reshape((self.heads, wanted, width))?.transpose(0, 1)?.reshape((wanted, self.heads * width))?;
        self.output.forward(&mixed)
    }

    /// Queries, keys and values, each of shape (heads, rows, head_dim); queries and keys normed and rotated.
    fn project(&self, x: &Tensor, angles: &Angles, of: &Dimensions) -> Result<(Tensor, Tensor, Tensor)> {
        let (h, kv, width) = (self.heads, of.kv_heads, of.head_dim);
        let (q, k, v) = match (&self.projections, &self.qk_norm) {
            (Projections::Fused(fused), None) => {
                let all = fused.forward(x)?;
                let turned = angles.rotate(&heads(&all, 0, h + kv, width)?)?;
                return Ok((turned.narrow(0, 0, h)?, turned.narrow(0, h, kv)?, heads(&all, h + kv, kv, width)?));
            }
            (Projections::Fused(fused), Some(_)) => {
                let all = fused.forward(x)?;
                let columns = |first: usize, count: usize| all.narrow(1, first * width, count * width)?.contiguous();
                (columns(0, h)?, columns(h, kv)?, columns(h + kv, kv)?)
            }
            (Projections::Split { q, k, v }, _) => (q.forward(x)?, k.forward(x)?, v.forward(x)?),
        };
        let v = heads(&v, 0, kv, width)?;
        let (q, k) = match &self.qk_norm {
            Some((QkNorm::PerHead, q_norm, k_norm)) => {
                (q_norm.forward(&heads(&q, 0, h, width)?)?, k_norm.forward(&heads(&k, 0, kv, width)?)?)
            }
            Some((_, q_norm, k_norm)) => {
                (heads(&q_norm.forward(&q)?, 0, h, width)?, heads(&k_norm.forward(&k)?, 0, kv, width)?)
            }
            None => (heads(&q, 0, h, width)?, heads(&k, 0, kv, width)?),
        };
        Ok((angles.rotate(&q)?, angles.rotate(&k)?, v))
    }
}
