//! The merge: a [`TensorSource`] around a base, whose touched tensors are the sum of base and adapters.
//!
//! | module | what it holds |
//! |---|---|
//! | `destination` | where what is merged goes: new memory, or the caller's |
//! | `factors` | what the kernel works with, from adapters and what they change |
//! | `kernel` | one tensor, block by block; plain pairs alone |
//! | `mixed` | tiles of everything else: values replaced, DoRA |
//! | `output` | what a tensor is given as: floats, or the base's own blocks |
//! | `overlay` | what replaces values |
//! | `peak` | how much memory it takes, told before |
//! | `stored` | a base tensor as it is stored, to f32 |
//! | `scan` | sums over tensors as they are stored |
//! | `product` | `C += B @ A` on slices |

mod destination;
mod factors;
mod kernel;
mod mixed;
mod output;
mod overlay;
mod peak;
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

pub(crate) use self::peak::merge_peak;
pub(super) use self::scan::{difference, squares};
use self::{
    destination::{Destination, New, Within},
    kernel::Touched,
    output::{AffinePart, Exact, Factors},
    stored::ReadTensor,
};
use super::{
    fit::{Change, FitReport, fit_changes},
    message::shape_text,
    quantized::{self, AffineQuantizer, Given, Packing, Quantizer, merged_entries},
};

