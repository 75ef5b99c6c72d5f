//! The one internal form of an adapter. Readers of every format produce it; report, merge and conversion read only it.

use std::sync::Arc;

use crate::FloatType;

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
    /// The modules it says it applies to; `None` in a format that does not say (GGUF).
    pub targets: Option<DeclaredTargets>,
    /// The base it was trained on, as far as it says so.
    pub base: BaseHint,
}

impl LoraAdapter {
    /// An adapter of `modules`, in any order; no two may have one name.
    pub fn new(reference: impl Into<String>, digest: impl Into<String>, mut modules: Vec<LoraModule>) -> Self {
        modules.sort_by(|x, y| x.name.cmp(&y.name));
        Self {
            reference: reference.into(),
            digest: digest.into(),
            modules,
            replacements: Vec::new(),
            targets: None,
            base: BaseHint::default(),
        }
    }

    /// Sets the modules it says it applies to.
    pub fn with_targets(mut self, targets: DeclaredTargets) -> Self {
        self.targets = Some(targets);
        self
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

    /// Bytes of memory that its tensors take.
    pub fn byte_len(&self) -> usize {
        let optional = |v: &Option<Vec<f32>>| v.as_ref().map_or(0, |v| v.len() * 4);
        let modules = self.modules.iter();
        modules.map(|m| m.a.byte_len() + m.b.byte_len() + optional(&m.magnitude) + optional(&m.bias)).sum::<usize>()
            + self.replacements.iter().map(|r| r.values.byte_len()).sum::<usize>()
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
    pub a: Floats,
    /// B, shape (out, r), row-major.
    pub b: Floats,
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
        a: impl Into<Floats>,
        b: impl Into<Floats>,
        scale: f64,
    ) -> Self {
        let (a, b) = (a.into(), b.into());
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
    pub values: Floats,
}

impl ReplacementTensor {
    /// A replacement for the base tensor `name`.
    pub fn new(name: impl Into<String>, shape: Vec<usize>, values: impl Into<Floats>) -> Self {
        Self { name: name.into(), shape, values: values.into() }
    }
}

/// Floats in the type an adapter stores them in: widening them would double the memory of a 16-bit adapter.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Floats {
    /// 32-bit.
    F32(Vec<f32>),
    /// 16-bit IEEE, as bits.
    F16(Vec<u16>),
    /// bfloat16, as bits.
    Bf16(Vec<u16>),
}

impl Floats {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F16(v) | Self::Bf16(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Their type.
    pub fn float_type(&self) -> FloatType {
        match self {
            Self::F32(_) => FloatType::F32,
            Self::F16(_) => FloatType::F16,
            Self::Bf16(_) => FloatType::Bf16,
        }
    }

    /// Bytes of memory that they take.
    pub fn byte_len(&self) -> usize {
        self.len() * self.float_type().size()
    }
}

impl From<Vec<f32>> for Floats {
    fn from(values: Vec<f32>) -> Self {
        Self::F32(values)
    }
}

/// The modules that an adapter says it applies to, in the words of its format and not yet matched against a base.
///
/// Source of the rules: PEFT `src/peft/tuners/tuners_utils.py`, `check_target_module_exists`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeclaredTargets {
    /// The modules.
    pub modules: ModuleSelector,
    /// Modules that are none of them, whatever `modules` says.
    pub exclude: Option<ModuleSelector>,
    /// Only these layers, counted from 0; empty for all of them.
    pub layers: Vec<usize>,
    /// Regular expressions of the path segment before a layer's index (`layers`); empty for any.
    pub layers_pattern: Vec<String>,
}

impl DeclaredTargets {
    /// `modules` of every layer.
    pub fn new(modules: ModuleSelector) -> Self {
        Self { modules, exclude: None, layers: Vec::new(), layers_pattern: Vec::new() }
    }

    /// Sets the modules that are left out.
    pub fn with_exclude(mut self, exclude: ModuleSelector) -> Self {
        self.exclude = Some(exclude);
        self
    }

    /// Sets the layers, counted from 0, and the regular expressions of what stands before a layer's index.
    pub fn with_layers(mut self, layers: Vec<usize>, layers_pattern: Vec<String>) -> Self {
        (self.layers, self.layers_pattern) = (layers, layers_pattern);
        self
    }
}

/// A choice of modules.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModuleSelector {
    /// What the format chooses for the architecture when nothing is said.
    ArchitectureDefault,
    /// Modules whose path is one of these, or ends with `.` and one of these.
    Names(Vec<String>),
    /// Modules whose whole path matches this regular expression.
    Pattern(String),
    /// Every linear module except the output head.
    AllLinear,
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

    /// What tells this set from others: the digest and weight of each adapter, in order; empty for the base alone. A KV
    /// cache belongs to one digest.
    pub fn digest(&self) -> String {
        let one = |(adapter, weight): &(Arc<LoraAdapter>, f32)| format!("{}*{weight}", adapter.digest);
        self.adapters.iter().map(one).collect::<Vec<_>>().join("+")
    }

    /// Whether it is the base alone.
    pub fn is_empty(&self) -> bool {
        self.adapters.is_empty()
    }
}
