//! The merge: a [`TensorSource`] around a base, whose touched tensors are the sum of base and adapters.
//!
//! | module | what it holds |
//! |---|---|
//! | `factors` | what the kernel works with, from adapters and what they change |
//! | `kernel` | one tensor, block by block; plain pairs alone |
//! | `mixed` | tiles of everything else: values replaced, DoRA |
//! | `overlay` | what replaces values |
//! | `stored` | a base tensor as it is stored, to f32 |
//! | `scan` | sums over tensors as they are stored |
//! | `product` | `C += B @ A` on slices |

mod factors;
mod kernel;
mod mixed;
mod overlay;
mod product;
mod scan;
mod stored;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use llm_local_core::{
    Allowance, Encoding, Error, FloatType, LoraAdapter, ModelInfo, Result, TensorData, TensorEntry, TensorSource,
};

pub(super) use self::scan::{difference, squares};
use self::{kernel::Touched, stored::Stored};
use super::{
    fit::{Change, FitReport, fit_changes},
    message::shape_text,
    quantized,
};

/// A base with adapters merged in while it is read.
///
/// An untouched tensor is passed through as the base gives it. A touched one is computed when it is read, in f32, and
/// rounded once to the type asked for. One that the base stores in ggml's blocks is dequantized for that, a few rows at a
/// time, and its entry then says f16; read as f32 it is not rounded at all. With the weight w of each adapter it is, in this
/// order:
///
/// 1. `W + sum of w * (R - W)` for tensors R that replace it; a single one of weight 1 is taken as it is,
/// 2. the same for rows that replace some of it,
/// 3. `W + sum of w * delta`, where delta is `scale * (B @ A)`, or `m / n * (W + scale * (B @ A)) - W` for DoRA, with n the
///    norms of the rows in the bracket, summed in f64.
///
/// The same bits come out whatever the number of threads. Nothing is kept, so reading a tensor twice computes it twice;
/// while it is computed, memory holds the result, up to three tiles in f32 per thread, and its factors in f32.
pub struct MergedSource {
    base: Arc<dyn TensorSource>,
    adapters: Vec<(Arc<LoraAdapter>, f32)>,
    changes: HashMap<String, Change>,
    /// The base's entries, where some are others.
    entries: Option<Vec<TensorEntry>>,
    report: FitReport,
    info: Arc<ModelInfo>,
}

impl MergedSource {
    /// Puts `adapters`, each with what its delta is multiplied by, over `base`, whose description is `info`. Reads no
    /// weight.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] as [`fit()`](super::fit()), if a tensor that changes is quantized in a way that cannot
    /// be dequantized (ggml's blocks take the cargo feature `candle`), or if `base` has other tensors than `info` says.
    pub fn new(base: Arc<dyn TensorSource>, adapters: Vec<(Arc<LoraAdapter>, f32)>, info: &ModelInfo) -> Result<Self> {
        Self::allowing(base, adapters, &[], info)
    }

    /// As [`MergedSource::new`], with what is let pass of each adapter, in their order.
    ///
    /// # Errors
    /// As [`MergedSource::new`], of what is not let pass.
    pub fn allowing(
        base: Arc<dyn TensorSource>,
        adapters: Vec<(Arc<LoraAdapter>, f32)>,
        allow: &[BTreeSet<Allowance>],
        info: &ModelInfo,
    ) -> Result<Self> {
        let (report, changes) = fit_changes(&adapters, allow, info)?;
        report.warn(&info.id);
        let changes: HashMap<_, _> = changes.into_iter().map(|change| (change.name.clone(), change)).collect();
        let info = report.merged_info(&Arc::new(info.clone()));
        let mut merged = Self { base, adapters, changes, entries: None, report, info };
        for touched in &merged.report.touched {
            let change = &merged.changes[&touched.name];
            if !change.terms.is_empty() {
                quantized::check(change.stored).map_err(|why| {
                    let hint = "keep the adapter unmerged, or use a checkpoint in f32, f16 or bf16";
                    merged.error(change, format!("{why}: {hint}"))
                })?;
            }
            match merged.base.entry(&change.from) {
                Some(e) if e.shape == change.base_shape && e.encoding == change.stored => {}
                found => {
                    let found = found.map_or("is missing".into(), |e| {
                        format!("has the shape {} in {}", shape_text(&e.shape), e.encoding)
                    });
                    return Err(merged.error(
                        change,
                        format!("{found}; expected {} in {}", shape_text(&change.base_shape), change.stored),
                    ));
                }
            }
        }
        merged.entries = merged.changed_entries();
        Ok(merged)
    }

