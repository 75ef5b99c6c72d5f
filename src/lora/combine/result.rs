//! The adapter that comes out.

use std::sync::Arc;

use llm_local_core::{
    LoraAdapter, LoraModule,
    lora::{AdapterFeature, BareFormat, Combination, DeclaredTargets, ModuleSelector},
};
use sha2::{Digest, Sha256};

use super::super::outline::{AdapterOutline, ModuleOutline};

/// The format of an adapter that was read from no file, as [`LoraAdapter::new`] has it.
const PEFT: &str = BareFormat::Peft.as_str();

/// What the result is called: `ties(a * 0.5 + b * 1)`.
pub(super) fn reference<'a>(adapters: impl IntoIterator<Item = (&'a str, f32)>, combination: &Combination) -> String {
    let terms: Vec<_> = adapters.into_iter().map(|(reference, weight)| format!("{reference} * {weight}")).collect();
    format!("{}({})", combination.name(), terms.join(" + "))
}

/// The adapter of `modules`, in the order in which random numbers were drawn for them: what `asked` came to, being done as
/// `effective`.
pub(super) fn adapter(
    adapters: &[(Arc<LoraAdapter>, f32)],
    (asked, effective): (&Combination, &Combination),
    modules: Vec<LoraModule>,
) -> LoraAdapter {
    let outlines: Vec<_> =
        adapters.iter().map(|(adapter, weight)| (AdapterOutline::from(&**adapter), *weight)).collect();
    let outline = outline(&outlines, asked, modules.iter().map(ModuleOutline::from).collect());
    let digest = digest(adapters, asked, effective, &modules);
    let adapter = LoraAdapter::new(outline.reference, digest, modules)
        .with_row_order(outline.row_order)
        .with_features(outline.features)
        .with_base(outline.base)
        .with_notes(outline.notes);
    match outline.targets {
        Some(targets) => adapter.with_targets(targets),
        None => adapter,
    }
}

/// The adapter of `modules`, without its values.
pub(super) fn outline(
    adapters: &[(AdapterOutline, f32)],
    combination: &Combination,
    mut modules: Vec<ModuleOutline>,
) -> AdapterOutline {
    modules.sort_by(|x, y| x.name.cmp(&y.name));
    let first = &adapters[0].0;
    let kept = [AdapterFeature::Embedding, AdapterFeature::FanInFanOut];
    let kept =
        kept.into_iter().filter(|feature| adapters.iter().any(|(adapter, _)| adapter.features.contains(feature)));
    let ranks_differ = modules.windows(2).any(|pair| pair[0].rank != pair[1].rank);
    let mut features: Vec<_> = kept.chain(ranks_differ.then_some(AdapterFeature::RankPattern)).collect();
    features.sort();
    let names = modules.iter().map(|module| module.name.clone()).collect();
    let mut notes: Vec<_> = adapters.iter().flat_map(|(adapter, _)| adapter.notes.iter().cloned()).collect();
    for (adapter, _) in adapters.iter().filter(|(adapter, _)| adapter.base != first.base) {
        let base = |adapter: &AdapterOutline| {
            adapter.base.name.clone().unwrap_or_else(|| "a base that it does not name".into())
        };
        notes.push(format!(
            "{} was trained on {}, and {} on {}: the combination says the first adapter's base",
            adapter.reference,
            base(adapter),
            first.reference,
            base(first)
        ));
    }
    // Its factors are of f32.
    let bytes = |module: &ModuleOutline| 4 * module.rank * (module.in_features + module.out_features);
    AdapterOutline {
        reference: reference(adapters.iter().map(|(adapter, weight)| (&*adapter.reference, *weight)), combination),
        format: PEFT.into(),
        base: first.base.clone(),
        notes,
        // Each adapter was held to its own.
        unknown_fields: Vec::new(),
        row_order: first.row_order,
        bytes: modules.iter().map(bytes).sum::<usize>() as u64,
        modules,
        replacements: Vec::new(),
        rows: Vec::new(),
        features,
        targets: Some(DeclaredTargets::new(ModuleSelector::Names(names))),
    }
}

/// SHA-256 over all that decides the result.
fn digest(
    adapters: &[(Arc<LoraAdapter>, f32)],
    asked: &Combination,
    effective: &Combination,
    modules: &[LoraModule],
) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{asked:?} {effective:?}\n"));
    for (adapter, weight) in adapters {
        hash.update(format!("{} {}\n", adapter.digest, weight.to_bits()));
    }
    for module in modules {
        hash.update(format!("{}\n", module.name));
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
