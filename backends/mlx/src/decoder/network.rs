//! What a step computes: matrices and norms. A clone shares the weights, and may have adapters beside them.

use llm_local_core::model::ModuleRole as R;

use super::{
    attention::Projections,
    embedding::Embedding,
    layer::{GateUp, Layer},
    linear::Linear,
    norm::RmsNorm,
};

/// The matrices and norms of a decoder.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    pub(crate) embedding: Embedding,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: RmsNorm,
    pub(crate) head: Linear,
}

impl Layer {
    /// Its linear layers, each with the modules whose rows it has in this order. `fused` says that the model itself has
    /// queries, keys and values in one module, and gate and up.
    pub(crate) fn linears(&mut self, fused: bool) -> Vec<(&'static [R], &mut Linear)> {
        let mut all: Vec<(&'static [R], &mut Linear)> = Vec::with_capacity(7);
        match &mut self.attention.projections {
            Projections::Fused(all_three) => {
                all.push((if fused { &[R::QueryKeyValue] } else { &[R::Query, R::Key, R::Value] }, all_three));
            }
            Projections::Split { q, k, v } => {
                all.push((&[R::Query], q));
                all.push((&[R::Key], k));
                all.push((&[R::Value], v));
            }
        }
        all.push((&[R::AttentionOutput], &mut self.attention.output));
        match &mut self.mlp.gate_up {
            GateUp::Fused(both) => all.push((if fused { &[R::GateUp] } else { &[R::Gate, R::Up] }, both)),
            GateUp::Split { gate, up } => {
                all.push((&[R::Gate], gate));
                all.push((&[R::Up], up));
            }
        }
        all.push((&[R::Down], &mut self.mlp.down));
        all
    }

    /// Its norms.
    pub(crate) fn norms(&mut self) -> Vec<(R, &mut RmsNorm)> {
        let mut all: Vec<(R, &mut RmsNorm)> = Vec::with_capacity(6);
        let around = [
            (R::AttentionNorm, &mut self.before_attention),
            (R::PostAttentionNorm, &mut self.after_attention),
            (R::MlpNorm, &mut self.before_mlp),
            (R::PostMlpNorm, &mut self.after_mlp),
        ];
        all.extend(around.into_iter().filter_map(|(role, norm)| norm.as_mut().map(|norm| (role, norm))));
        if let Some((_, q, k)) = &mut self.attention.qk_norm {
            all.extend([(R::QueryNorm, q), (R::KeyNorm, k)]);
        }
        all
    }
}