/// A base with adapters merged in while it is read.
///
/// An untouched tensor is passed through as the base gives it. A touched one is computed when it is read, in f32, and
/// rounded once to the type asked for. One that the base stores quantized is dequantized for that, a few rows at a time, and
/// its entry then says f16; read as f32 it is not rounded at all. ([`MergedSource::requantized`] gives it quantized instead.)
/// Rows that no adapter places anything in are the base's. With the weight w of each adapter, the others are, in this order:
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
    /// By the name of a part of a changed tensor of the base: the tensor's name, and which part it is.
    parts: HashMap<String, (String, AffinePart)>,
    /// The base's entries, where some are others.
    entries: Option<Vec<TensorEntry>>,
    report: FitReport,
    base_info: Arc<ModelInfo>,
    info: Arc<ModelInfo>,
    given: Given,
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
        let base_info = Arc::new(info.clone());
        let info = report.merged_info(&base_info);
        let given = Given::Dequantized;
        let parts = changed_parts(&*base, &changes);
        let mut merged = Self { base, adapters, changes, parts, entries: None, report, base_info, info, given };
        for touched in &merged.report.touched {
            let change = &merged.changes[&touched.name];
            if !change.terms.is_empty() || merged.given_as(change) != change.stored {
                quantized::check(change.stored, &change.base_shape).and_then(|()| merged.check_parts(change)).map_err(
                    |why| {
                        let hint = "keep the adapter unmerged, or use a checkpoint in f32, f16 or bf16";
                        merged.error(change, format!("{why}: {hint}"))
                    },
                )?;
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
        merged.entries = merged_entries(merged.base.entries(), &merged.report.touched, merged.given);
        Ok(merged)
    }

    /// The same merge, whose touched tensors have the encoding again that the base stores them in, where that is a quantized
    /// one: the f32 sum is quantized when they are read. Rows that no adapter places anything in keep the base's bits, as
    /// quantizing them again might change them. Read as floats they are the values that then come out of it, so what
    /// a model computes with. Reads no weight.
    ///
    /// Quantizing may lose what an adapter changes, as a change that is small against the steps of the base is rounded away;
    /// compare what the model gives with what it gives unmerged.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] if a touched tensor is in an encoding that cannot be quantized to. When a tensor is read:
    /// as otherwise, and if the sum is beyond what its encoding can hold.
    pub fn requantized(mut self) -> Result<Self> {
        for touched in &self.report.touched {
            let change = &self.changes[&touched.name];
            if change.terms.is_empty() {
                continue;
            }
            let hint = "keep the adapter unmerged, or merge it into the dequantized tensors";
            quantized::check_again(change.stored, &change.base_shape)
                .map_err(|why| self.error(change, format!("{why}: {hint}")))?;
        }
        self.given = Given::Requantized;
        self.info = self.report.merged_info_as(&self.base_info, self.given);
        self.entries = merged_entries(self.base.entries(), &self.report.touched, self.given);
        Ok(self)
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

    /// An error of all adapters that touch a tensor; `reason` continues a sentence that starts with its name.
    fn error(&self, change: &Change, reason: impl std::fmt::Display) -> Error {
        let mut adapters: Vec<_> = change.terms.iter().map(|term| term.adapter).collect();
        adapters.dedup();
        let adapters: Vec<_> = adapters.into_iter().map(|i| self.adapters[i].0.reference.as_str()).collect();
        Error::adapter(adapters.join(" + "), format!("the base tensor `{}` {reason}", change.name))
    }

    /// Gives what `write` makes of the tensor that `change` is of. Its error continues a sentence that starts with the
    /// tensor's name.
    fn merge<T>(&self, change: &Change, write: impl FnOnce(&Touched<'_>) -> Result<T, String>) -> Result<T> {
        let (count, rows, columns) = factors::matrices(&change.shape);
        let overlays = factors::overlays(change, &self.adapters);
        let is_of_all = !overlays[0].is_empty() && overlays[0].iter().all(|overlay| overlay.is_of_all(count * rows));
        let is_replaced = is_of_all && overlays[0].iter().map(|overlay| overlay.weight).sum::<f64>() == 1.0;
        let (base_count, base_rows, _) = factors::matrices(&change.base_shape);
        let base_rows = base_count * base_rows;
        let read = if is_replaced { None } else { Some(ReadTensor::new(&*self.base, &change.from)?) };
        let stored = read.as_ref().map(ReadTensor::stored).transpose()?;
        let sums = factors::sums(change, &self.adapters);
        let changed = factors::changed_rows(change, &overlays);
        let touched = Touched { stored, base_rows, rows, columns, overlays, sums, changed };
        write(&touched).map_err(|reason| self.error(change, reason))
    }

    /// Gives `to` what `touched` becomes. The error continues a sentence that starts with the tensor's name.
    fn write<D: Destination>(
        &self,
        change: &Change,
        touched: &Touched<'_>,
        want: Option<FloatType>,
        to: D,
    ) -> Result<D::Given, String> {
        match (self.given_as(change), want) {
            (Encoding::Float(own), want) => output::floats(touched, &Exact, want.unwrap_or(own), to),
            (Encoding::Ggml(kind), None) => to.take(touched, &Quantizer::new(kind)?),
            (Encoding::Ggml(kind), Some(want)) => output::floats(touched, &Quantizer::new(kind)?, want, to),
            (Encoding::MlxAffine { .. }, None) => to.take(touched, &self.quantizer(change)?.0),
            (Encoding::MlxAffine { .. }, Some(want)) => output::floats(touched, &self.quantizer(change)?.0, want, to),
            (other, _) => Err(format!("is stored as {other}, which cannot be merged into")),
        }
    }

    /// The scales or biases of what `touched` becomes.
    fn write_part(
        &self,
        change: &Change,
        touched: &Touched<'_>,
        part: AffinePart,
        want: Option<FloatType>,
    ) -> Result<TensorData<'static>, String> {
        let (quantizer, own) = self.quantizer(change)?;
        let (factors, want) = (Factors(quantizer, part), want.unwrap_or(own));
        let mut values = vec![0.0; kernel::items(touched, &factors)];
        kernel::merge(touched, &factors, &mut values)?;
        let columns = values.len() / (touched.rows * touched.sums.len()).max(1);
        output::narrowed(values, columns, want).map_err(|row| match row {
            Some(row) => format!(
                "has {part} in row {row} that are beyond {want}, in which they were asked for: read them as {own}, as they \
                 are stored"
            ),
            None => format!("was asked for as {want}, which the merge cannot give"),
        })
    }

    /// What packs a tensor as MLX does, and the type of its scales and biases.
    fn quantizer(&self, change: &Change) -> Result<(AffineQuantizer, FloatType), String> {
        let scales = self.base.entry(&change.from).and_then(|entry| self.base.entry(entry.parts.first()?));
        match (change.stored, scales.map(|scales| scales.encoding)) {
            (Encoding::MlxAffine { bits, group_size }, Some(Encoding::Float(factors))) => {
                Ok((AffineQuantizer::new(Packing::new(bits, group_size)?, factors), factors))
            }
            (stored, _) => Err(format!("is stored as {stored}, but has no scales of floats")),
        }
    }

    /// Checks that the base has what belongs to the encoding of a tensor.
    fn check_parts(&self, change: &Change) -> Result<(), String> {
        let Encoding::MlxAffine { .. } = change.stored else { return Ok(()) };
        let parts = self.base.entry(&change.from).map_or(&[][..], |entry| &entry.parts);
        let has = |part: &String| self.base.entry(part).is_some_and(|part| matches!(part.encoding, Encoding::Float(_)));
        if parts.len() == 2 && parts.iter().all(has) {
            return Ok(());
        }
        Err(format!("is stored as {}, but the base does not have its scales and biases", change.stored))
    }

    /// How a tensor is given.
    fn given_as(&self, change: &Change) -> Encoding {
        let is_new = self.base.entry(&change.name).is_none();
        self.given.encoding(change.stored, !change.terms.is_empty(), is_new)
    }

    /// Bytes of a tensor that is computed.
    fn bytes_of(&self, change: &Change, want: Option<FloatType>) -> Option<usize> {
        let encoding = want.map_or_else(|| self.given_as(change), Encoding::Float);
        TensorEntry::new(change.name.as_str(), change.shape.clone(), encoding).stored_bytes()
    }

    /// Where the data of the tensor `name` come from.
    fn origin<'a>(&'a self, name: &'a str) -> Origin<'a> {
        if let Some((tensor, part)) = self.parts.get(name) {
            return Origin::Part(&self.changes[tensor], *part);
        }
        match self.changes.get(name) {
            None => Origin::Base(name),
            Some(change) if change.terms.is_empty() && self.given_as(change) == change.stored => {
                Origin::Base(&change.from)
            }
            Some(change) => Origin::Sum(change),
        }
    }

    /// Whether parts of the tensors that change are there no more.
    fn without_parts(&self) -> bool {
        self.given == Given::Dequantized
    }
}

/// Where the data of a tensor come from.
enum Origin<'a> {
    /// The base's tensor of this name, as it is.
    Base(&'a str),
    /// Computed.
    Sum(&'a Change),
    /// A part of what is computed.
    Part(&'a Change, AffinePart),
}

/// The parts of the tensors of `base` that change.
fn changed_parts(base: &dyn TensorSource, changes: &HashMap<String, Change>) -> HashMap<String, (String, AffinePart)> {
    let changed = changes.values().filter(|change| !change.terms.is_empty());
    let entries = changed.filter_map(|change| base.entry(&change.name));
    let named = entries.flat_map(|entry| {
        entry
            .parts
            .iter()
            .zip([AffinePart::Scales, AffinePart::Biases])
            .map(|(part, kind)| (part.clone(), (entry.name.clone(), kind)))
    });
    named.collect()
}

impl TensorSource for MergedSource {
    fn entries(&self) -> &[TensorEntry] {
        self.entries.as_deref().unwrap_or_else(|| self.base.entries())
    }

    fn read(&self, name: &str, want: Option<FloatType>) -> Result<TensorData<'_>> {
        match self.origin(name) {
            Origin::Base(name) => self.base.read(name, want),
            Origin::Sum(change) => self.merge(change, |touched| self.write(change, touched, want, New)),
            Origin::Part(change, _) if self.without_parts() => {
                let tensor = &change.name;
                let reason =
                    format!("`{tensor}`, of which it is a part, is of floats once an adapter is merged into it");
                Err(Error::load(format!("tensor `{name}`"), reason))
            }
            Origin::Part(change, part) => self.merge(change, |touched| self.write_part(change, touched, part, want)),
        }
    }

    fn read_into(&self, name: &str, want: Option<FloatType>, out: &mut [u8]) -> Result<()> {
        match self.origin(name) {
            Origin::Base(name) => self.base.read_into(name, want, out),
            Origin::Sum(change) if self.bytes_of(change, want) == Some(out.len()) => {
                self.merge(change, |touched| self.write(change, touched, want, Within(out)))
            }
            _ => self.read(name, want)?.write_to(name, out),
        }
    }

    fn depends_on_order(&self) -> bool {
        self.base.depends_on_order()
    }

    fn entry(&self, name: &str) -> Option<&TensorEntry> {
        match &self.entries {
            Some(entries) if self.changes.contains_key(name) || self.parts.contains_key(name) => {
                entries.iter().find(|entry| entry.name == name)
            }
            _ => self.base.entry(name),
        }
    }
}