    /// What the adapters change.
    pub fn report(&self) -> &FitReport {
        &self.report
    }

    /// The description of the base with the adapters merged in: another one than the base's where embedding and head are
    /// untied, the vocabulary grows, or a quantized tensor changes.
    pub fn info(&self) -> &Arc<ModelInfo> {
        &self.info
    }

    /// The base's entries with those that have another shape, are floats now or are new, if there are such.
    fn changed_entries(&self) -> Option<Vec<TensorEntry>> {
        let is_own = |change: &Change| {
            let entry = self.base.entry(&change.name);
            entry.is_some_and(|entry| entry.shape == change.shape && entry.encoding == given_as(change))
        };
        if self.changes.values().all(is_own) {
            return None;
        }
        let mut entries = self.base.entries().to_vec();
        for touched in &self.report.touched {
            let encoding = quantized::touched_as(touched);
            let changed = TensorEntry::new(touched.name.clone(), touched.shape.clone(), encoding);
            match entries.iter_mut().find(|entry| entry.name == touched.name) {
                Some(entry) => *entry = changed,
                None => entries.push(changed),
            }
        }
        Some(entries)
    }

    /// An error of all adapters that touch a tensor; `reason` continues a sentence that starts with its name.
    fn error(&self, change: &Change, reason: impl std::fmt::Display) -> Error {
        let mut adapters: Vec<_> = change.terms.iter().map(|term| term.adapter).collect();
        adapters.dedup();
        let adapters: Vec<_> = adapters.into_iter().map(|i| self.adapters[i].0.reference.as_str()).collect();
        Error::adapter(adapters.join(" + "), format!("the base tensor `{}` {reason}", change.name))
    }

    fn merge(&self, change: &Change, want: Option<FloatType>) -> Result<TensorData<'static>> {
        let Encoding::Float(own) = given_as(change) else {
            return Err(self.error(change, format!("is stored as {}, which cannot be merged into", change.stored)));
        };
        let (count, rows, columns) = factors::matrices(&change.shape);
        let overlays = factors::overlays(change, &self.adapters);
        let is_of_all = !overlays[0].is_empty() && overlays[0].iter().all(|overlay| overlay.is_of_all(count * rows));
        let is_replaced = is_of_all && overlays[0].iter().map(|overlay| overlay.weight).sum::<f64>() == 1.0;
        let (base_count, base_rows, _) = factors::matrices(&change.base_shape);
        let base_rows = base_count * base_rows;
        let expected = TensorEntry::new(&change.from, change.base_shape.clone(), change.stored).stored_bytes();
        let expected = expected.ok_or_else(|| {
            let shape = shape_text(&change.base_shape);
            self.error(change, format!("has the shape {shape}, whose rows are not whole blocks of {}", change.stored))
        })?;
        let data = if is_replaced { None } else { Some(self.base.read(&change.from, None)?) };
        let stored = data.as_ref().map(|data| Stored::new(data, change.stored, expected)).transpose();
        let stored = stored.map_err(|reason| Error::load(format!("tensor `{}`", change.from), reason))?;
        let sums = factors::sums(change, &self.adapters);
        let touched = Touched { stored, base_rows, rows, columns, overlays, sums };
        kernel::merge(&touched, want.unwrap_or(own)).map_err(|reason| self.error(change, reason))
    }
}

/// How the merged base gives the tensor.
fn given_as(change: &Change) -> Encoding {
    quantized::given_as(change.stored, !change.terms.is_empty())
}

impl TensorSource for MergedSource {
    fn entries(&self) -> &[TensorEntry] {
        self.entries.as_deref().unwrap_or_else(|| self.base.entries())
    }

    fn read(&self, name: &str, want: Option<FloatType>) -> Result<TensorData<'_>> {
        match self.changes.get(name) {
            None => self.base.read(name, want),
            Some(change) if change.terms.is_empty() => self.base.read(&change.from, want),
            Some(change) => self.merge(change, want),
        }
    }

    fn entry(&self, name: &str) -> Option<&TensorEntry> {
        match &self.entries {
            Some(entries) if self.changes.contains_key(name) => entries.iter().find(|entry| entry.name == name),
            _ => self.base.entry(name),
        }
    }
}
