//! One layer: attention and a gated feed-forward block, each added to the residual stream.

use llm_local_core::model::Activation;
use mlx_rs::{
    Array,
    error::{Exception, Result},
    ops::{erf, indexing::TryIndexOp, maximum, sigmoid},
};

use super::{
    attention::{Attention, View},
    cache::{Dimensions, LayerCache},
    linear::Linear,
    norm::RmsNorm,
    numbers::{scalar, scaled},
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

fn normed(norm: Option<&RmsNorm>, x: &Array) -> Result<Array> {
    norm.map_or_else(|| Ok(x.clone()), |norm| norm.forward(x))
}

impl Layer {
    /// The residual stream behind this layer, shape (queries, hidden); only its last row with `last`.
    pub(crate) fn forward(
        &self,
        x: &Array,
        view: &View,
        cache: &mut LayerCache,
        expected: usize,
        last: bool,
        of: &Dimensions,
    ) -> Result<Array> {
        let attended =
            self.attention.forward(&normed(self.before_attention.as_ref(), x)?, view, cache, expected, last, of)?;
        let x = if last { x.try_index(-1..)? } else { x.clone() };
        let x = self.add(&x, normed(self.after_attention.as_ref(), &attended)?)?;
        let fed = self.mlp.forward(&normed(self.before_mlp.as_ref(), &x)?)?;
        self.add(&x, normed(self.after_mlp.as_ref(), &fed)?)
    }

    fn add(&self, x: &Array, block: Array) -> Result<Array> {
        x.add(scaled(block, self.residual_scale)?)
    }
}

impl Mlp {
    fn forward(&self, x: &Array) -> Result<Array> {
        let (gate, up) = match &self.gate_up {
            GateUp::Fused(fused) => {
                let both = fused.forward(x)?;
                let width = both.dim(1) / 2;
                (both.try_index((.., ..width))?, both.try_index((.., width..))?)
            }
            GateUp::Split { gate, up } => (gate.forward(x)?, up.forward(x)?),
        };
        self.down.forward(&activated(&gate, self.activation)?.multiply(up)?)
    }
}

/// The activation of `x`, by formulas of few operations.
fn activated(x: &Array, activation: Activation) -> Result<Array> {
    let number = |value| scalar(value, x.dtype());
    match activation {
        Activation::Silu => x.multiply(sigmoid(x)?),
        Activation::Gelu => {
            let erf = erf(x.multiply(number(std::f64::consts::FRAC_1_SQRT_2))?)?;
            x.multiply(erf.add(number(1.0))?)?.multiply(number(0.5))
        }
        // (1 + tanh(z)) / 2 = sigmoid(2 z), with z = sqrt(2 / π) · (x + 0.044715 x³).
        Activation::GeluTanh => {
            let twice = 2.0 * std::f64::consts::FRAC_2_PI.sqrt();
            let cubed = x.square()?.multiply(number(twice * 0.044715))?.add(number(twice))?;
            x.multiply(sigmoid(x.multiply(cubed)?)?)
        }
        Activation::Relu => maximum(x, number(0.0)),
        other => Err(Exception::custom(format!("the activation {} is not known", other.name()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_are_their_formulas() {
        let x: Vec<f32> = (-40..=40).map(|i| i as f32 / 10.0).collect();
        // erf by its series, which converges for these.
        let erf = |z: f64| {
            let term = |(sum, t): (f64, f64), n: i32| (sum + t / f64::from(2 * n + 1), -t * z * z / f64::from(n + 1));
            (0..200).fold((0.0, z), term).0 * std::f64::consts::FRAC_2_SQRT_PI
        };
        let formulas: [(Activation, &dyn Fn(f64) -> f64); 4] = [
            (Activation::Silu, &|x| x / (1.0 + (-x).exp())),
            (Activation::Gelu, &|x| 0.5 * x * (1.0 + erf(x / 2f64.sqrt()))),
            (Activation::GeluTanh, &|x| {
                let z = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                0.5 * x * (1.0 + z.tanh())
            }),
            (Activation::Relu, &|x| x.max(0.0)),
        ];
        for (activation, formula) in formulas {
            let y = activated(&Array::from_slice(&x, &[81]), activation).unwrap();
            y.eval().unwrap();
            for (x, y) in x.iter().zip(y.as_slice::<f32>()) {
                let expected = formula(f64::from(*x));
                assert!((f64::from(*y) - expected).abs() < 2e-6, "{}({x}) is {y}, not {expected}", activation.name());
            }
        }
    }
}
