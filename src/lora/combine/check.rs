//! Which adapters can be combined.

use std::{collections::BTreeMap, sync::Arc};

use llm_local_core::{
    Error, LoraAdapter, LoraModule, Result,
    lora::{AdapterFeature, Combination},
    model::Layout,
};

use super::{
    super::{
        floats::first_non_finite,
        outline::{AdapterOutline, ModuleOutline},
    },
    parts::Parts,
};

/// The pairs of one module, of those adapters that have one.
pub(super) type Pairs<'a> = Vec<(&'a LoraModule, f32)>;

/// The pairs of each module, by name.
///
/// # Errors
/// As [`check_outlines`], and [`Error::AdapterMergeFailed`] that names the adapter and the value for one that is not finite.
pub(super) fn pairs_by_module<'a>(
    adapters: &'a [(Arc<LoraAdapter>, f32)],
    combination: &Combination,
) -> Result<BTreeMap<&'a str, Pairs<'a>>> {
    let outlines: Vec<_> =
        adapters.iter().map(|(adapter, weight)| (AdapterOutline::from(&**adapter), *weight)).collect();
    check_outlines(&outlines, combination)?;
    let mut by_module = BTreeMap::<_, Pairs<'_>>::new();
    for (adapter, weight) in adapters {
        if let Some(reason) = adapter.modules.iter().find_map(non_finite) {
            return Err(Error::adapter(&adapter.reference, reason));
        }
        for module in &adapter.modules {
            by_module.entry(module.name.as_str()).or_default().push((module, *weight));
        }
    }
    Ok(by_module)
}

/// The outlines of the pairs of each module, by name, if adapters of these outlines can be combined as far as that can be
/// told without their values.
///
/// # Errors
/// [`Error::AdapterMergeFailed`] that names the adapter, what cannot be combined, and the way out.
pub(super) fn check_outlines<'a>(
    adapters: &'a [(AdapterOutline, f32)],
    combination: &Combination,
) -> Result<BTreeMap<&'a str, Vec<&'a ModuleOutline>>> {
    let Some(((first, _), rest)) = adapters.split_first() else {
        return Err(Error::invalid_spec("adapters", "expected at least one to combine, found none"));
    };
    for (adapter, weight) in adapters {
        let refuse = |reason: String| Err(Error::adapter(&adapter.reference, reason));
        if !weight.is_finite() {
            return refuse(format!("its weight is {weight}; expected a finite number"));
        }
        if let Some(part) = refused_part(adapter) {
            return refuse(format!(
                "it has {part}, which the combination {} cannot hold, being of plain low-rank pairs (PEFT's would lose it); add the adapters by their exact sum instead (`sum`)",
                combination.name()
            ));
        }
        if adapter.modules.is_empty() {
            return refuse("it has no low-rank pair to combine".into());
        }
        if let Some(reason) = adapter.modules.iter().find_map(defect) {
            return refuse(reason);
        }
    }
    if let Some((other, _)) = rest.iter().find(|(adapter, _)| adapter.row_order != first.row_order) {
        let order = |adapter: &AdapterOutline| if adapter.row_order == Layout::Gguf { "GGUF" } else { "Hugging Face" };
        let reason = format!(
            "its rows of queries and keys are in the order of {}, those of {} in that of {}; add the adapters by their exact sum instead (`sum`)",
            order(other),
            first.reference,
            order(first)
        );
        return Err(Error::adapter(&other.reference, reason));
    }
    let mut by_module = BTreeMap::<_, Vec<(&AdapterOutline, &ModuleOutline)>>::new();
    for (adapter, _) in adapters {
        for module in &adapter.modules {
            by_module.entry(module.name.as_str()).or_default().push((adapter, module));
        }
    }
    let needs_one_rank = Parts::of(combination).arithmetic.is_some() && Parts::of(combination).truncation.is_none();
    for pairs in by_module.values() {
        let (first, like) = pairs[0];
        for (adapter, module) in &pairs[1..] {
            if let Some(reason) = misfit(module, like, &first.reference, needs_one_rank, combination) {
                return Err(Error::adapter(&adapter.reference, reason));
            }
        }
    }
    let plain = |pairs: Vec<(_, &'a ModuleOutline)>| pairs.into_iter().map(|(_, module)| module).collect();
    Ok(by_module.into_iter().map(|(name, pairs)| (name, plain(pairs))).collect())
}

/// What of the adapter is no plain low-rank pair.
fn refused_part(adapter: &AdapterOutline) -> Option<String> {
    let of_module = |feature: AdapterFeature, has: fn(&ModuleOutline) -> bool| {
        let module = adapter.modules.iter().find(|module| has(module))?;
        Some(format!("{feature} (`{}`)", module.name))
    };
    let of_tensor = |features: &str, name: Option<&String>| Some(format!("{features} (`{}`)", name?));
    of_module(AdapterFeature::Dora, |module| module.has_magnitude)
        .or_else(|| of_module(AdapterFeature::LoraBias, |module| module.has_bias))
        .or_else(|| of_module(AdapterFeature::Experts, |module| module.experts.is_some()))
        .or_else(|| of_module(AdapterFeature::TargetParameters, |module| module.is_parameter))
        .or_else(|| of_tensor("modules_to_save or bias", adapter.replacements.first().map(|tensor| &tensor.name)))
        .or_else(|| of_tensor("trainable_token_indices", adapter.rows.first().map(|rows| &rows.name)))
        .or_else(|| {
            let is_tied = adapter.features.contains(&AdapterFeature::WeightTying);
            is_tied.then(|| AdapterFeature::WeightTying.to_string())
        })
}

fn defect(module: &ModuleOutline) -> Option<String> {
    let name = &module.name;
    if let Some(defect) = module.defect {
        return Some(format!("`{name}` {defect}"));
    }
    let is_finite = module.scale.is_finite();
    (!is_finite).then(|| format!("`{name}` has the scale {}; expected a finite number", module.scale))
}

fn non_finite(module: &LoraModule) -> Option<String> {
    let in_factor = |factor, values| first_non_finite(values).map(|(at, value)| (factor, at, value));
    let (factor, at, value) = in_factor("A", &module.a).or_else(|| in_factor("B", &module.b))?;
    Some(format!("{factor} of `{}` holds {value} at index {at}; expected finite numbers", module.name))
}

/// Why a pair cannot be combined with another of the same module.
fn misfit(
    module: &ModuleOutline,
    like: &ModuleOutline,
    reference: &str,
    needs_one_rank: bool,
    combination: &Combination,
) -> Option<String> {
    let name = &module.name;
    let shape = |module: &ModuleOutline| (module.out_features, module.in_features);
    if shape(module) != shape(like) {
        return Some(format!(
            "its delta of `{name}` has the shape {:?}, that of {reference} {:?}; they are of different bases",
            shape(module),
            shape(like)
        ));
    }
    if module.transposed != like.transposed {
        return Some(format!(
            "its `{name}` and that of {reference} differ in fan_in_fan_out; they are of different bases"
        ));
    }
    (needs_one_rank && module.rank != like.rank).then(|| {
        format!(
            "its rank for `{name}` is {}, that of {reference} {}, and the combination {} needs equal ranks; choose `cat`, one of the `-svd` kinds, or `sum`",
            module.rank,
            like.rank,
            combination.name()
        )
    })
}
