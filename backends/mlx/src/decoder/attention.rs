//! Attention: grouped queries over cached keys and values, without repeating a head of them.

use llm_local_core::model::QkNorm;
use mlx_rs::{Array, error::Result};

use super::{
    cache::{Dimensions, LayerCache},
    linear::Linear,
    norm::RmsNorm,
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
