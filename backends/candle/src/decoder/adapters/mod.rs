//! A set of adapters beside a model: its network with low-rank pairs beside the matrices, and with tensors of their own
//! where an adapter replaces one.
//!
//! | module | what it holds |
//! |---|---|
//! | `replaced` | tensors of which an adapter replaces all or some rows |
//! | `beside` | low-rank pairs, and DoRA's norms |
//!
//! Everything is in the names and in the order of the Hugging Face layout, which is that of the decoder's matrices
//! whatever the base's own layout is.

mod beside;
mod replaced;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use llm_local_backend_common::decoder::adapters::{Changes, Plan, references};
use llm_local_core::{
    AdapterSet, Result,
    model::{Layout, ModuleRole as R},
};

use super::{
    Decoder,
    linear::{Linear, Matrix},
    network::Network,
    norm::RmsNorm,
    side::SidePath,
};
use crate::{backend::NAME, errors::adapter_error};

/// A model with a set of adapters beside its weights.
#[derive(Debug)]
pub(crate) struct Adapted {
    network: Network,
    bytes: u64,
}

impl Adapted {
    /// `network`, which takes `bytes` beside the base.
    pub(super) fn new(network: Network, bytes: u64) -> Self {
        Self { network, bytes }
    }

    pub(super) fn network(&self) -> &Network {
        &self.network
    }

    /// Bytes that it takes beside the base.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Decoder {
    /// The model with `set` beside its weights.
    ///
    /// # Errors
    /// [`llm_local_core::Error::AdapterMergeFailed`] that names the adapter and what of it this model does not have,
    /// has in another shape, or cannot run beside its weights.
    pub(super) fn with_adapters(&self, set: &AdapterSet) -> Result<Adapted> {
        let plan = Plan::new(set, &self.config, NAME)?;
        let mut making = Making { decoder: self, plan, names: references(set), bytes: 0 };
        let network = making.network()?;
        Ok(Adapted { network, bytes: making.bytes })
    }
}

/// A network that is being made.
struct Making<'a> {
    decoder: &'a Decoder,
    plan: Plan<'a>,
    names: String,
    /// Bytes beside the base, so far.
    bytes: u64,
}

impl<'a> Making<'a> {
    fn network(&mut self) -> Result<Network> {
        let decoder = self.decoder;
        let mut network = decoder.base.clone();
        for (i, layer) in network.layers.iter_mut().enumerate() {
            for (roles, linear) in layer.linears(decoder.config.fused_projections) {
                self.linear(linear, roles, i)?;
            }
            for (role, norm) in layer.norms() {
                self.norm(norm, role, i)?;
            }
        }
        self.norm(&mut network.norm, R::FinalNorm, 0)?;
        self.embedding_and_head(&mut network)?;
        self.plan.finish(&self.decoder.config)?;
        Ok(network)
    }

    /// A head that is tied to the embedding, and changed as that is, has what that has.
    fn embedding_and_head(&mut self, network: &mut Network) -> Result<()> {
        let changes = self.plan.take(R::Embedding, 0);
        let of_head = self.plan.take(R::Head, 0);
        let mut embedding = Linear::new(network.embedding.weight.clone(), None);
        if let Some(changes) = &changes {
            self.change(&mut embedding, &[(0, changes)])?;
        }
        match &of_head {
            Some(of_head) if self.decoder.config.tied_embeddings && Some(of_head) == changes.as_ref() => {
                if of_head.replaces() {
                    network.head.weight = embedding.weight.clone();
                }
                network.head.side = embedding.side.clone();
            }
            Some(of_head) => self.change(&mut network.head, &[(0, of_head)])?,
            None => {}
        }
        network.embedding.weight = embedding.weight;
        network.embedding.side = embedding.side;
        Ok(())
    }

    /// Changes the linear layer that has the rows of these modules.
    fn linear(&mut self, linear: &mut Linear, roles: &[R], layer: usize) -> Result<()> {
        let parts = self.plan.take_all(roles, layer)?;
        let parts: Vec<_> = parts.iter().map(|(start, changes)| (*start, changes)).collect();
        if parts.is_empty() { Ok(()) } else { self.change(linear, &parts) }
    }

    /// Changes a linear layer: some modules of it, each with the row that it begins at.
    fn change(&mut self, linear: &mut Linear, parts: &[(usize, &Changes<'a>)]) -> Result<()> {
        if parts.iter().any(|(_, changes)| changes.replaces()) {
            linear.weight = Matrix::Dense(self.replaced(&linear.weight, parts)?);
        }
        if let Some(side) = self.beside(&linear.weight, parts)? {
            self.bytes += side.bytes();
            linear.side = Some(Arc::new(side));
        }
        if parts.iter().any(|(_, changes)| changes.has_bias()) {
            linear.bias = Some(self.bias(linear, parts)?);
        }
        Ok(())
    }

    fn norm(&mut self, norm: &mut RmsNorm, role: R, layer: usize) -> Result<()> {
        let Some(changes) = self.plan.take(role, layer) else { return Ok(()) };
        let offset = self.norm_offset();
        let mut weight = self.ok("a norm could not be read", self.on_cpu(&norm.weight))?;
        // As it is stored, to which the offset is added again.
        weight.iter_mut().for_each(|w| *w -= offset);
        changes.replace(&mut weight)?;
        weight.iter_mut().for_each(|w| *w += offset);
        norm.weight = self.vector(weight)?;
        Ok(())
    }

    /// What norms of safetensors lack. A GGUF file has it added, but an adapter is as safetensors are.
    fn norm_offset(&self) -> f32 {
        self.decoder.config.architecture.norm_offset(Layout::HuggingFace) as f32
    }

    /// The bias of a linear layer with what adapters replace of it and add to it.
    fn bias(&mut self, linear: &Linear, parts: &[(usize, &Changes<'a>)]) -> Result<Tensor> {
        let (out, _) = self.ok("a matrix has no shape", linear.weight.dims())?;
        let mut bias = match &linear.bias {
            Some(bias) => self.ok("a bias could not be read", self.on_cpu(bias))?,
            None => vec![0.0; out],
        };
        for (start, changes) in parts {
            changes.change_bias(&mut bias[*start..*start + changes.rows()])?;
        }
        self.vector(bias)
    }

    fn vector(&mut self, v: Vec<f32>) -> Result<Tensor> {
        let (dtype, device) = (self.decoder.dtype(), self.decoder.device());
        let made = Tensor::new(v, device).and_then(|t| t.to_dtype(dtype));
        let made = self.ok("a tensor could not be put on the device", made)?;
        self.bytes += (made.elem_count() * dtype.size_in_bytes()) as u64;
        Ok(made)
    }

    fn on_cpu(&self, t: &Tensor) -> candle_core::Result<Vec<f32>> {
        t.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()
    }

    /// What candle gave, or an error about the adapters.
    fn ok<T>(&self, context: &str, result: candle_core::Result<T>) -> Result<T> {
        result.map_err(|e| adapter_error(&self.names, context, e))
    }
}
