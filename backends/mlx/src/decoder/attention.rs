//! Attention: grouped queries over cached keys and values, without repeating a head of them.

use llm_local_core::model::QkNorm;
use mlx_rs::{
    Array,
    error::{Exception, Result},
    fast::{ScaledDotProductAttentionMask, scaled_dot_product_attention},
    ops::{indexing::TryIndexOp, quantized_matmul, softmax_axis},
};

use super::{
    cache::{Dimensions, Kept, KvForm, LayerCache},
    linear::Linear,
    mask::Mask,
    norm::RmsNorm,
    numbers::{int, ints, length, scaled, soft_capped},
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
    /// What the chunk's queries do not see, if they are several.
    pub(crate) mask: Option<Mask>,
    /// Of the first query.
    pub(crate) position: usize,
}

/// A projection, shape (rows, all · head_dim), as (1, all, rows, head_dim).
fn heads(x: &Array, head_dim: usize) -> Result<Array> {
    let (rows, all) = (length(x, 0), length(x, 1) / head_dim);
    if rows == 1 {
        return x.reshape(&ints([1, all, 1, head_dim]));
    }
    x.reshape(&ints([1, rows, all, head_dim]))?.transpose_axes(&[0, 2, 1, 3])
}

/// `count` heads of `x`, shape (1, all, rows, head_dim), from head `first` on.
fn some(x: &Array, first: usize, count: usize) -> Result<Array> {
    x.try_index((.., int(first)..int(first + count)))
}

impl Attention {
    /// The block's output for `x`, shape (queries, hidden); the keys and values of these positions go into `cache`.
    /// With `last` only the last query's output is computed.
    pub(crate) fn forward(
        &self,
        x: &Array,
        view: &View,
        cache: &mut LayerCache,
        expected: usize,
        last: bool,
        of: &Dimensions,
    ) -> Result<Array> {
        let queries = length(x, 0);
        let (mut q, k, v) = self.project(x, &view.angles, of)?;
        cache.append(&k, &v, expected, of)?;
        let wanted = if last { 1 } else { queries };
        if wanted < queries {
            q = q.try_index((.., .., int(queries - wanted)..))?;
        }
        let [keys, values] = cache.seen(view.position + queries - wanted)?;
        // A single query sees all of these keys.
        let mask = view.mask.as_ref().filter(|_| wanted > 1);
        let mixed = match (&keys[..], &values[..]) {
            ([keys], [values]) if of.kernels && self.soft_cap.is_none() => self.by_kernel(&q, keys, values, mask)?,
            _ => self.by_products(&q, &keys, &values, mask, of)?,
        };
        let mixed = if wanted == 1 { mixed } else { mixed.transpose_axes(&[0, 2, 1, 3])? };
        let mixed = mixed.reshape(&ints([wanted, self.heads * of.head_dim]))?;
        self.output.forward(&mixed.as_dtype(of.activations)?)
    }

    /// What `q`, shape (1, heads, rows, head_dim), takes from keys and values of shape (1, kv_heads, seen, head_dim): the
    /// shape of `q`.
    fn by_kernel(&self, q: &Array, keys: &Array, values: &Array, mask: Option<&Mask>) -> Result<Array> {
        let mask = mask.map(|mask| match mask {
            Mask::Causal => ScaledDotProductAttentionMask::Causal,
            Mask::Added(mask) => ScaledDotProductAttentionMask::Array(mask),
        });
        scaled_dot_product_attention(q, keys, values, self.scale as f32, mask, None)
    }

    /// The same by products with keys and values as they are kept. Queries that share a head of keys are rows of one.
    fn by_products(
        &self,
        q: &Array,
        keys: &Kept,
        values: &Kept,
        mask: Option<&Mask>,
        of: &Dimensions,
    ) -> Result<Array> {
        let (rows, group) = (length(q, 2), self.heads / of.kv_heads);
        let q = scaled(q.clone(), self.scale)?.reshape(&ints([1, of.kv_heads, group * rows, of.head_dim]))?;
        let mut scores = soft_capped(product(&q, keys, true, of.kv)?, self.soft_cap)?;
        if let Some(mask) = mask {
            let Mask::Added(mask) = mask else {
                return Err(Exception::custom("a mask by name is for attention by MLX's kernel"));
            };
            let grouped = scores.shape().to_vec();
            let by_head = scores.reshape(&[1, int(self.heads), int(rows), grouped[3]])?;
            scores = by_head.add(mask)?.reshape(&grouped)?;
        }
        let mixed = product(&softmax_axis(scores, -1, true)?, values, false, of.kv)?;
        mixed.reshape(&ints([1, self.heads, rows, of.head_dim]))
    }

    /// Queries, keys and values, each of shape (1, heads, rows, head_dim); queries and keys normed and rotated.
    fn project(&self, x: &Array, angles: &Angles, of: &Dimensions) -> Result<(Array, Array, Array)> {
        let (h, kv, width) = (self.heads, of.kv_heads, of.head_dim);
        let (q, k, v) = match (&self.projections, &self.qk_norm) {
            (Projections::Fused(fused), Some((QkNorm::WholeProjection, q_norm, k_norm))) => {
                let all = fused.forward(x)?;
                let columns =
                    |first: usize, count: usize| all.try_index((.., int(first * width)..int((first + count) * width)));
                let (q, k) = (q_norm.forward(&columns(0, h)?)?, k_norm.forward(&columns(h, kv)?)?);
                (heads(&q, width)?, heads(&k, width)?, heads(&columns(h + kv, kv)?, width)?)
            }
            (Projections::Fused(fused), norm) => {
                let all = heads(&fused.forward(x)?, width)?;
                let v = some(&all, h + kv, kv)?;
                match norm {
                    Some((_, q_norm, k_norm)) => {
                        (q_norm.forward(&some(&all, 0, h)?)?, k_norm.forward(&some(&all, h, kv)?)?, v)
                    }
                    None => {
                        let turned = angles.rotate(&some(&all, 0, h + kv)?)?;
                        return Ok((some(&turned, 0, h)?, some(&turned, h, kv)?, v));
                    }
                }
            }
            (Projections::Split { q, k, v }, norm) => {
                let (q, k, v) = (q.forward(x)?, k.forward(x)?, heads(&v.forward(x)?, width)?);
                match norm {
                    Some((QkNorm::PerHead, q_norm, k_norm)) => {
                        (q_norm.forward(&heads(&q, width)?)?, k_norm.forward(&heads(&k, width)?)?, v)
                    }
                    Some((_, q_norm, k_norm)) => {
                        (heads(&q_norm.forward(&q)?, width)?, heads(&k_norm.forward(&k)?, width)?, v)
                    }
                    None => (heads(&q, width)?, heads(&k, width)?, v),
                }
            }
        };
        Ok((angles.rotate(&q)?, angles.rotate(&k)?, v))
    }
}

/// `x`, shape (1, kv_heads, rows, _), times `kept` or, where `transposed`, what that is transposed.
fn product(x: &Array, kept: &Kept, transposed: bool, kv: KvForm) -> Result<Array> {
    match (kv, &kept[..]) {
        (KvForm::Affine { bits, group_size }, [integers, scales, biases]) => {
            quantized_matmul(x, integers, scales, biases, transposed, group_size, bits)
        }
        (_, [floats]) if transposed => x.matmul(floats.swap_axes(2, 3)?),
        (_, [floats]) => x.matmul(floats),
        _ => Err(Exception::custom("keys or values of another form than the cache has")),
    }
}

#[cfg(test)]
mod tests;
