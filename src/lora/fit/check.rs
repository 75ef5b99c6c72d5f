//! Everything that keeps one adapter from being used on a base.

use std::collections::{BTreeMap, BTreeSet};

use llm_local_core::Allowance;

use super::{
    experts::stacked_names,
    place::{Misfit, MisfitKind, Placed, Placing},
    report::Defect,
    tie::keeps_tied,
};
use crate::lora::{
    message::some_of,
    outline::{AdapterOutline, ModuleOutline},
    targets::{BaseModules, Targets, Verdict},
};

/// What a check finds.
#[derive(Debug, Default)]
pub(in crate::lora) struct Checked {
    /// What the adapter does.
    pub(super) placed: Placed,
    /// The declared names that match nothing.
    pub(in crate::lora) unmatched: Vec<String>,
    /// Everything that keeps the adapter from being used, also what can be let pass.
    pub(in crate::lora) defects: Vec<Defect>,
    /// Its pairs, its replacements and its rows, in this order.
    pub(in crate::lora) parts: Vec<CheckedPart>,
    /// The modules of the base that it says it applies to, and whether it has tensors for each.
    pub(in crate::lora) targets: BTreeMap<String, bool>,
}

/// A part of an adapter.
#[derive(Debug)]
pub(in crate::lora) struct CheckedPart {
    /// The name of the tensor of the base that it belongs to, in the names of the Hugging Face layout.
    pub(in crate::lora) name: String,
    /// The tensors of the base that it changes, in the base's names.
    pub(in crate::lora) tensors: Vec<String>,
    /// Why it changes none.
    pub(in crate::lora) misfit: Option<MisfitKind>,
}

impl Checked {
    /// The names of parts that the base has no tensor for.
    pub(super) fn unused(&self) -> Vec<String> {
        let parts = self.parts.iter().filter(|part| part.misfit == Some(MisfitKind::Unused));
        parts.map(|part| part.name.clone()).collect()
    }

    fn other(&mut self, reasons: impl IntoIterator<Item = String>) {
        self.defects.extend(reasons.into_iter().map(Defect::new));
    }

    fn allowable(&mut self, allowance: Allowance, reasons: impl IntoIterator<Item = String>) {
        self.defects.extend(reasons.into_iter().map(|reason| Defect::allowable(reason, allowance)));
    }

    fn take(&mut self, name: String, result: Result<Placed, Misfit>) {
        let (mut tensors, mut kind) = (Vec::new(), None);
        match result {
            Ok(placed) => {
                tensors = placed.iter().map(|(part, _)| part.tensor.clone()).collect();
                tensors.dedup();
                self.placed.extend(placed);
            }
            Err(misfit) => {
                match misfit.kind {
                    MisfitKind::Unused => self.allowable(Allowance::UnusedTensors, [misfit.reason]),
                    _ => self.other([misfit.reason]),
                }
                kind = Some(misfit.kind);
            }
        }
        self.parts.push(CheckedPart { name, tensors, misfit: kind });
    }
}

/// Checks the adapter that `placing` is of, which is `allowed` some things.
pub(super) fn check(placing: &Placing<'_>, allowed: &BTreeSet<Allowance>) -> Checked {
    let AdapterOutline { modules, replacements, rows, .. } = placing.adapter;
    let base = BaseModules::new(&placing.view.info);
    let mut found = Checked::default();
    let weight = placing.weight;
    if !weight.is_finite() || weight == 0.0 {
        found.other([format!("its weight is {weight}; expected a finite number other than 0")]);
    }
    if modules.is_empty() && replacements.is_empty() && rows.is_empty() {
        let reason = "it has no low-rank pairs and replaces nothing, so it would do nothing".into();
        found.allowable(Allowance::NoEffect, [reason]);
        return found;
    }
    if let (Some(own), Ok(decoder)) = (placing.adapter.base.architecture, &placing.info.decoder)
        && own.gguf_name() != decoder.architecture.gguf_name()
    {
        found.other([format!(
            "it is for bases of the architecture `{}` (`general.architecture`), and `{}` is of `{}`",
            own.gguf_name(),
            placing.info.id,
            decoder.architecture.gguf_name()
        )]);
    }
    found.allowable(Allowance::UnknownFields, placing.adapter.unknown_fields.iter().cloned());
    let targets = declared(placing, &base, &mut found);
    let mut seen = BTreeSet::new();
    for (index, module) in modules.iter().enumerate() {
        if !seen.insert(module.name.as_str()) {
            found.other([format!("the module `{}` stands there twice", module.name)]);
        }
        found.take(module.weight_name(), placing.module(index, module));
        let is_left_out = found.parts.last().is_some_and(|part| part.misfit == Some(MisfitKind::Unused))
            && allowed.contains(&Allowance::UnusedTensors);
        // PEFT saves the pair of a head that it keeps tied, and declares that of the embedding.
        let is_tied = keeps_tied(placing.adapter) && BaseModules::is_head(&module.name);
        if let Some(targets) = targets.as_ref().filter(|_| !is_tied && !is_left_out) {
            match undeclared(module, targets) {
                Ok(reason) => found.allowable(Allowance::UndeclaredTensors, reason),
                Err(reason) => found.other([reason]),
            }
        }
    }
    if let Some(targets) = &targets {
        let modules = modules.iter().filter(|module| !module.is_parameter).map(|module| module.name.as_str()).collect();
        match targets.covered(&base, &modules) {
            Ok(covered) => {
                found.targets = covered.iter().map(|name| ((*name).to_owned(), modules.contains(name))).collect();
                parameters(targets, &base, &seen, &mut found);
                let reason = incomplete(&found.targets);
                found.allowable(Allowance::MissingTensors, reason);
            }
            Err(reason) => found.other([reason]),
        }
    }
    for (kind, names) in [
        ("replacement of", replacements.iter().map(|r| &r.name).collect::<Vec<_>>()),
        ("rows of", rows.iter().map(|r| &r.name).collect()),
    ] {
        let mut seen = BTreeSet::new();
        let twice = names.iter().filter(|name| !seen.insert(**name));
        found.other(twice.map(|name| format!("the {kind} `{name}` stands there twice")));
    }
    for (index, replacement) in replacements.iter().enumerate() {
        found.take(replacement.name.clone(), placing.replacement(index, replacement));
    }
    for (index, replaced) in rows.iter().enumerate() {
        found.take(replaced.name.clone(), placing.rows(index, replaced));
    }
    if found.placed.is_empty() && found.parts.iter().all(|part| part.misfit == Some(MisfitKind::Unused)) {
        let reason = format!("`{}` has none of the tensors that it is for, so it would do nothing", placing.info.id);
        found.allowable(Allowance::NoEffect, [reason]);
    }
    found
}

