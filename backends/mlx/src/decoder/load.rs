//! From tensors by name to a decoder.

use llm_local_backend_common::{
    decoder::{Loading, Rotary, STACKED, check_tied},
    worker::yield_now,
};
use llm_local_core::{
    Result, TensorSource,
    model::{ModuleRole as R, NormPlacement},
};

use super::{
    Decoder,
    attention::{Attention, Projections},
    embedding::Embedding,
    layer::{GateUp, Layer, Mlp},
    linear::Linear,
    network::Network,
    norm::RmsNorm,
    weights::{Weights, read_f32},
};
use crate::{errors::load_error, support::Supported};

impl Decoder {
    /// Reads every tensor of the model once, in the same order for each load, and lets others on the thread have a turn behind
    /// each matrix. Caches will hold up to `context_length` tokens.
    ///
    /// # Errors
    /// What reading gave, [`llm_local_core::Error::LoadFailed`], or cancellation between two tensors.
    pub(crate) async fn load(
        s: &Supported,
        source: &dyn TensorSource,
        context_length: usize,
        loading: Loading,
    ) -> Result<Self> {
        let c = &s.decoder;
        let rotary = Rotary::resolve(c, &s.id, &mut |name| read_f32(source, name))?;
        check_tied(c, s.layout, source)?;
        let weights = Weights::new(s, source, loading);
        let embedding = weights.matrix(&[R::Embedding], 0)?;
        yield_now().await;
        let norm = RmsNorm::new(weights.norm(R::FinalNorm, 0)?, c.norm_eps);
        let head = if c.tied_embeddings { Linear::new(embedding.clone(), None) } else { weights.linear(R::Head, 0)? };
        let mut layers = Vec::with_capacity(c.layers);
        for i in 0..c.layers {
            layers.push(layer(&weights, s, i).await?);
        }
        let base = Network { embedding: Embedding::new(embedding, c.embedding_scale), layers, norm, head };
        Self::new(s.clone(), base, rotary, context_length, weights.bytes())
            .map_err(|e| load_error(&s.id, "MLX could not make a decoder of its weights", e))
    }
}

async fn layer(weights: &Weights<'_>, s: &Supported, i: usize) -> Result<Layer> {
    let c = &s.decoder;
    let norm = |role, wanted: bool| -> Result<Option<RmsNorm>> {
        wanted.then(|| weights.norm(role, i).map(|w| RmsNorm::new(w, c.norm_eps))).transpose()
    };
    let (before, after) = (NormPlacement::before(c.norms), NormPlacement::after(c.norms));
    let before_attention = norm(R::AttentionNorm, before)?;
    let projections = projections(weights, s, i)?;
    yield_now().await;
    let qk_norm = match (c.qk_norm, norm(R::QueryNorm, c.qk_norm.is_some())?) {
        (Some(kind), Some(q)) => norm(R::KeyNorm, true)?.map(|k| (kind, q, k)),
        _ => None,
    };
    let output = weights.linear(R::AttentionOutput, i)?;
    yield_now().await;
    let after_attention = norm(R::PostAttentionNorm, after)?;
    let before_mlp = norm(R::MlpNorm, before)?;
    let gate_up = gate_up(weights, s, i)?;
    yield_now().await;
    let down = weights.linear(R::Down, i)?;
    yield_now().await;
    Ok(Layer {
        before_attention,
        attention: Attention {
            projections,
            output,
            qk_norm,
            heads: c.heads,
            scale: c.attention_scale,
            soft_cap: c.attention_soft_cap,
        },
        after_attention,
        before_mlp,
        mlp: Mlp { gate_up, down, activation: c.activation },
        after_mlp: norm(R::PostMlpNorm, after)?,
        residual_scale: c.residual_scale,
    })
}

/// Queries, keys and values, in one matrix where they are held alike.
pub(super) fn projections(weights: &Weights<'_>, s: &Supported, i: usize) -> Result<Projections> {
    if s.decoder.fused_projections {
        return weights.linear(R::QueryKeyValue, i).map(Projections::Fused);
    }
    Ok(match weights.stacked(STACKED[0], i)? {
        Some(fused) => Projections::Fused(fused),
        None => Projections::Split {
            q: weights.linear(R::Query, i)?,
            k: weights.linear(R::Key, i)?,
            v: weights.linear(R::Value, i)?,
        },
    })
}

/// Gate and up, in one matrix where they are held alike.
pub(super) fn gate_up(weights: &Weights<'_>, s: &Supported, i: usize) -> Result<GateUp> {
    if s.decoder.fused_projections {
        return weights.linear(R::GateUp, i).map(GateUp::Fused);
    }
    Ok(match weights.stacked(STACKED[1], i)? {
        Some(fused) => GateUp::Fused(fused),
        None => GateUp::Split { gate: weights.linear(R::Gate, i)?, up: weights.linear(R::Up, i)? },
    })
}
