//! Whether adapters fit a base, decided from headers: no weight of the base is read.

mod check;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use llm_local_core::{Encoding, Error, FloatType, LoraAdapter, ModelInfo, Result};

use self::check::{check, without_effect};
use super::{message::reason, outline::AdapterOutline, targets::BaseModules};

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
    /// The names in its `target_modules` that no module of the base matches: lists over several architectures have such.
    pub unmatched_targets: Vec<String>,
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
/// an adapter declares and the base has must have its tensors, and every tensor its declaration.
///
/// # Errors
/// [`Error::AdapterMergeFailed`] naming the adapter that does not fit, the tensors or fields, what was expected and
/// what was found.
pub fn fit(adapters: &[(Arc<LoraAdapter>, f32)], info: &ModelInfo) -> Result<FitReport> {
    let outlines: Vec<_> =
        adapters.iter().map(|(adapter, weight)| (AdapterOutline::from(&**adapter), *weight)).collect();
    let report = fit_outlines(&outlines, info)?;
    for (adapter, weight) in adapters {
        if let Some(reason) = without_effect(adapter, *weight) {
            return Err(Error::adapter(&adapter.reference, reason));
        }
    }
    Ok(report)
}

/// [`fit`], as far as it can be told without the adapters' values.
pub(crate) fn fit_outlines(adapters: &[(AdapterOutline, f32)], info: &ModelInfo) -> Result<FitReport> {
    let base = BaseModules::new(info);
    let mut touched: BTreeMap<&str, TouchedTensor> = BTreeMap::new();
    let mut fitted = Vec::with_capacity(adapters.len());
    for (index, (adapter, weight)) in adapters.iter().enumerate() {
        let unmatched = check(adapter, *weight, info, &base)
            .map_err(|defects| Error::adapter(&adapter.reference, reason(&defects)))?;
        for module in &adapter.modules {
            let Some(entry) = base.weight(&module.name) else { continue };
            let Encoding::Float(stored) = entry.encoding else { continue };
            let fresh =
                || TouchedTensor { name: entry.name.clone(), shape: entry.shape.clone(), stored, adapters: Vec::new() };
            touched.entry(&module.name).or_insert_with(fresh).adapters.push(index);
        }
        fitted.push(FittedAdapter::new(adapter, *weight, unmatched));
    }
    let mut touched: Vec<_> = touched.into_values().collect();
    touched.sort_by(|x, y| x.name.cmp(&y.name));
    Ok(FitReport { adapters: fitted, touched })
}

impl FittedAdapter {
    fn new(adapter: &AdapterOutline, weight: f32, unmatched_targets: Vec<String>) -> Self {
        let ranks = adapter.modules.iter().map(|m| m.rank);
        let scales = || adapter.modules.iter().map(|m| m.scale * f64::from(weight));
        Self {
            reference: adapter.reference.clone(),
            modules: adapter.modules.len(),
            ranks: (ranks.clone().min().unwrap_or(0), ranks.max().unwrap_or(0)),
            scales: (scales().fold(f64::INFINITY, f64::min), scales().fold(f64::NEG_INFINITY, f64::max)),
            bytes: adapter.bytes,
            unmatched_targets,
        }
    }
}
