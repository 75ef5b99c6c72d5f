//! Whether adapters fit a base, and what they change in it: decided from headers, no weight of the base is read.
//!
//! | module | what it holds |
//! |---|---|
//! | `view` | the base as an adapter sees it: its names, projections split or fused, experts stacked |
//! | `experts` | experts that the base stores one by one |
//! | `check` | everything that keeps one adapter from being used |
//! | `place` | where its parts go, and why one does not |
//! | `change` | what comes out, as data, which the merge carries out |
//! | `tie` | tied embeddings |
//! | `info` | the description of the merged base |
//! | `effect` | what only the values tell |

mod change;
mod check;
mod effect;
mod experts;
mod info;
mod place;
mod tie;
mod view;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use llm_local_core::{Encoding, Error, LoraAdapter, ModelInfo, Result};

pub(super) use self::change::{Change, Placement, Term, TermKind};
use self::{
    check::check,
    effect::{parts_tie, without_effect},
    place::{Placing, collect},
    tie::{Tied, vocabulary_tensors},
    view::{View, layout},
};
use super::{message::reason, outline::AdapterOutline};

/// What adapters change in a base.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct FitReport {
    /// The adapters, in the order given.
    pub adapters: Vec<FittedAdapter>,
    /// The tensors that are others in the merged base, sorted by name: in the base's names, or new ones.
    pub touched: Vec<TouchedTensor>,
    /// Whether the base ties its head to its embedding and an adapter unties them: the merged base has both.
    pub unties_embeddings: bool,
    /// The rows of the embedding and the head, where adapters give them more than the base has.
    pub vocab_size: Option<usize>,
}

impl FitReport {
    /// The first of the touched tensors that the base holds quantized: it cannot be added to as it is.
    pub fn quantized(&self) -> Option<&TouchedTensor> {
        self.touched.iter().find(|touched| !matches!(touched.stored, Encoding::Float(_)))
    }

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
    /// Modules that it has pairs for, all of which it changes.
    pub modules: usize,
    /// Tensors that it replaces, in whole or by rows.
    pub replaced: usize,
    /// Its smallest and its largest rank; 0 without pairs.
    pub ranks: (usize, usize),
    /// The smallest and the largest of what its products `B @ A` are multiplied by, its weight included; 0 without pairs.
    pub scales: (f64, f64),
    /// Bytes of memory that its tensors take.
    pub bytes: u64,
    /// The names in its `target_modules` that no module of the base matches: lists over several architectures have such.
    pub unmatched_targets: Vec<String>,
    /// Whether it is of plain pairs alone.
    is_plain: bool,
}

impl FittedAdapter {
    /// The most bytes that it takes beside the weights: what is not a plain pair may be widened to f32.
    pub(crate) fn bytes_beside(&self) -> u64 {
        if self.is_plain { self.bytes } else { self.bytes * 2 }
    }
}

/// A tensor of the merged base that is another than the base's.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TouchedTensor {
    /// Its name.
    pub name: String,
    /// Its shape: (out, in) for most.
    pub shape: Vec<usize>,
    /// How the base stores it.
    pub stored: Encoding,
    /// The adapters that change it, as indexes of [`FitReport::adapters`]. None for a head that is untied from an embedding
    /// which changes.
    pub adapters: Vec<usize>,
}

/// Checks `adapters`, each with the weight its delta is multiplied by, against the headers of a base, in either layout.
///
/// Every tensor of an adapter must have a base tensor of the right shape, in a plain float type or quantized; every module
/// that an adapter declares and the base has must have its tensors, and every tensor its declaration.
///
/// # Errors
/// [`Error::AdapterMergeFailed`] naming the adapter that does not fit, the tensors or fields, what was expected and
/// what was found.
pub fn fit(adapters: &[(Arc<LoraAdapter>, f32)], info: &ModelInfo) -> Result<FitReport> {
    Ok(fit_changes(adapters, info)?.0)
}

/// [`fit()`], and what the merge is to do.
pub(super) fn fit_changes(adapters: &[(Arc<LoraAdapter>, f32)], info: &ModelInfo) -> Result<(FitReport, Vec<Change>)> {
    let outlines: Vec<_> =
        adapters.iter().map(|(adapter, weight)| (AdapterOutline::from(&**adapter), *weight)).collect();
    let fitted = outlined_changes(&outlines, info)?;
    for (adapter, weight) in adapters {
        if let Some(reason) = without_effect(adapter, *weight).or_else(|| parts_tie(adapter)) {
            return Err(Error::adapter(&adapter.reference, reason));
        }
    }
    Ok(fitted)
}

/// [`fit()`], as far as it can be told without the adapters' values.
pub(crate) fn fit_outlines(adapters: &[(AdapterOutline, f32)], info: &ModelInfo) -> Result<FitReport> {
    Ok(outlined_changes(adapters, info)?.0)
}

