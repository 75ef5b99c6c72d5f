//! How much memory adapters take that run beside the weights.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use llm_local_core::{ModelInfo, model::ModuleRole as R};

use super::{
    change::{Change, TermKind},
    view::layout,
};
use crate::lora::outline::{AdapterOutline, ModuleOutline};

const F32: u64 = 4;

/// Bytes of memory.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Beside {
    /// As long as the model is there, at most.
    pub(super) held: u64,
    /// On top while that is made, at most.
    pub(super) making: u64,
}

impl Beside {
    /// What the pairs of `adapter` take: as they were read if they are plain, and widened to f32 where they have magnitudes,
    /// by which B is multiplied. A tensor at a time is there in f32, B three times: some rows of it, exchanged with its
    /// columns, widened.
    pub(super) fn of_pairs(adapter: &AdapterOutline) -> Self {
        let plain = |module: &ModuleOutline| !module.has_magnitude && !module.has_bias;
        let numbers = |module: &ModuleOutline| {
            let ModuleOutline { rank, in_features, out_features, has_magnitude, has_bias, .. } = *module;
            // Factors and biases are of rows.
            let vectors = (usize::from(has_magnitude) + usize::from(has_bias)) * out_features;
            (rank * (in_features + out_features) + vectors) as u64
        };
        let is_plain = adapter.replacements.is_empty() && adapter.rows.is_empty() && adapter.modules.iter().all(plain);
        let held = if is_plain { adapter.bytes } else { adapter.modules.iter().map(numbers).sum::<u64>() * F32 };
        let of_one =
            |module: &ModuleOutline| (module.rank * (module.in_features + 3 * module.out_features)) as u64 * F32;
        Self { held, making: adapter.modules.iter().map(of_one).max().unwrap_or(0) }
    }

    /// Both, made one after the other.
    pub(super) fn join(&mut self, other: Self) {
        self.held += other.held;
        self.making = self.making.max(other.making);
    }

    /// What each of so many `adapters` replaces in the base that `info` describes, in whole or by rows: such a matrix is held
    /// in f32, however many adapters change it, with what is held in one with it. While it is made, what it was and what
    /// replaces it are there too.
    pub(super) fn of_replaced(changes: &BTreeMap<String, Change>, adapters: usize, info: &ModelInfo) -> Vec<Self> {
        let mut all = vec![Self::default(); adapters];
        let groups = groups(info);
        let mut counted = BTreeSet::new();
        for change in changes.values() {
            let replaces = |kind| matches!(kind, TermKind::Replacement { .. } | TermKind::Rows { .. });
            let Some(term) = change.terms.iter().find(|term| replaces(term.kind)) else { continue };
            let own = elements(&change.shape);
            let beside = &mut all[term.adapter];
            beside.making = beside.making.max(2 * own * F32);
            let (group, elements) =
                groups.get(&change.name).map_or((change.name.as_str(), own), |(g, n)| (g.as_str(), *n));
            if counted.insert(group.to_owned()) {
                beside.held += elements * F32;
            }
        }
        all
    }
}

/// For each tensor that backends may hold in one with others (queries, keys and values; gate and up): the name of the first
/// of these, and the elements of all.
fn groups(info: &ModelInfo) -> HashMap<String, (String, u64)> {
    let Ok(decoder) = &info.decoder else { return HashMap::new() };
    let mut together: BTreeMap<(usize, bool), Vec<(String, u64)>> = BTreeMap::new();
    for tensor in decoder.base_tensors(layout(info)).into_iter().filter(|tensor| tensor.shape.len() > 1) {
        let is_of_attention = match tensor.role {
            R::Query | R::Key | R::Value => true,
            R::Gate | R::Up => false,
            _ => continue,
        };
        let elements = elements(&tensor.shape);
        together.entry((tensor.layer, is_of_attention)).or_default().push((tensor.name, elements));
    }
    let mut groups = HashMap::new();
    for group in together.into_values() {
        let (first, all) = (group[0].0.clone(), group.iter().map(|(_, elements)| elements).sum());
        groups.extend(group.into_iter().map(|(name, _)| (name, (first.clone(), all))));
    }
    groups
}

fn elements(shape: &[usize]) -> u64 {
    shape.iter().map(|dimension| *dimension as u64).product()
}
