//! What an adapter changes: low-rank pairs, whole tensors, rows.

use super::Floats;

/// The low-rank pair of one module: `delta = scale * (B @ A)`, of shape (out, in).
///
/// That of an embedding is of shape (vocab, dim), so that B is (vocab, r) and A is (r, dim): both transposed, and
/// exchanged, from how PEFT and GGUF store them.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LoraModule {
    /// The module's path, e.g. `model.layers.0.self_attn.q_proj`. Where [`LoraModule::is_parameter`], a tensor's name.
    pub name: String,
    /// Rank r.
    pub rank: usize,
    /// Input features.
    pub in_features: usize,
    /// Output features.
    pub out_features: usize,
    /// For the stacked weights of so many experts, with a pair each: then A is (experts, r, in), B is (experts, out, r), and
    /// the delta (experts, out, in). `None` for a matrix.
    pub experts: Option<usize>,
    /// Whether the base stores the weight as (in, out), or (experts, in, out): the delta is transposed then (PEFT's
    /// `fan_in_fan_out`).
    pub transposed: bool,
    /// Whether it belongs to a bare parameter (PEFT's `target_parameters`), whose name has no `.weight` behind it.
    pub is_parameter: bool,
    /// A, shape (r, in), row-major.
    pub a: Floats,
    /// B, shape (out, r), row-major.
    pub b: Floats,
    /// What `B @ A` is multiplied by: alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv:2312.03732).
    pub scale: f64,
    /// DoRA's magnitude m, shape (out,) (arXiv:2402.09353): `W' = m / n * (W + delta)` by rows, where n are the norms of the
    /// rows of `W + delta`.
    pub magnitude: Option<Vec<f32>>,
    /// The bias of B, shape (out,): `scale` times it is added to the base's bias.
    pub bias: Option<Vec<f32>>,
}

impl LoraModule {
    /// A plain pair. `a` has the shape (rank, in_features), `b` the shape (out_features, rank).
    ///
    /// # Panics
    /// If a length does not fit its shape: readers check before.
    pub fn new(
        name: impl Into<String>,
        (rank, in_features, out_features): (usize, usize, usize),
        a: impl Into<Floats>,
        b: impl Into<Floats>,
        scale: f64,
    ) -> Self {
        Self::stacked(name, None, (rank, in_features, out_features), a.into(), b.into(), scale)
    }

    /// The pairs of so many experts. `a` has the shape (experts, rank, in_features), `b` the shape (experts, out_features,
    /// rank).
    ///
    /// # Panics
    /// As [`LoraModule::new`].
    pub fn of_experts(
        name: impl Into<String>,
        experts: usize,
        (rank, in_features, out_features): (usize, usize, usize),
        a: impl Into<Floats>,
        b: impl Into<Floats>,
        scale: f64,
    ) -> Self {
        Self::stacked(name, Some(experts), (rank, in_features, out_features), a.into(), b.into(), scale)
    }

    fn stacked(
        name: impl Into<String>,
        experts: Option<usize>,
        (rank, in_features, out_features): (usize, usize, usize),
        a: Floats,
        b: Floats,
        scale: f64,
    ) -> Self {
        let count = experts.unwrap_or(1);
        assert_eq!(a.len(), count * rank * in_features, "A must have the shape (rank, in)");
        assert_eq!(b.len(), count * out_features * rank, "B must have the shape (out, rank)");
        Self {
            name: name.into(),
            rank,
            in_features,
            out_features,
            experts,
            transposed: false,
            is_parameter: false,
            a,
            b,
            scale,
            magnitude: None,
            bias: None,
        }
    }

    /// Sets DoRA's magnitude, shape (out,).
    pub fn with_magnitude(mut self, magnitude: Vec<f32>) -> Self {
        self.magnitude = Some(magnitude);
        self
    }

    /// Sets the bias of B, shape (out,).
    pub fn with_bias(mut self, bias: Vec<f32>) -> Self {
        self.bias = Some(bias);
        self
    }

    /// Sets whether the base stores the weight as (in, out).
    pub fn with_transposed(mut self, transposed: bool) -> Self {
        self.transposed = transposed;
        self
    }

    /// Says that it belongs to a bare parameter, whose name its own is.
    pub fn of_parameter(mut self) -> Self {
        self.is_parameter = true;
        self
    }

    /// The name of the base tensor that its delta is added to.
    pub fn weight_name(&self) -> String {
        if self.is_parameter { self.name.clone() } else { format!("{}.weight", self.name) }
    }
}

/// A tensor that replaces one of the base.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ReplacementTensor {
    /// The base tensor's name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: Floats,
}

impl ReplacementTensor {
    /// A replacement for the base tensor `name`.
    pub fn new(name: impl Into<String>, shape: Vec<usize>, values: impl Into<Floats>) -> Self {
        Self { name: name.into(), shape, values: values.into() }
    }
}

/// Rows that replace some of a base tensor.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ReplacedRows {
    /// The base tensor's name.
    pub name: String,
    /// Which rows, ascending, none twice.
    pub rows: Vec<usize>,
    /// Their values, shape (rows, columns), row-major.
    pub values: Floats,
}

impl ReplacedRows {
    /// `values` for the rows `rows` of the base tensor `name`.
    ///
    /// # Panics
    /// If `rows` do not ascend, or `values` are no whole rows: readers check before.
    pub fn new(name: impl Into<String>, rows: Vec<usize>, values: impl Into<Floats>) -> Self {
        let values = values.into();
        assert!(rows.windows(2).all(|pair| pair[0] < pair[1]), "rows must ascend");
        assert!(!rows.is_empty() && values.len().is_multiple_of(rows.len()), "values must be whole rows");
        Self { name: name.into(), rows, values }
    }
}
