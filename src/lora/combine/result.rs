//! The adapter that comes out.

use std::sync::Arc;

use llm_local_core::{
    LoraAdapter, LoraModule,
    lora::{AdapterFeature, Combination, DeclaredTargets, ModuleSelector},
};
use sha2::{Digest, Sha256};

/// What the result is called: `ties(a * 0.5 + b * 1)`.
pub(super) fn reference(adapters: &[(Arc<LoraAdapter>, f32)], combination: &Combination) -> String {
    let terms: Vec<_> = adapters.iter().map(|(adapter, weight)| format!("{} * {weight}", adapter.reference)).collect();
    format!("{}({})", combination.name(), terms.join(" + "))
}

/// The adapter of `modules`, in the order in which random numbers were drawn for them.
pub(super) fn adapter(
    adapters: &[(Arc<LoraAdapter>, f32)],
    combination: &Combination,
    modules: Vec<LoraModule>,
) -> LoraAdapter {
    let first = &adapters[0].0;
    let digest = digest(adapters, combination, &modules);
    let kept = [AdapterFeature::Embedding, AdapterFeature::FanInFanOut];
    let kept =
        kept.into_iter().filter(|feature| adapters.iter().any(|(adapter, _)| adapter.features.contains(feature)));
    let ranks_differ = modules.windows(2).any(|pair| pair[0].rank != pair[1].rank);
    let features: Vec<_> = kept.chain(ranks_differ.then_some(AdapterFeature::RankPattern)).collect();
    let mut names: Vec<_> = modules.iter().map(|module| module.name.clone()).collect();
    names.sort();
    let mut notes: Vec<_> = adapters.iter().flat_map(|(adapter, _)| adapter.notes.iter().cloned()).collect();
    for (adapter, _) in adapters.iter().filter(|(adapter, _)| adapter.base != first.base) {
        let base =
            |adapter: &LoraAdapter| adapter.base.name.clone().unwrap_or_else(|| "a base that it does not name".into());
        notes.push(format!(
            "{} was trained on {}, and {} on {}: the combination says the first adapter's base",
            adapter.reference,
            base(adapter),
            first.reference,
            base(first)
        ));
    }
    LoraAdapter::new(reference(adapters, combination), digest, modules)
        .with_row_order(first.row_order)
        .with_features(features)
        .with_targets(DeclaredTargets::new(ModuleSelector::Names(names)))
        .with_base(first.base.clone())
        .with_notes(notes)
}

/// SHA-256 over all that decides the result.
fn digest(adapters: &[(Arc<LoraAdapter>, f32)], combination: &Combination, modules: &[LoraModule]) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{combination:?}\n"));
    for (adapter, weight) in adapters {
        hash.update(format!("{} {}\n", adapter.digest, weight.to_bits()));
    }
    for module in modules {
        hash.update(format!("{}\n", module.name));
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
