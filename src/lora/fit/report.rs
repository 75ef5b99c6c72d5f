//! What adapters change in a base, for whoever asks.

use std::collections::BTreeSet;

use llm_local_core::{Allowance, Encoding, ModelInfo};
use serde::Serialize;

use super::{
    beside::Beside,
    change::{Change, Placement, Term, TermKind},
    check::{Checked, CheckedPart},
    place::MisfitKind,
};
use crate::lora::{
    outline::{AdapterOutline, ModuleOutline},
    targets::BaseModules,
};

/// Something wrong with an adapter on a base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Defect {
    /// What is wrong: the tensor or field, what was expected and what was found.
    pub reason: String,
    /// What lets it pass, if anything can.
    pub allowance: Option<Allowance>,
}

impl Defect {
    pub(super) fn new(reason: String) -> Self {
        Self { reason, allowance: None }
    }

    pub(super) fn allowable(reason: String, allowance: Allowance) -> Self {
        Self { reason, allowance: Some(allowance) }
    }

    /// Whether what is `allowed` lets it pass.
    pub fn is_allowed(&self, allowed: &BTreeSet<Allowance>) -> bool {
        self.allowance.is_some_and(|allowance| allowed.contains(&allowance))
    }
}

/// What adapters change in a base.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct FitReport {
    /// The adapters, in the order given.
    pub adapters: Vec<FittedAdapter>,
    /// The tensors that are others in the merged base, sorted by name: in the base's names, or new ones.
    pub touched: Vec<TouchedTensor>,
    /// Whether the base ties its head to its embedding and an adapter unties them: the merged base has both.
    pub unties_embeddings: bool,
    /// The rows of the embedding and the head, where adapters give them more than the base has.
    pub vocab_size: Option<usize>,
}

impl FitReport {
    /// The first of the touched tensors that the base holds quantized: it cannot be added to as it is.
    pub fn quantized(&self) -> Option<&TouchedTensor> {
        self.touched.iter().find(|touched| !matches!(touched.stored, Encoding::Float(_)))
    }

    /// The most bytes that running the adapters beside the weights takes on top while they are made ready for that: they
    /// themselves as they were read, and what is made one tensor at a time.
    pub(crate) fn peak_beside(&self) -> u64 {
        let read: u64 = self.adapters.iter().map(|adapter| adapter.bytes).sum();
        read + self.adapters.iter().map(|adapter| adapter.beside.making).max().unwrap_or(0)
    }

    /// Tells the log what was let pass.
    pub(crate) fn warn(&self, base: &str) {
        for adapter in &self.adapters {
            for defect in &adapter.let_pass {
                let allowed = defect.allowance.map(tracing::field::display);
                tracing::warn!(adapter = adapter.reference, base, allowed, "let pass: {}", defect.reason);
            }
            if !adapter.unmatched_targets.is_empty() {
                tracing::warn!(
                    adapter = adapter.reference,
                    base,
                    unmatched = ?adapter.unmatched_targets,
                    "names in `target_modules` match no module of the base"
                );
            }
        }
    }
}

/// An adapter that fits.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct FittedAdapter {
    /// Its ref.
    pub reference: String,
    /// Modules that it has pairs for, all of which it changes.
    pub modules: usize,
    /// Tensors that it replaces, in whole or by rows.
    pub replaced: usize,
    /// Its smallest and its largest rank; 0 without pairs.
    pub ranks: (usize, usize),
    /// The smallest and the largest of what its products `B @ A` are multiplied by, its weight included; 0 without pairs.
    pub scales: (f64, f64),
    /// Bytes of memory that its tensors take.
    pub bytes: u64,
    /// What it has that the base has no tensor for, by the names of such tensors: it is left out.
    pub unused: Vec<String>,
    /// What would be an error, and was let pass.
    pub let_pass: Vec<Defect>,
    /// The names in its `target_modules` that no module of the base matches: lists over several architectures have such.
    pub unmatched_targets: Vec<String>,
    /// The first of its modules whose pair is transposed on its way to the base's weight, if any.
    pub(in crate::lora) transposed: Option<String>,
    /// What it takes beside the weights.
    pub(super) beside: Beside,
}

