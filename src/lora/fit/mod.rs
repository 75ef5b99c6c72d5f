//! Whether adapters fit a base, decided from headers: no weight of the base is read.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use llm_local_core::{Encoding, Error, FloatType, LoraAdapter, LoraModule, ModelFormat, ModelInfo, Result};

use super::{
    message::{reason, shape_text, some_of},
    targets::{BaseModules, Targets, Verdict},
};

#[cfg(test)]
mod tests;

/// What adapters change in a base.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct FitReport {
    /// The adapters, in the order given.
    pub adapters: Vec<FittedAdapter>,
    /// The tensors of the base that change, sorted by name.
    pub touched: Vec<TouchedTensor>,
}

impl FitReport {
    /// Bytes of the largest touched tensor in f32: what a merge needs for a moment in each thread that reads tensors.
    pub fn largest_touched_f32_bytes(&self) -> u64 {
        let elements = |t: &TouchedTensor| t.shape.iter().map(|&d| d as u64).product::<u64>();
        self.touched.iter().map(elements).max().unwrap_or(0) * 4
    }
}

/// An adapter that fits.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct FittedAdapter {
    /// Its ref.
    pub reference: String,
    /// Modules that it changes: all that it has.
    pub modules: usize,
    /// Its smallest and its largest rank.
    pub ranks: (usize, usize),
    /// The smallest and the largest of what its products `B @ A` are multiplied by, its weight included.
    pub scales: (f64, f64),
    /// Bytes of memory that its factors take.
    pub bytes: u64,
}

/// A tensor of the base that changes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TouchedTensor {
    /// Its name.
    pub name: String,
    /// Its shape: (out, in).
    pub shape: Vec<usize>,
    /// The type it is stored in.
    pub stored: FloatType,
    /// The adapters that change it, as indexes of [`FitReport::adapters`].
    pub adapters: Vec<usize>,
}

/// Checks `adapters`, each with the weight its delta is multiplied by, against the headers of a base.
///
/// Every tensor of an adapter must have a base tensor of the right shape, in a plain float type; every module that
/// an adapter declares must have its tensors, and every tensor its declaration.
///
/// # Errors
/// [`Error::AdapterMergeFailed`] naming the adapter that does not fit, the tensors or fields, what was expected and
/// what was found.
pub fn fit(adapters: &[(Arc<LoraAdapter>, f32)], info: &ModelInfo) -> Result<FitReport> {
    let base = BaseModules::new(info);
    let mut touched: BTreeMap<&str, TouchedTensor> = BTreeMap::new();
    let mut fitted = Vec::with_capacity(adapters.len());
    for (index, (adapter, weight)) in adapters.iter().enumerate() {
        let defects = defects(adapter, *weight, info, &base);
        if !defects.is_empty() {
            return Err(Error::adapter(&adapter.reference, reason(&defects)));
        }
        for module in &adapter.modules {
            let Some(entry) = base.weight(&module.name) else { continue };
            let Encoding::Float(stored) = entry.encoding else { continue };
            let fresh =
                || TouchedTensor { name: entry.name.clone(), shape: entry.shape.clone(), stored, adapters: Vec::new() };
            touched.entry(&module.name).or_insert_with(fresh).adapters.push(index);
        }
        fitted.push(FittedAdapter::new(adapter, *weight));
    }
    let mut touched: Vec<_> = touched.into_values().collect();
    touched.sort_by(|x, y| x.name.cmp(&y.name));
    Ok(FitReport { adapters: fitted, touched })
}

impl FittedAdapter {
    fn new(adapter: &LoraAdapter, weight: f32) -> Self {
        let ranks = adapter.modules.iter().map(|m| m.rank);
        let scales = || adapter.modules.iter().map(|m| m.scale * f64::from(weight));
        Self {
            reference: adapter.reference.clone(),
            modules: adapter.modules.len(),
            ranks: (ranks.clone().min().unwrap_or(0), ranks.max().unwrap_or(0)),
            scales: (scales().fold(f64::INFINITY, f64::min), scales().fold(f64::NEG_INFINITY, f64::max)),
            bytes: adapter.byte_len() as u64,
        }
    }
}

