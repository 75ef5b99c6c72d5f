//! Tensors of a decoder that are read anew, while what was made with those before goes on with them.

use std::{
    collections::{BTreeSet, HashSet},
    sync::atomic::{AtomicU64, Ordering},
};

use candle_core::Tensor;
use llm_local_backend_common::{
    decoder::{AROUND, Loading, check_tied, refuse_replacement, touched},
    worker::NewTensors,
};
use llm_local_core::{Result, model::ModuleRole as R};

use super::{
    Adapted, Decoder,
    attention::Projections,
    layer::{GateUp, Layer},
    linear::{Linear, Matrix},
    load::{gate_up, projections, threads_for},
    network::Network,
    norm::RmsNorm,
    readers,
    weights::Weights,
};
use crate::support::Supported;

impl Decoder {
    /// Reads the modules anew whose tensors are named, all that is held in one with them included, and replaces them once
    /// all are there, on as many threads as [`Decoder::load`]. Returns the network before.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for tensors with which other parts of the model would be held otherwise,
    /// [`Error::InvalidSpec`] for a name that is none of the model's; else as [`Decoder::load`].
    pub(super) fn replace(&mut self, new: &NewTensors) -> Result<Adapted> {
        let s = self.supported.with_tensors(&new.info).map_err(|why| refuse_replacement(&self.supported.id, &why))?;
        let touched = touched(&s.id, &s.decoder, s.layout, &new.names)?;
        if touched.contains(&(R::Embedding, 0)) {
            check_tied(&s.decoder, s.layout, &*new.tensors)?;
        }
        let weights = Weights::new(&s, &*new.tensors, Loading::quiet(new.cancel.clone()));
        let replacing = Replacing { s: &s, weights, touched, before: AtomicU64::new(0) };
        let mut network = self.base.clone();
        replacing.network(&mut network, threads_for(&*new.tensors, &s.device))?;
        let (before, after) = (replacing.before.into_inner(), replacing.weights.bytes());
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
    /// Bytes of what was replaced so far, counted as the load counts them.
    before: AtomicU64,
}

impl Replacing<'_> {
    fn network(&self, network: &mut Network, threads: usize) -> Result<()> {
        let Network { embedding, layers, norm, head } = network;
        let around = || {
            if self.has(&[R::Embedding], 0) {
                self.gone(matrix_bytes(&embedding.weight));
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
            Ok(())
        };
        let in_layers = self.touched.iter().filter(|(role, _)| !AROUND.contains(role));
        let touched: BTreeSet<usize> = in_layers.map(|(_, layer)| *layer).collect();
        let touched: Vec<usize> = touched.into_iter().collect();
        let replaced = |i: usize| {
            let mut layer = layers[touched[i]].clone();
            self.layer(&mut layer, touched[i]).map(|()| layer)
        };
        let ((), new) = readers::read(threads, around, touched.len(), replaced)?;
        for (i, layer) in touched.into_iter().zip(new) {
            layers[i] = layer;
        }
        Ok(())
    }

    /// Counts bytes of what is replaced.
    fn gone(&self, bytes: u64) {
        self.before.fetch_add(bytes, Ordering::Relaxed);
    }

    fn layer(&self, layer: &mut Layer, i: usize) -> Result<()> {
        if self.has(&[R::Query, R::Key, R::Value, R::QueryKeyValue], i) {
            let attention = &mut layer.attention.projections;
            self.gone(match &*attention {
                Projections::Fused(fused) => bytes(fused),
                Projections::Split { q, k, v } => bytes(q) + bytes(k) + bytes(v),
            });
            *attention = projections(&self.weights, self.s, i)?;
        }
        if self.has(&[R::AttentionOutput], i) {
            self.linear(&mut layer.attention.output, R::AttentionOutput, i)?;
        }
        if self.has(&[R::Gate, R::Up, R::GateUp], i) {
            self.gone(match &layer.mlp.gate_up {
                GateUp::Fused(both) => bytes(both),
                GateUp::Split { gate, up } => bytes(gate) + bytes(up),
            });
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

    fn linear(&self, linear: &mut Linear, role: R, layer: usize) -> Result<()> {
        self.gone(bytes(linear));
        *linear = self.weights.linear(role, layer)?;
        Ok(())
    }

    fn norm(&self, norm: &mut RmsNorm, role: R, layer: usize) -> Result<()> {
        self.gone(vector_bytes(&norm.weight));
        *norm = RmsNorm::new(self.weights.norm(role, layer)?, self.s.decoder.norm_eps);
        Ok(())
    }
}

fn bytes(linear: &Linear) -> u64 {
    matrix_bytes(&linear.weight) + linear.bias.as_ref().map_or(0, vector_bytes)
}

fn matrix_bytes(matrix: &Matrix) -> u64 {
    match matrix {
        Matrix::Dense(w) => (w.elem_count() * w.dtype().size_in_bytes()) as u64,
        Matrix::Quantized { blocks, .. } => blocks.storage_size_in_bytes() as u64,
    }
}

/// Of a norm or bias, which is counted as it is read: in f32.
fn vector_bytes(v: &Tensor) -> u64 {
    (v.elem_count() * size_of::<f32>()) as u64
}