impl FittedAdapter {
    /// The most bytes that it takes beside the weights. What several adapters replace is the first one's.
    pub(crate) fn bytes_beside(&self) -> u64 {
        self.beside.held
    }
}

/// A tensor of the merged base that is another than the base's.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TouchedTensor {
    /// Its name.
    pub name: String,
    /// Its shape: (out, in) for most.
    pub shape: Vec<usize>,
    /// How the base stores it.
    pub stored: Encoding,
    /// The adapters that change it, as indexes of [`FitReport::adapters`]. None for a head that is untied from an embedding
    /// which changes.
    pub adapters: Vec<usize>,
    /// The pairs that are added to it, and the biases of pairs.
    pub(in crate::lora) pairs: Vec<AddedPair>,
}

/// A pair that is added to a tensor; the bias of one is a pair of rank 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::lora) struct AddedPair {
    pub(in crate::lora) rank: usize,
    pub(in crate::lora) has_magnitude: bool,
    pub(in crate::lora) rows: Placement,
}

impl FittedAdapter {
    pub(super) fn new(
        adapter: &AdapterOutline,
        weight: f32,
        info: &ModelInfo,
        checked: &mut Checked,
        let_pass: Vec<Defect>,
    ) -> Self {
        let unused = checked.unused();
        let is_used = |(_, part): &(usize, &CheckedPart)| part.misfit != Some(MisfitKind::Unused);
        let (modules, replaced): (Vec<_>, Vec<_>) =
            checked.parts.iter().enumerate().filter(is_used).partition(|(index, _)| *index < adapter.modules.len());
        let modules: Vec<_> = modules.into_iter().map(|(index, _)| &adapter.modules[index]).collect();
        let ranks = modules.iter().map(|m| m.rank);
        let scales = || modules.iter().map(|m| m.scale * f64::from(weight));
        Self {
            reference: adapter.reference.clone(),
            modules: modules.len(),
            replaced: replaced.len(),
            ranks: (ranks.clone().min().unwrap_or(0), ranks.max().unwrap_or(0)),
            scales: (scales().reduce(f64::min).unwrap_or(0.0), scales().reduce(f64::max).unwrap_or(0.0)),
            bytes: adapter.bytes,
            unmatched_targets: std::mem::take(&mut checked.unmatched),
            unused,
            let_pass,
            transposed: transposed(adapter, info),
            beside: Beside::of_pairs(adapter),
        }
    }
}

/// The first module of the adapter whose pair is of a base tensor that is stored (in, out).
fn transposed(adapter: &AdapterOutline, info: &ModelInfo) -> Option<String> {
    let is_turned = |module: &&ModuleOutline| {
        let turned = [module.in_features, module.out_features];
        let of_base = info.tensor(&module.weight_name()).map(|tensor| tensor.shape == turned);
        module.transposed
            && module.experts.is_none()
            && match &info.decoder {
                // All matrices are (out, in); of an embedding the pair may be turned.
                Ok(decoder) => BaseModules::is_embedding(&module.name) && module.in_features == decoder.vocab_size,
                Err(_) => of_base.unwrap_or(true),
            }
    };
    adapter.modules.iter().find(is_turned).map(|module| module.name.clone())
}

impl TouchedTensor {
    pub(super) fn new(change: &Change, all: &[(AdapterOutline, f32)]) -> Self {
        let mut adapters: Vec<_> = change.terms.iter().map(|term| term.adapter).collect();
        adapters.dedup();
        let pair = |term: &Term| {
            let module = |index: usize| &all[term.adapter].0.modules[index];
            let (rank, has_magnitude) = match term.kind {
                TermKind::Pair { module: index, .. } => (module(index).rank, module(index).has_magnitude),
                TermKind::PairBias { .. } => (1, false),
                _ => return None,
            };
            Some(AddedPair { rank, has_magnitude, rows: term.rows })
        };
        let pairs = change.terms.iter().filter_map(pair).collect();
        Self { name: change.name.clone(), shape: change.shape.clone(), stored: change.stored, adapters, pairs }
    }
}