/// What the adapter says it applies to, if it does.
fn declared(placing: &Placing<'_>, base: &BaseModules<'_>, found: &mut Checked) -> Option<Targets> {
    // Without pairs there is nothing that `target_modules` could be of.
    let declared = placing.adapter.targets.as_ref().filter(|_| !placing.adapter.modules.is_empty())?;
    let targets = match Targets::new(declared, base) {
        Ok(targets) => targets,
        Err(reason) => {
            found.other([reason]);
            return None;
        }
    };
    match targets.unmatched(base) {
        Ok(names) => found.unmatched = names,
        // Then all its tensors are of modules that it does not declare.
        Err(reason) if targets.covered(base, &BTreeSet::new()).is_ok() => {
            found.allowable(Allowance::UndeclaredTensors, [reason])
        }
        Err(reason) => {
            found.other([reason]);
            return None;
        }
    }
    match targets.absent_layers(base) {
        Ok(reason) => found.other(reason),
        Err(reason) => {
            found.other([reason]);
            return None;
        }
    }
    Some(targets)
}

/// Adds the bare parameters of the base that the adapter, which has pairs for `seen`, says it applies to.
fn parameters(targets: &Targets, base: &BaseModules<'_>, seen: &BTreeSet<&str>, found: &mut Checked) {
    if !targets.has_parameters() {
        return;
    }
    // Experts that a checkpoint stores one by one are stacked in memory, and have names of parameters there.
    let mut names = stacked_names(base.tensors());
    names.extend(base.tensors().map(str::to_owned));
    let unmatched = targets.unmatched_parameters(&names);
    let declared = names.into_iter().filter(|name| targets.has_parameter(name));
    found.targets.extend(declared.map(|name| (name.clone(), seen.contains(name.as_str()))));
    if !unmatched.is_empty() && found.targets.is_empty() {
        let reason =
            format!("`target_parameters` declares {}, and no tensor of the base has such a name", some_of(&unmatched));
        found.allowable(Allowance::MissingTensors, [reason]);
    }
    found.unmatched.extend(unmatched);
}

/// That the adapter has no pair for some of its declared targets, if that is so.
fn incomplete(targets: &BTreeMap<String, bool>) -> Option<String> {
    let missing: Vec<_> = targets.iter().filter(|(_, has_tensors)| !**has_tensors).map(|(name, _)| name).collect();
    (!missing.is_empty()).then(|| {
        format!(
            "it declares {} target{} that it has no tensors for: {}; it is incomplete, or `target_modules` (or \
             `target_parameters`) covers more than was trained",
            missing.len(),
            if missing.len() == 1 { "" } else { "s" },
            some_of(&missing)
        )
    })
}

/// Why `module` should have no pair by what the adapter declares, if it should not; the error is as that of
/// [`Targets::verdict`].
fn undeclared(module: &ModuleOutline, targets: &Targets) -> Result<Option<String>, String> {
    let name = &module.name;
    if module.is_parameter {
        let has = targets.has_parameter(name);
        return Ok((!has).then(|| format!("it has tensors for `{name}`, which `target_parameters` does not name")));
    }
    let why = match targets.verdict(&module.name)? {
        Verdict::Covered => return Ok(None),
        Verdict::NotDeclared => "`target_modules` does not cover",
        Verdict::Excluded => "`exclude_modules` excludes",
        Verdict::Saved => "`modules_to_save` has in full, so that PEFT would put no pair there, and",
        Verdict::OtherLayer => "`layers_to_transform` leaves out",
    };
    Ok(Some(format!("it has tensors for the module `{}`, which {why}", module.name)))
}
