//! The one internal form of an adapter. Readers of every format produce it; report, merge and conversion read only it.

use std::sync::Arc;

/// An adapter, read and checked for being whole, in the names of the Hugging Face layout.
///
/// Source of the rules: PEFT `src/peft/tuners/lora/` and the LoRA paper (arXiv:2106.09685), `W' = W + scale * (B @ A)`.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LoraAdapter {
    /// The ref it came from, for messages.
    pub reference: String,
    /// SHA-256 of its config and weights, as hex: adapters with one digest are the same.
    pub digest: String,
    /// The low-rank pairs, sorted by module, each module once.
    pub modules: Vec<LoraModule>,
    /// Tensors that replace one of the base (PEFT's `modules_to_save`), by the base tensor's name.
    pub replacements: Vec<ReplacementTensor>,
    /// The base it was trained on, as far as it says so.
    pub base: BaseHint,
}

impl LoraAdapter {
    /// An adapter of `modules`.
    pub fn new(reference: impl Into<String>, digest: impl Into<String>, modules: Vec<LoraModule>) -> Self {
        Self {
            reference: reference.into(),
            digest: digest.into(),
            modules,
            replacements: Vec::new(),
            base: BaseHint::default(),
        }
    }

    /// Sets what it says of its base.
    pub fn with_base(mut self, base: BaseHint) -> Self {
        self.base = base;
        self
    }

    /// The pair of the module `name`, if it has one.
    pub fn module(&self, name: &str) -> Option<&LoraModule> {
        self.modules.binary_search_by(|m| m.name.as_str().cmp(name)).ok().map(|i| &self.modules[i])
    }
}

/// The low-rank pair of one module: `delta = scale * (B @ A)`, of shape (out, in).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LoraModule {
    /// The module's path, e.g. `model.layers.0.self_attn.q_proj`; its weight is `<name>.weight`.
    pub name: String,
    /// Rank r.
    pub rank: usize,
    /// Input features.
    pub in_features: usize,
    /// Output features.
    pub out_features: usize,
    /// A, shape (r, in), row-major.
    pub a: Vec<f32>,
    /// B, shape (out, r), row-major.
    pub b: Vec<f32>,
    /// What `B @ A` is multiplied by: alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv:2312.03732).
    pub scale: f64,
    /// DoRA's magnitude, shape (out,) (arXiv:2402.09353).
    pub magnitude: Option<Vec<f32>>,
    /// The bias of B, shape (out,), which is scaled too.
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
        a: Vec<f32>,
        b: Vec<f32>,
        scale: f64,
    ) -> Self {
        assert_eq!(a.len(), rank * in_features, "A must have the shape (rank, in)");
        assert_eq!(b.len(), out_features * rank, "B must have the shape (out, rank)");
        Self { name: name.into(), rank, in_features, out_features, a, b, scale, magnitude: None, bias: None }
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
    pub values: Vec<f32>,
}

/// What an adapter says of the base it was trained on. All of it may be missing, or be a path of the trainer's disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BaseHint {
    /// A repository id or path.
    pub name: Option<String>,
    /// A revision.
    pub revision: Option<String>,
}

impl BaseHint {
    /// A hint of `name` at `revision`.
    pub fn new(name: Option<String>, revision: Option<String>) -> Self {
        Self { name, revision }
    }
}

/// Adapters that apply together, each with what its delta is multiplied by.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct AdapterSet {
    /// Adapter and weight.
    pub adapters: Vec<(Arc<LoraAdapter>, f32)>,
}

impl AdapterSet {
    /// No adapters: the base alone.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an adapter.
    pub fn with(mut self, adapter: Arc<LoraAdapter>, weight: f32) -> Self {
        self.adapters.push((adapter, weight));
        self
    }

    /// Whether it is the base alone.
    pub fn is_empty(&self) -> bool {
        self.adapters.is_empty()
    }
}
