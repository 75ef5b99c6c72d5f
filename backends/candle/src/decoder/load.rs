//! From tensors by name to a decoder.

use candle_core::Device;
use llm_local_backend_common::decoder::{Loading, Rotary, STACKED, check_tied, window};
use llm_local_core::{
    Result, TensorSource,
    model::{ModuleRole as R, NormPlacement},
};

use super::{
    Decoder,
    attention::{Attention, Projections},
    cache::Dimensions,
    embedding::Embedding,
    layer::{GateUp, Layer, Mlp},
    linear::Linear,
    network::Network,
    norm::RmsNorm,
    product::threads,
    readers,
    weights::Weights,
};
use crate::{elements::read_f32, support::Supported};

impl Decoder {
    /// Reads every tensor of the model once; on the CPU on several threads, unless the source depends on the order. Caches
    /// will hold up to `context_length` tokens.
    ///
    /// # Errors
    /// What reading gave, [`llm_local_core::Error::LoadFailed`], or cancellation between two tensors.
    pub(crate) fn load(
        s: &Supported,
        source: &dyn TensorSource,
        context_length: usize,
        loading: Loading,
    ) -> Result<Self> {
        let c = &s.decoder;
        let mut read = |name: &str| read_f32(source, name);
        let rotary = Rotary::resolve(c, &s.id, &mut read)?;
        check_tied(c, s.layout, source)?;
        let weights = Weights::new(s, source, loading);
        let threads = threads_for(source, &s.device);
        let around = || {
            let embedding = weights.matrix(&[R::Embedding], 0)?;
            let norm = RmsNorm::new(weights.norm(R::FinalNorm, 0)?, c.norm_eps);
            let tied = || Linear::new(embedding.clone(), None);
            let head = if c.tied_embeddings { tied() } else { weights.linear(R::Head, 0)? };
            Ok((embedding, norm, head))
        };
        let ((embedding, norm, head), layers) = readers::read(threads, around, c.layers, |i| layer(&weights, s, i))?;
        Ok(Self {
            base: Network { embedding: Embedding::new(embedding, c.embedding_scale), layers, norm, head },
            config: c.clone(),
            supported: s.clone(),
            windows: window::of_layers(c),
            rotary,
            logit_scale: c.logit_scale,
            logit_soft_cap: c.logit_soft_cap,
            dimensions: Dimensions {
                kv_heads: c.kv_heads,
                head_dim: c.head_dim,
                context_length,
                dtype: s.activations,
                device: s.device.clone(),
            },
            vocab_size: c.vocab_size,
            weight_bytes: weights.bytes(),
        })
    }
}

/// Threads that read at most: more of them would mostly wait for memory, and each may hold a tensor more.
const MOST_READERS: usize = 8;

/// How many threads read. Copies to another device would go through its one queue.
pub(crate) fn reading_threads(device: &Device) -> usize {
    if device.is_cpu() { threads().min(MOST_READERS) } else { 1 }
}

/// How many threads read `source`.
pub(super) fn threads_for(source: &dyn TensorSource, device: &Device) -> usize {
    if source.depends_on_order() { 1 } else { reading_threads(device) }
}

fn layer(weights: &Weights<'_>, s: &Supported, i: usize) -> Result<Layer> {
    let c = &s.decoder;
    let norm = |weights: &Weights<'_>, role, wanted: bool| -> Result<Option<RmsNorm>> {
        wanted.then(|| weights.norm(role, i).map(|w| RmsNorm::new(w, c.norm_eps))).transpose()
    };
    let (before, after) = (NormPlacement::before(c.norms), NormPlacement::after(c.norms));
    let before_attention = norm(weights, R::AttentionNorm, before)?;
    let projections = projections(weights, s, i)?;
    let qk_norm = match (c.qk_norm, norm(weights, R::QueryNorm, c.qk_norm.is_some())?) {
        (Some(kind), Some(q)) => norm(weights, R::KeyNorm, true)?.map(|k| (kind, q, k)),
        _ => None,
    };
    let output = weights.linear(R::AttentionOutput, i)?;
    let after_attention = norm(weights, R::PostAttentionNorm, after)?;
    let before_mlp = norm(weights, R::MlpNorm, before)?;
    let gate_up = gate_up(weights, s, i)?;
    let down = weights.linear(R::Down, i)?;
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
        after_mlp: norm(weights, R::PostMlpNorm, after)?,
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
