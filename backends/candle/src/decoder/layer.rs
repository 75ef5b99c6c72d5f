//! One layer: attention and a gated feed-forward block, each added to the residual stream.

use candle_core::{Error, Result, Tensor};
use llm_local_core::model::Activation;

use super::{
    attention::{Attention, View},
    cache::{Dimensions, LayerCache},
    linear::Linear,
    norm::RmsNorm,
};

/// One layer of a decoder. Norms are where its description places them.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) before_attention: Option<RmsNorm>,
    pub(crate) attention: Attention,
    pub(crate) after_attention: Option<RmsNorm>,
    pub(crate) before_mlp: Option<RmsNorm>,
    pub(crate) mlp: Mlp,
    pub(crate) after_mlp: Option<RmsNorm>,
    /// What the output of a block is multiplied by.
    pub(crate) residual_scale: f64,
}

/// `down(activation(gate(x)) · up(x))`.
#[derive(Debug, Clone)]
pub(crate) struct Mlp {
    pub(crate) gate_up: GateUp,
    pub(crate) down: Linear,
    pub(crate) activation: Activation,
}

/// The projections into the feed-forward block.
#[derive(Debug, Clone)]
pub(crate) enum GateUp {
    /// One matrix, with the rows of gate and up in this order.
    Fused(Linear),
    /// Two.
    Split {
        /// What the activation is applied to.
        gate: Linear,
        /// What it is multiplied with.
        up: Linear,
    },
}

fn normed(norm: Option<&RmsNorm>, x: &Tensor) -> Result<Tensor> {
    norm.map_or_else(|| Ok(x.clone()), |norm| norm.forward(x))
}

impl Layer {
    /// The residual stream behind this layer, shape (queries, hidden); only its last row with `last`.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        view: &View,
        cache: &mut LayerCache,
        expected: usize,
        last: bool,
        of: &Dimensions,
    ) -> Result<Tensor> {
        let attended =
            self.attention.forward(&normed(self.before_attention.as_ref(), x)?, view, cache, expected, last, of)?;
        let rows = x.dim(0)?;
        let x = if last && rows > 1 { x.narrow(0, rows - 1, 1)?.contiguous()? } else { x.clone() };
        let x = self.add(&x, normed(self.after_attention.as_ref(), &attended)?)?;
        let fed = self.mlp.forward(&normed(self.before_mlp.as_ref(), &x)?)?;
        self.add(&x, normed(self.after_mlp.as_ref(), &fed)?)
    }

    fn add(&self, x: &Tensor, block: Tensor) -> Result<Tensor> {
        if self.residual_scale == 1.0 { x + block } else { x + (block * self.residual_scale)? }
    }
}

impl Mlp {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (gate, up) = match &self.gate_up {
            GateUp::Fused(fused) => {
                let both = fused.forward(x)?;
                let width = both.dim(1)? / 2;
                (both.narrow(1, 0, width)?.contiguous()?, both.narrow(1, width, width)?.contiguous()?)
            }
            GateUp::Split { gate, up } => (gate.forward(x)?, up.forward(x)?),
        };
        let gate = match self.activation {
            Activation::Silu => gate.silu()?,
            Activation::Gelu => gate.gelu_erf()?,
            Activation::GeluTanh => gate.gelu()?,
            Activation::Relu => gate.relu()?,
            other => return Err(Error::Msg(format!("the activation {} is not known", other.name()))),
        };
        self.down.forward(&(gate * up)?)
    }
}