fn outlined_changes(adapters: &[(AdapterOutline, f32)], info: &ModelInfo) -> Result<(FitReport, Vec<Change>)> {
    let tied = Tied::of(info);
    let vocabulary = grown_vocabulary(adapters, info)?;
    let names = info.decoder.as_ref().ok().and_then(|decoder| vocabulary_tensors(decoder, layout(info)));
    let grown = |name: &str| vocabulary.filter(|_| names.as_ref().is_some_and(|(e, h)| e == name || h == name));
    // A tied head has the embedding's shape.
    let shape_of = |name: &str| {
        let own = || tied.as_ref().filter(|tied| tied.head == name).and_then(|tied| info.tensor(&tied.embedding));
        info.tensor(name).or_else(own).map(|entry| entry.shape.clone())
    };
    let mut changes = BTreeMap::new();
    let mut fitted = Vec::with_capacity(adapters.len());
    for (index, (adapter, weight)) in adapters.iter().enumerate() {
        let failed = |defects: Vec<String>| Error::adapter(&adapter.reference, reason(&defects));
        if info.decoder.is_err() && layout(info) == llm_local_core::model::Layout::Gguf {
            return Err(failed(vec![format!(
                "`{}` is a GGUF file whose architecture is not understood, so that names of adapters cannot be mapped \
                 onto it; use the safetensors checkpoint of it",
                info.id
            )]));
        }
        let view = View::new(info, tied.as_ref(), adapter);
        let (view, weight) = (&view, *weight);
        let (placed, unmatched) = check(&Placing { info, view, adapter, index, weight, vocabulary }).map_err(failed)?;
        collect(&mut changes, placed, shape_of, grown);
        fitted.push(FittedAdapter::new(adapter, weight, unmatched));
    }
    let untied = tied.as_ref().is_some_and(|tied| tied.resolve(&mut changes, adapters, vocabulary.is_some()));
    if let (Some(rows), Some((embedding, head))) = (vocabulary, &names) {
        both_grow(rows, [embedding, head], tied.is_some() && !untied, &changes, adapters, info)?;
    }
    let touched = changes.values().map(TouchedTensor::new).collect();
    let report = FitReport { adapters: fitted, touched, unties_embeddings: untied, vocab_size: vocabulary };
    Ok((report, changes.into_values().collect()))
}

/// The rows of the embedding and the head, if adapters replace them by ones with more rows.
fn grown_vocabulary(adapters: &[(AdapterOutline, f32)], info: &ModelInfo) -> Result<Option<usize>> {
    let Ok(decoder) = &info.decoder else { return Ok(None) };
    let Some((embedding, head)) = vocabulary_tensors(decoder, llm_local_core::model::Layout::HuggingFace) else {
        return Ok(None);
    };
    let mut grown: Option<(usize, &str)> = None;
    for (adapter, _) in adapters {
        for replacement in adapter.replacements.iter().filter(|r| [&embedding, &head].contains(&&r.name)) {
            let Some(&rows) = replacement.shape.first().filter(|rows| **rows > decoder.vocab_size) else { continue };
            match grown {
                Some((other, name)) if other != rows => {
                    return Err(Error::adapter(
                        &adapter.reference,
                        format!(
                            "it replaces `{}` by one of {rows} rows, but `{name}` by one of {other}; the embedding and \
                             the head must have as many",
                            replacement.name
                        ),
                    ));
                }
                _ => grown = Some((rows, &replacement.name)),
            }
        }
    }
    Ok(grown.map(|(rows, _)| rows))
}

/// Checks that the embedding and the head both get their new rows, and from one adapter alone.
fn both_grow(
    rows: usize,
    names: [&String; 2],
    is_tied: bool,
    changes: &BTreeMap<String, Change>,
    adapters: &[(AdapterOutline, f32)],
    info: &ModelInfo,
) -> Result<()> {
    let replacing = |name: &String| -> Vec<usize> {
        let terms = changes.get(name).into_iter().flat_map(|change| &change.terms);
        terms.filter(|term| matches!(term.kind, TermKind::Replacement { .. })).map(|term| term.adapter).collect()
    };
    for name in names.into_iter().take(if is_tied { 1 } else { 2 }) {
        match replacing(name)[..] {
            [_] => {}
            [] => {
                let all: Vec<_> = adapters.iter().map(|(adapter, _)| adapter.reference.as_str()).collect();
                return Err(Error::adapter(
                    all.join(" + "),
                    format!(
                        "it grows the vocabulary of `{}` to {rows} rows, but replaces only one of embedding and head, \
                         and `{name}` is a tensor of its own with fewer; save both (`modules_to_save`)",
                        info.id
                    ),
                ));
            }
            [.., last] => {
                return Err(Error::adapter(
                    &adapters[last].0.reference,
                    format!("it replaces `{name}`, to which another adapter gives new rows; only one of them can"),
                ));
            }
        }
    }
    Ok(())
}

impl FittedAdapter {
    fn new(adapter: &AdapterOutline, weight: f32, unmatched_targets: Vec<String>) -> Self {
        let ranks = adapter.modules.iter().map(|m| m.rank);
        let scales = || adapter.modules.iter().map(|m| m.scale * f64::from(weight));
        Self {
            reference: adapter.reference.clone(),
            modules: adapter.modules.len(),
            replaced: adapter.replacements.len() + adapter.rows.len(),
            ranks: (ranks.clone().min().unwrap_or(0), ranks.max().unwrap_or(0)),
            scales: (scales().reduce(f64::min).unwrap_or(0.0), scales().reduce(f64::max).unwrap_or(0.0)),
            bytes: adapter.bytes,
            unmatched_targets,
            is_plain: adapter.replacements.is_empty()
                && adapter.rows.is_empty()
                && !adapter.modules.iter().any(|m| m.has_magnitude || m.has_bias),
        }
    }
}

impl TouchedTensor {
    fn new(change: &Change) -> Self {
        let mut adapters: Vec<_> = change.terms.iter().map(|term| term.adapter).collect();
        adapters.dedup();
        Self { name: change.name.clone(), shape: change.shape.clone(), stored: change.stored, adapters }
    }
}
