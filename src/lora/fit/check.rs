//! Everything that keeps one adapter from being used on a base.

use std::collections::BTreeSet;

use super::{
    place::{Placed, Placing},
    tie::keeps_tied,
};
use crate::lora::{
    message::some_of,
    outline::{AdapterOutline, ModuleOutline},
    targets::{BaseModules, Targets, Verdict},
};

/// Checks the adapter that `placing` is of, and gives what it does and the declared names that match nothing; the error is
/// everything that keeps the adapter from being used.
pub(super) fn check(placing: &Placing<'_>) -> Result<(Placed, Vec<String>), Vec<String>> {
    let AdapterOutline { modules, replacements, rows, .. } = placing.adapter;
    let base = BaseModules::new(&placing.view.info);
    let mut defects = Vec::new();
    let weight = placing.weight;
    if !weight.is_finite() || weight == 0.0 {
        defects.push(format!("its weight is {weight}; expected a finite number other than 0"));
    }
    if modules.is_empty() && replacements.is_empty() && rows.is_empty() {
        defects.push("it has no low-rank pairs and replaces nothing, so it would do nothing".into());
    }
    if !defects.is_empty() {
        return Err(defects);
    }
    // Without pairs there is nothing that `target_modules` could be of.
    let declared = placing.adapter.targets.as_ref().filter(|_| !modules.is_empty());
    let targets = declared.map(|declared| Targets::new(declared, &base)).transpose().map_err(|reason| vec![reason])?;
    let mut unmatched = Vec::new();
    if let Some(targets) = &targets {
        match targets.unmatched(&base) {
            Ok(names) => unmatched = names,
            Err(reason) => defects.push(reason),
        }
        defects.extend(targets.absent_layers(&base).map_err(|reason| vec![reason])?);
    }
    let mut placed = Placed::new();
    let mut take = |result: Result<Placed, String>| match result {
        Ok(terms) => {
            placed.extend(terms);
            None
        }
        Err(defect) => Some(defect),
    };
    let mut seen = BTreeSet::new();
    for module in modules {
        if !seen.insert(module.name.as_str()) {
            defects.push(format!("the module `{}` stands there twice", module.name));
        }
        defects.extend(take(placing.module(module)));
        // PEFT saves the pair of a head that it keeps tied, and declares that of the embedding.
        let is_tied = keeps_tied(placing.adapter) && BaseModules::is_head(&module.name);
        if let Some(targets) = targets.as_ref().filter(|_| !is_tied) {
            defects.extend(undeclared(module, targets).map_err(|reason| vec![reason])?);
        }
    }
    if let Some(targets) = &targets {
        defects.extend(incomplete(targets, &base, &seen).map_err(|reason| vec![reason])?);
    }
    for (kind, names) in [
        ("replacement of", replacements.iter().map(|r| &r.name).collect::<Vec<_>>()),
        ("rows of", rows.iter().map(|r| &r.name).collect()),
    ] {
        let mut seen = BTreeSet::new();
        defects.extend(
            names
                .iter()
                .filter(|name| !seen.insert(**name))
                .map(|name| format!("the {kind} `{name}` stands there twice")),
        );
    }
    for (index, replacement) in replacements.iter().enumerate() {
        defects.extend(take(placing.replacement(index, replacement)));
    }
    for (index, replaced) in rows.iter().enumerate() {
        defects.extend(take(placing.rows(index, replaced)));
    }
    if defects.is_empty() { Ok((placed, unmatched)) } else { Err(defects) }
}

/// The declared targets that the adapter has no pair for, if there are such.
fn incomplete(targets: &Targets, base: &BaseModules<'_>, seen: &BTreeSet<&str>) -> Result<Option<String>, String> {
    let covered = targets.covered(base)?;
    let missing: Vec<_> = covered.into_iter().filter(|name| !seen.contains(name)).collect();
    Ok((!missing.is_empty()).then(|| {
        format!(
            "it declares {} target{} that it has no tensors for: {}; it is incomplete, or `target_modules` covers \
             more than was trained",
            missing.len(),
            if missing.len() == 1 { "" } else { "s" },
            some_of(&missing)
        )
    }))
}

/// Why `module` should have no pair by what the adapter declares, if it should not; the error is as that of
/// [`Targets::verdict`].
fn undeclared(module: &ModuleOutline, targets: &Targets) -> Result<Option<String>, String> {
    // What declares them is `target_parameters`, by their own names.
    if module.is_parameter {
        return Ok(None);
    }
    let why = match targets.verdict(&module.name)? {
        Verdict::Covered => return Ok(None),
        Verdict::NotDeclared => "`target_modules` does not cover",
        Verdict::Excluded => "`exclude_modules` excludes",
        Verdict::OtherLayer => "`layers_to_transform` leaves out",
    };
    Ok(Some(format!("it has tensors for the module `{}`, which {why}", module.name)))
}
