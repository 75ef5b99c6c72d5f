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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use llm_local_core::{
        LoraAdapter, LoraModule,
        lora::{Floats, ReplacedRows, ReplacementTensor},
    };

    use crate::lora::{FitReport, fit, testing::tiny_llama_info};

    /// 128 wide, 4 heads of 32 with 2 for keys and values, 896 tokens; the head is tied.
    const HIDDEN: usize = 128;
    const VOCAB: usize = 896;

    fn report(adapters: Vec<LoraAdapter>) -> FitReport {
        let adapters: Vec<_> = adapters.into_iter().map(|adapter| (Arc::new(adapter), 1.0)).collect();
        fit(&adapters, &tiny_llama_info(|_| {})).unwrap()
    }

    fn held(report: &FitReport) -> Vec<u64> {
        report.adapters.iter().map(|adapter| adapter.bytes_beside()).collect()
    }

    fn rows() -> LoraAdapter {
        let rows = ReplacedRows::new("model.embed_tokens.weight", vec![3, 7], vec![0.5; 2 * HIDDEN]);
        LoraAdapter::new("rows", "", Vec::new()).with_rows(vec![rows])
    }

    fn query(rank: usize, values: impl Fn(usize) -> Floats) -> LoraModule {
        let name = "model.layers.0.self_attn.q_proj";
        LoraModule::new(name, (rank, HIDDEN, HIDDEN), values(rank * HIDDEN), values(rank * HIDDEN), 1.0)
    }

    #[test]
    fn an_embedding_with_rows_of_its_own_is_held_whole_once() {
        let report = report(vec![rows(), rows()]);
        assert_eq!(held(&report), [(4 * VOCAB * HIDDEN) as u64, 0]);
        // Both adapters, what the embedding was, and a replacement of all of it.
        assert_eq!(report.peak_beside(), (2 * 4 * 2 * HIDDEN + 2 * 4 * VOCAB * HIDDEN) as u64);
    }

    #[test]
    fn what_is_held_in_one_with_a_replaced_matrix_is_held_anew() {
        let replaced = |all: &[(&str, usize)]| {
            let tensor = |(name, rows): &(&str, usize)| {
                let name = format!("model.layers.0.{name}.weight");
                ReplacementTensor::new(name, vec![*rows, HIDDEN], vec![0.5; rows * HIDDEN])
            };
            let tensors = all.iter().map(tensor).collect();
            held(&report(vec![LoraAdapter::new("a", "", Vec::new()).with_replacements(tensors)]))
        };
        let (query, key) = (("self_attn.q_proj", HIDDEN), ("self_attn.k_proj", 64));
        let attention = (4 * (HIDDEN + 2 * 64) * HIDDEN) as u64;
        assert_eq!(replaced(&[query]), [attention]);
        assert_eq!(replaced(&[query, key]), [attention]);
        let output = (4 * HIDDEN * HIDDEN) as u64;
        assert_eq!(replaced(&[query, ("self_attn.o_proj", HIDDEN)]), [attention + output]);
    }

    #[test]
    fn plain_pairs_are_held_as_they_are_read_and_others_in_f32() {
        let half = |count| Floats::Bf16(vec![0x3f80; count]);
        let plain = report(vec![LoraAdapter::new("a", "", vec![query(4, half)])]);
        assert_eq!(held(&plain), [2 * 4 * 2 * HIDDEN as u64]);
        let dora = query(4, half).with_magnitude(vec![1.0; HIDDEN]);
        let dora = report(vec![LoraAdapter::new("a", "", vec![dora])]);
        assert_eq!(held(&dora), [(4 * 4 * 2 * HIDDEN + 4 * HIDDEN) as u64]);
        // A once, and B three times.
        assert_eq!(plain.peak_beside(), (2 * 4 * 2 * HIDDEN + 4 * 4 * 4 * HIDDEN) as u64);
    }
}