/// Everything that keeps `adapter` from being used on `base`.
fn defects(adapter: &LoraAdapter, weight: f32, info: &ModelInfo, base: &BaseModules<'_>) -> Vec<String> {
    if !matches!(info.format, ModelFormat::Safetensors { .. }) {
        return vec![format!(
            "adapters on GGUF bases are not supported yet, and `{}` is one; use the safetensors checkpoint of it",
            info.id
        )];
    }
    let mut defects = Vec::new();
    if !weight.is_finite() || weight == 0.0 {
        defects.push(format!("its weight is {weight}; expected a finite number other than 0"));
    }
    if !adapter.replacements.is_empty() {
        let names: Vec<_> = adapter.replacements.iter().map(|r| r.name.as_str()).collect();
        defects.push(format!("it replaces {}: modules saved in full are not supported yet", some_of(&names)));
    }
    if adapter.modules.is_empty() {
        defects.push("it has no low-rank pairs, so it would do nothing".into());
    }
    if !defects.is_empty() {
        return defects;
    }
    let targets = match adapter.targets.as_ref().map(|declared| Targets::new(declared, base)).transpose() {
        Ok(targets) => targets,
        Err(reason) => return vec![reason],
    };
    if let Some(targets) = &targets {
        defects.extend(targets.unmatched(base));
    }
    let mut seen = BTreeSet::new();
    for module in &adapter.modules {
        if !seen.insert(module.name.as_str()) {
            defects.push(format!("the module `{}` stands there twice", module.name));
        }
        defects.extend(module_defect(module, base, info));
        defects.extend(targets.as_ref().and_then(|t| undeclared(module, t)));
    }
    if let Some(targets) = &targets {
        let covered = base.names().filter(|name| targets.verdict(name) == Verdict::Covered);
        let missing: Vec<_> = covered.filter(|name| !seen.contains(name)).collect();
        if !missing.is_empty() {
            defects.push(format!(
                "it declares {} targets that it has no tensors for: {}; it is incomplete, or `target_modules` covers \
                 more than was trained",
                missing.len(),
                some_of(&missing)
            ));
        }
    }
    defects
}

/// Why the pair of `module` cannot be added to its base tensor.
fn module_defect(module: &LoraModule, base: &BaseModules<'_>, info: &ModelInfo) -> Option<String> {
    let LoraModule { name, rank, in_features, out_features, .. } = module;
    if module.magnitude.is_some() || module.bias.is_some() {
        return Some(format!("`{name}` has a magnitude (DoRA) or a bias of lora_B, which are not supported yet"));
    }
    if !module.scale.is_finite() || module.scale == 0.0 {
        return Some(format!("`{name}` has the scale {}; expected a finite number other than 0", module.scale));
    }
    if *rank == 0 || module.a.len() != rank * in_features || module.b.len() != out_features * rank {
        return Some(format!("`{name}` has factors whose lengths do not fit its rank {rank} and its shapes"));
    }
    let Some(entry) = base.weight(name) else {
        let hint = if BaseModules::is_head(name) {
            ": its output head is tied to the embedding, and LoRA on a tied head is not supported yet"
        } else {
            "; was the adapter trained on another base?"
        };
        return Some(format!(
            "`{name}.lora_A` and `.lora_B` belong to the tensor `{name}.weight`, which `{}` does not have{hint}",
            info.id
        ));
    };
    if BaseModules::is_embedding(name) {
        return Some(format!("`{name}` is an embedding, on which LoRA is not supported yet"));
    }
    let Encoding::Float(_) = entry.encoding else {
        return Some(format!(
            "the base stores `{}` as {}; adapters on quantized weights are not supported yet, use a checkpoint in \
             f32, f16 or bf16",
            entry.name, entry.encoding
        ));
    };
    let [rows, columns] = entry.shape[..] else {
        return Some(format!(
            "the base tensor `{}` has the shape {}; LoRA needs a matrix (out, in)",
            entry.name,
            shape_text(&entry.shape)
        ));
    };
    let swapped = (*in_features, *out_features) == (rows, columns) && rows != columns;
    let hint = if swapped { ", which would fit transposed: is it of a layout with (in, out) weights?" } else { "" };
    for (factor, found, expected, matches) in [
        ("lora_A", [*rank, *in_features], [*rank, columns], *in_features == columns),
        ("lora_B", [*out_features, *rank], [rows, *rank], *out_features == rows),
    ] {
        if !matches {
            return Some(format!(
                "`{name}.{factor}` has the shape {}{hint}; expected {}, since the base tensor `{}` has the shape {}",
                shape_text(&found),
                shape_text(&expected),
                entry.name,
                shape_text(&entry.shape)
            ));
        }
    }
    None
}

/// Why `module` should have no pair by what the adapter declares.
fn undeclared(module: &LoraModule, targets: &Targets) -> Option<String> {
    let why = match targets.verdict(&module.name) {
        Verdict::Covered => return None,
        Verdict::NotDeclared => "`target_modules` does not cover",
        Verdict::Excluded => "`exclude_modules` excludes",
        Verdict::OtherLayer => "`layers_to_transform` leaves out",
    };
    Some(format!("it has tensors for the module `{}`, which {why}", module.name))
}
