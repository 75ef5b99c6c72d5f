//! A set of adapters beside a model: its network with low-rank pairs beside the matrices, and with tensors of their own
//! where an adapter replaces one.
//!
//! | module | what it holds |
//! |---|---|
//! | `replaced` | tensors of which an adapter replaces all or some rows |
//! | `beside` | low-rank pairs, and DoRA's norms |

mod beside;
mod replaced;

use std::rc::Rc;

use llm_local_backend_common::decoder::adapters::{Changes, Plan, references};
use llm_local_core::{
    AdapterSet, Result,
    model::{Layout, ModuleRole as R},
};
use mlx_rs::{Array, error::Result as MlxResult};

use super::{
    Decoder,
    linear::{Linear, Matrix},
    network::Network,
    norm::RmsNorm,
    side::array,
};
use crate::{NAME, arrays::to_f32, errors::adapter_error};

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
        Ok(Adapted::new(network, making.bytes))
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
                let parts = self.plan.take_all(roles, i)?;
                let parts: Vec<_> = parts.iter().map(|(start, changes)| (*start, changes)).collect();
                self.change(linear, &parts)?;
            }
            for (role, norm) in layer.norms() {
                self.norm(norm, role, i)?;
            }
        }
        self.norm(&mut network.norm, R::FinalNorm, 0)?;
        self.embedding_and_head(&mut network)?;
        self.plan.finish(&decoder.config)?;
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

    /// Changes a linear layer: some modules of it, each with the row that it begins at.
    fn change(&mut self, linear: &mut Linear, parts: &[(usize, &Changes<'a>)]) -> Result<()> {
        if parts.iter().any(|(_, changes)| changes.replaces()) {
            linear.weight = Matrix::Dense(self.replaced(&linear.weight, parts)?);
        }
        if let Some(side) = self.beside(&linear.weight, parts)? {
            self.bytes += side.bytes();
            linear.side = Some(Rc::new(side));
        }
        if parts.iter().any(|(_, changes)| changes.has_bias()) {
            linear.bias = Some(self.bias(linear, parts)?);
        }
        Ok(())
    }

    fn norm(&mut self, norm: &mut RmsNorm, role: R, layer: usize) -> Result<()> {
        let Some(changes) = self.plan.take(role, layer) else { return Ok(()) };
        let offset = self.decoder.config.architecture.norm_offset(Layout::HuggingFace) as f32;
        let mut weight = self.ok("a norm could not be read", to_f32(&norm.weight))?;
        // As it is stored, to which the offset is added again.
        weight.iter_mut().for_each(|w| *w -= offset);
        changes.replace(&mut weight)?;
        weight.iter_mut().for_each(|w| *w += offset);
        norm.weight = self.held(&weight, &[weight.len()])?;
        Ok(())
    }

    /// The bias of a linear layer with what adapters replace of it and add to it.
    fn bias(&mut self, linear: &Linear, parts: &[(usize, &Changes<'a>)]) -> Result<Array> {
        let (out, _) = linear.weight.dims();
        let mut bias = match &linear.bias {
            Some(bias) => self.ok("a bias could not be read", to_f32(bias))?,
            None => vec![0.0; out],
        };
        for (start, changes) in parts {
            changes.change_bias(&mut bias[*start..*start + changes.rows()])?;
        }
        self.held(&bias, &[out])
    }

    /// Numbers of the adapters' own, in the type of the activations.
    fn held(&mut self, v: &[f32], shape: &[usize]) -> Result<Array> {
        let made =
            array(v, shape).and_then(|made| made.as_dtype(self.decoder.dimensions.activations)).and_then(|made| {
                made.eval()?;
                Ok(made)
            });
        let made = self.ok("a tensor could not be put on the device", made)?;
        self.bytes += made.nbytes() as u64;
        Ok(made)
    }

    /// What MLX gave, or an error about the adapters.
    fn ok<T>(&self, context: &str, result: MlxResult<T>) -> Result<T> {
        result.map_err(|e| adapter_error(&self.names, context, e))
    }
}
