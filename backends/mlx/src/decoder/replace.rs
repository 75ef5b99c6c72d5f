//! Tensors of a decoder that are read anew, while what was made with those before goes on with them.

use std::collections::{BTreeSet, HashSet};

use llm_local_backend_common::{
    decoder::{AROUND, Loading, check_tied, refuse_replacement, touched},
    worker::NewTensors,
};
use llm_local_core::{Result, model::ModuleRole as R};
use mlx_rs::Array;

use super::{
    Adapted, Decoder,
    attention::Projections,
    layer::{GateUp, Layer},
    linear::Linear,
    load::{gate_up, projections},
    network::Network,
    norm::RmsNorm,
    weights::Weights,
};
use crate::support::Supported;

impl Decoder {
    /// Reads the modules anew whose tensors are named, all that is held in one with them included, and replaces them once
    /// all are there. Returns the network before.
    ///
    /// # Errors
    /// [`llm_local_core::Error::Unsupported`] for tensors with which other parts of the model would be held otherwise,
    /// [`llm_local_core::Error::InvalidSpec`] for a name that is none of the model's; else as [`Decoder::load`].
    pub(super) fn replace(&mut self, new: &NewTensors) -> Result<Adapted> {
        let s = self.supported.with_tensors(&new.info).map_err(|why| refuse_replacement(&self.supported.id, &why))?;
        let touched = touched(&s.id, &s.decoder, s.layout, &new.names)?;
        if touched.contains(&(R::Embedding, 0)) {
            check_tied(&s.decoder, s.layout, &*new.tensors)?;
        }
        let weights = Weights::new(&s, &*new.tensors, Loading::quiet(new.cancel.clone()));
        let mut replacing = Replacing { s: &s, weights, touched, before: 0 };
        let mut network = self.base.clone();
        replacing.network(&mut network)?;
        let (before, after) = (replacing.before, replacing.weights.bytes());
        self.weight_bytes = self.weight_bytes - before + after;
        self.supported = s;
        Ok(Adapted::new(std::mem::replace(&mut self.base, network), before))
    }
}

/// A network of which some modules are read anew.
struct Replacing<'a> {
    s: &'a Supported,
    weights: Weights<'a>,
    touched: HashSet<(R, usize)>,
    /// Bytes of what was replaced so far.
    before: u64,
}

impl Replacing<'_> {
    /// In the order in which a load reads: a source may depend on it.
    fn network(&mut self, network: &mut Network) -> Result<()> {
        let Network { embedding, layers, norm, head } = network;
        if self.has(&[R::Embedding], 0) {
            self.before += embedding.weight.bytes();
            embedding.weight = self.weights.matrix(&[R::Embedding], 0)?;
            if self.s.decoder.tied_embeddings {
                head.weight = embedding.weight.clone();
            }
        }
        if self.has(&[R::FinalNorm], 0) {
            self.norm(norm, R::FinalNorm, 0)?;
        }
        if self.has(&[R::Head], 0) {
            self.linear(head, R::Head, 0)?;
        }
        let in_layers = self.touched.iter().filter(|(role, _)| !AROUND.contains(role));
        let in_layers: BTreeSet<usize> = in_layers.map(|(_, layer)| *layer).collect();
        in_layers.into_iter().try_for_each(|i| self.layer(&mut layers[i], i))
    }

    fn layer(&mut self, layer: &mut Layer, i: usize) -> Result<()> {
        if self.has(&[R::Query, R::Key, R::Value, R::QueryKeyValue], i) {
            let attention = &mut layer.attention.projections;
            self.before += match &*attention {
                Projections::Fused(fused) => bytes(fused),
                Projections::Split { q, k, v } => bytes(q) + bytes(k) + bytes(v),
            };
            *attention = projections(&self.weights, self.s, i)?;
        }
        if self.has(&[R::AttentionOutput], i) {
            self.linear(&mut layer.attention.output, R::AttentionOutput, i)?;
        }
        if self.has(&[R::Gate, R::Up, R::GateUp], i) {
            self.before += match &layer.mlp.gate_up {
                GateUp::Fused(both) => bytes(both),
                GateUp::Split { gate, up } => bytes(gate) + bytes(up),
            };
            layer.mlp.gate_up = gate_up(&self.weights, self.s, i)?;
        }
        if self.has(&[R::Down], i) {
            self.linear(&mut layer.mlp.down, R::Down, i)?;
        }
        for (role, norm) in layer.norms() {
            if self.has(&[role], i) {
                self.norm(norm, role, i)?;
            }
        }
        Ok(())
    }

    fn has(&self, roles: &[R], layer: usize) -> bool {
        roles.iter().any(|role| self.touched.contains(&(*role, layer)))
    }

    fn linear(&mut self, linear: &mut Linear, role: R, layer: usize) -> Result<()> {
        self.before += bytes(linear);
        *linear = self.weights.linear(role, layer)?;
        Ok(())
    }

    fn norm(&mut self, norm: &mut RmsNorm, role: R, layer: usize) -> Result<()> {
        self.before += norm.weight.nbytes() as u64;
        *norm = RmsNorm::new(self.weights.norm(role, layer)?, self.s.decoder.norm_eps);
        Ok(())
    }
}

fn bytes(linear: &Linear) -> u64 {
    linear.weight.bytes() + linear.bias.as_ref().map_or(0, |bias: &Array| bias.nbytes() as u64)
}
