//! An adapter.

use super::{AdapterFeature, BaseHint, DeclaredTargets, LoraModule, ReplacedRows, ReplacementTensor};
use crate::model::Layout;

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
    /// The format it was stored in: `peft`, `mlx-lm`, `gguf`, or the name of a plugin's.
    pub format: String,
    /// The layout in whose order the rows of queries and keys are: those of GGUF adapters are permuted like their base's.
    pub row_order: Layout,
    /// The low-rank pairs, sorted by module, each module once.
    pub modules: Vec<LoraModule>,
    /// Tensors that replace one of the base (PEFT's `modules_to_save` and `bias`), sorted by the base tensor's name. A pair
    /// of the same tensor is added to them.
    pub replacements: Vec<ReplacementTensor>,
    /// Rows that replace some of a base tensor (PEFT's `trainable_token_indices`), sorted by the base tensor's name.
    pub rows: Vec<ReplacedRows>,
    /// What it uses beside plain pairs, sorted.
    pub features: Vec<AdapterFeature>,
    /// The modules it says it applies to; `None` in a format that does not say (GGUF).
    pub targets: Option<DeclaredTargets>,
    /// The base it was trained on, as far as it says so.
    pub base: BaseHint,
    /// What its reader has to report though it reads it: fields that say something else than the tensors, fields of how it
    /// was trained that are not known.
    pub notes: Vec<String>,
    /// Fields of its config that are set, and of which it is not known what they change: a sentence each, naming field and
    /// value. They keep it from being used unless [`Allowance::UnknownFields`](crate::Allowance::UnknownFields) lets them pass.
    pub unknown_fields: Vec<String>,
}

impl LoraAdapter {
    /// A PEFT adapter of `modules`, in any order; no two may have one name.
    pub fn new(reference: impl Into<String>, digest: impl Into<String>, mut modules: Vec<LoraModule>) -> Self {
        modules.sort_by(|x, y| x.name.cmp(&y.name));
        Self {
            reference: reference.into(),
            digest: digest.into(),
            format: "peft".into(),
            row_order: Layout::HuggingFace,
            modules,
            replacements: Vec::new(),
            rows: Vec::new(),
            features: Vec::new(),
            targets: None,
            base: BaseHint::default(),
            notes: Vec::new(),
            unknown_fields: Vec::new(),
        }
    }

    /// Sets the format it was stored in.
    pub fn with_format(mut self, format: impl Into<String>) -> Self {
        self.format = format.into();
        self
    }

    /// Sets the layout in whose order the rows of queries and keys are.
    pub fn with_row_order(mut self, order: Layout) -> Self {
        self.row_order = order;
        self
    }

    /// Sets the tensors that replace one of the base, in any order; no two may have one name.
    pub fn with_replacements(mut self, mut replacements: Vec<ReplacementTensor>) -> Self {
        replacements.sort_by(|x, y| x.name.cmp(&y.name));
        self.replacements = replacements;
        self
    }

    /// Sets the rows that replace some of a base tensor, in any order; no two may have one tensor.
    pub fn with_rows(mut self, mut rows: Vec<ReplacedRows>) -> Self {
        rows.sort_by(|x, y| x.name.cmp(&y.name));
        self.rows = rows;
        self
    }

    /// Sets what it uses beside plain pairs, in any order.
    pub fn with_features(mut self, features: impl IntoIterator<Item = AdapterFeature>) -> Self {
        self.features = features.into_iter().collect();
        self.features.sort();
        self.features.dedup();
        self
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

    /// Sets what its reader has to report though it reads it.
    pub fn with_notes(mut self, notes: Vec<String>) -> Self {
        self.notes = notes;
        self
    }

    /// Sets what is said of the fields that are not known.
    pub fn with_unknown_fields(mut self, fields: Vec<String>) -> Self {
        self.unknown_fields = fields;
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
            + self.rows.iter().map(|r| r.values.byte_len()).sum::<usize>()
    }
}
