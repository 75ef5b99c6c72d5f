//! The merge: a [`TensorSource`] around a base, whose touched tensors are the sum of base and adapters.

mod kernel;
mod product;

#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc};

use llm_local_core::{
    Encoding, Error, FloatType, LoraAdapter, ModelInfo, Result, TensorData, TensorEntry, TensorSource,
};

use self::kernel::{Delta, Stored};
use super::{
    fit::{FitReport, TouchedTensor, fit},
    floats,
    message::shape_text,
};

/// A base with adapters merged in while it is read.
///
/// An untouched tensor is passed through as the base gives it. A touched one is computed when it is read:
/// `W + sum of weight * scale * (B @ A)` in f32, rounded once to the type asked for. The same bits come out whatever
/// the number of threads. Nothing is kept, so reading a tensor twice computes it twice; while it is computed, memory
/// holds the result, one block in f32 per thread, and its factors in f32.
pub struct MergedSource {
    base: Arc<dyn TensorSource>,
    adapters: Vec<(Arc<LoraAdapter>, f32)>,
    touched: HashMap<String, TouchedTensor>,
    report: FitReport,
}

impl MergedSource {
    /// Puts `adapters`, each with what its delta is multiplied by, over `base`, whose description is `info`. Reads no
    /// weight.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] as [`fit()`], or if `base` has other tensors than `info` says.
    pub fn new(base: Arc<dyn TensorSource>, adapters: Vec<(Arc<LoraAdapter>, f32)>, info: &ModelInfo) -> Result<Self> {
        let report = fit(&adapters, info)?;
        for adapter in report.adapters.iter().filter(|adapter| !adapter.unmatched_targets.is_empty()) {
            tracing::warn!(
                adapter = adapter.reference,
                base = info.id,
                unmatched = ?adapter.unmatched_targets,
                "names in `target_modules` match no module of the base"
            );
        }
        let touched: HashMap<_, _> = report.touched.iter().map(|t| (t.name.clone(), t.clone())).collect();
        let merged = Self { base, adapters, touched, report };
        for tensor in &merged.report.touched {
            match merged.base.entry(&tensor.name) {
                Some(e) if e.shape == tensor.shape && e.encoding == Encoding::Float(tensor.stored) => {}
                found => {
                    let found = found.map_or("is missing".into(), |e| {
                        format!("has the shape {} in {}", shape_text(&e.shape), e.encoding)
                    });
                    return Err(merged.error(
                        tensor,
                        format!("{found}; expected {} in {}", shape_text(&tensor.shape), tensor.stored),
                    ));
                }
            }
        }
        Ok(merged)
    }

    /// What the adapters change.
    pub fn report(&self) -> &FitReport {
        &self.report
    }

    /// An error of all adapters that touch `tensor`; `reason` continues a sentence that starts with its name.
    fn error(&self, tensor: &TouchedTensor, reason: impl std::fmt::Display) -> Error {
        let adapters: Vec<_> = tensor.adapters.iter().map(|&i| self.adapters[i].0.reference.as_str()).collect();
        Error::adapter(adapters.join(" + "), format!("the base tensor `{}` {reason}", tensor.name))
    }

    /// The factors of all adapters for `tensor`, side by side: the product of the whole is the sum of the products.
    fn delta(&self, tensor: &TouchedTensor) -> Result<Delta> {
        let name = tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name);
        let mut modules = Vec::with_capacity(tensor.adapters.len());
        for &index in &tensor.adapters {
            let (adapter, weight) = &self.adapters[index];
            let module = adapter.module(name).ok_or_else(|| self.error(tensor, "has lost its pair"))?;
            modules.push((module, module.scale * f64::from(*weight)));
        }
        let [rows, columns] = tensor.shape[..] else { return Err(self.error(tensor, "is no matrix")) };
        let rank: usize = modules.iter().map(|(m, _)| m.rank).sum();
        let (mut a, mut b) = (vec![0.0; rank * columns], vec![0.0; rows * rank]);
        let mut first = 0;
        for (module, scale) in modules {
            let end = first + module.rank;
            floats::scale_into(&module.a, 0, 1.0, &mut a[first * columns..end * columns]);
            for (row, b) in b.chunks_exact_mut(rank).enumerate() {
                floats::scale_into(&module.b, row * module.rank, scale, &mut b[first..end]);
            }
            first = end;
        }
        Ok(Delta { rows, columns, rank, a, b })
    }

    fn merge(&self, tensor: &TouchedTensor, want: FloatType) -> Result<TensorData<'static>> {
        let delta = self.delta(tensor)?;
        let data = self.base.read(&tensor.name, None)?;
        let stored = Stored::new(&data, tensor.stored, delta.rows * delta.columns)
            .map_err(|reason| Error::load(format!("tensor `{}`", tensor.name), reason))?;
        kernel::merge(stored, &delta, want).map_err(|reason| self.error(tensor, reason))
    }
}

impl TensorSource for MergedSource {
    fn entries(&self) -> &[TensorEntry] {
        self.base.entries()
    }

    fn read(&self, name: &str, want: Option<FloatType>) -> Result<TensorData<'_>> {
        match self.touched.get(name) {
            None => self.base.read(name, want),
            Some(tensor) => self.merge(tensor, want.unwrap_or(tensor.stored)),
        }
    }

    fn entry(&self, name: &str) -> Option<&TensorEntry> {
        self.base.entry(name)
    }
}
