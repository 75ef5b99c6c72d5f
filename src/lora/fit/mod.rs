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
//! | `report` | what comes out, for whoever asks |
//! | `info` | the description of the merged base |
//! | `beside` | how much memory adapters take that run beside the weights |
//! | `effect` | what only the values tell |

mod beside;
mod change;
mod check;
mod effect;
mod experts;
mod info;
mod place;
mod report;
mod tie;
mod view;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use llm_local_core::{Allowance, Error, LoraAdapter, ModelInfo, Result};

pub use self::report::{Defect, FitReport, FittedAdapter, TouchedTensor};
use self::{
    beside::Beside,
    check::{Checked, check},
    effect::{parts_tie, without_effect},
    place::{Placing, collect},
    tie::{Tied, vocabulary_tensors},
    view::{View, layout},
};
pub(super) use self::{
    change::{Change, Placement, Term, TermKind},
    check::CheckedPart,
    experts::Expert,
    place::MisfitKind,
};
use super::{
    message::{LET_PASS_NO_EFFECT, reason},
    outline::AdapterOutline,
    sound,
};

/// Checks `adapters`, each with the weight its delta is multiplied by, against the headers of a base, in either layout.
///
/// Every tensor of an adapter must have a base tensor of the right shape, in a plain float type or quantized; every module
/// that an adapter declares and the base has must have its tensors, and every tensor its declaration.
///
/// # Errors
/// [`Error::AdapterMergeFailed`] naming the adapter that does not fit, the tensors or fields, what was expected and
/// what was found.
pub fn fit(adapters: &[(Arc<LoraAdapter>, f32)], info: &ModelInfo) -> Result<FitReport> {
    fit_allowing(adapters, &[], info)
}

/// As [`fit()`], with what is let pass of each adapter, in their order; of those that are left out nothing is.
///
/// # Errors
/// As [`fit()`], of what is not let pass.
pub fn fit_allowing(
    adapters: &[(Arc<LoraAdapter>, f32)],
    allow: &[BTreeSet<Allowance>],
    info: &ModelInfo,
) -> Result<FitReport> {
    Ok(fit_changes(adapters, allow, info)?.0)
}

/// [`fit_allowing()`], and what the merge is to do.
pub(super) fn fit_changes(
    adapters: &[(Arc<LoraAdapter>, f32)],
    allow: &[BTreeSet<Allowance>],
    info: &ModelInfo,
) -> Result<(FitReport, Vec<Change>)> {
    for (adapter, _) in adapters {
        sound::replaced(&adapter.replacements, &adapter.rows)
            .map_err(|reason| Error::adapter(&adapter.reference, reason))?;
    }
    let outlines: Vec<_> =
        adapters.iter().map(|(adapter, weight)| (AdapterOutline::from(&**adapter), *weight)).collect();
    let (mut report, changes) = outlined_changes(&outlines, allow, info)?;
    for (index, (adapter, weight)) in adapters.iter().enumerate() {
        let fitted = &mut report.adapters[index];
        fitted.let_pass.extend(check_values(adapter, *weight, &fitted.unused, of(allow, index))?);
    }
    Ok((report, changes))
}

/// What only the values of an adapter tell, whose parts for the tensors `unused` are left out, and `allowed` lets pass.
///
/// # Errors
/// [`Error::AdapterMergeFailed`] for what it does not let pass.
pub(crate) fn check_values(
    adapter: &LoraAdapter,
    weight: f32,
    unused: &[String],
    allowed: &BTreeSet<Allowance>,
) -> Result<Vec<Defect>> {
    refused(&adapter.reference, by_values(adapter, weight, unused), allowed)
}

/// What only the values of an adapter tell, whose parts for the tensors `unused` are left out.
fn by_values(adapter: &LoraAdapter, weight: f32, unused: &[String]) -> Vec<Defect> {
    let no_effect = without_effect(adapter, weight, unused);
    let no_effect = no_effect.map(|reason| Defect::allowable(reason, Allowance::NoEffect));
    no_effect.into_iter().chain(parts_tie(adapter).map(Defect::new)).collect()
}

/// [`fit_allowing()`], as far as it can be told without the adapters' values.
pub(crate) fn fit_outlines_allowing(
    adapters: &[(AdapterOutline, f32)],
    allow: &[BTreeSet<Allowance>],
    info: &ModelInfo,
) -> Result<FitReport> {
    Ok(outlined_changes(adapters, allow, info)?.0)
}

/// What is let pass of the adapter `index`.
fn of(allow: &[BTreeSet<Allowance>], index: usize) -> &BTreeSet<Allowance> {
    const NOTHING: &BTreeSet<Allowance> = &BTreeSet::new();
    allow.get(index).unwrap_or(NOTHING)
}

/// The defects of the adapter `reference` that are let pass; the error are those that are not.
fn refused(reference: &str, defects: Vec<Defect>, allowed: &BTreeSet<Allowance>) -> Result<Vec<Defect>> {
    let (passed, refused): (Vec<_>, Vec<_>) = defects.into_iter().partition(|defect| defect.is_allowed(allowed));
    if refused.is_empty() {
        return Ok(passed);
    }
    let told = |Defect { reason, allowance, .. }| match allowance {
        Some(Allowance::NoEffect) => format!("{reason}{LET_PASS_NO_EFFECT}"),
        _ => reason,
    };
    let reasons: Vec<_> = refused.into_iter().map(told).collect();
    Err(Error::adapter(reference, reason(&reasons)))
}

fn outlined_changes(
    adapters: &[(AdapterOutline, f32)],
    allow: &[BTreeSet<Allowance>],
    info: &ModelInfo,
) -> Result<(FitReport, Vec<Change>)> {
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
        let allowed = of(allow, index);
        let mut checked = check_one(adapter, index, *weight, tied.as_ref(), vocabulary, info, allowed);
        let let_pass = refused(&adapter.reference, std::mem::take(&mut checked.defects), allowed)?;
        fitted.push(FittedAdapter::new(adapter, *weight, info, &mut checked, let_pass));
        collect(&mut changes, checked.placed, shape_of, grown);
    }
    let untied = tied.as_ref().is_some_and(|tied| tied.resolve(&mut changes, adapters, vocabulary.is_some()));
    if let (Some(rows), Some((embedding, head))) = (vocabulary, &names) {
        both_grow(rows, [embedding, head], tied.is_some() && !untied, &changes, adapters, info)?;
    }
    let replaced = Beside::of_replaced(&changes, adapters.len(), info);
    fitted.iter_mut().zip(replaced).for_each(|(fitted, replaced)| fitted.beside.join(replaced));
    let touched = changes.values().map(|change| TouchedTensor::new(change, adapters)).collect();
    let report = FitReport { adapters: fitted, touched, unties_embeddings: untied, vocab_size: vocabulary };
    Ok((report, changes.into_values().collect()))
}

fn check_one(
    adapter: &AdapterOutline,
    index: usize,
    weight: f32,
    tied: Option<&Tied>,
    vocabulary: Option<usize>,
    info: &ModelInfo,
    allowed: &BTreeSet<Allowance>,
) -> Checked {
    if info.decoder.is_err() && layout(info) == llm_local_core::model::Layout::Gguf {
        let reason = format!(
            "`{}` is a GGUF file whose architecture is not understood, so that names of adapters cannot be mapped onto \
             it; use the safetensors checkpoint of it",
            info.id
        );
        return Checked { defects: vec![Defect::new(reason)], ..Checked::default() };
    }
    let view = View::new(info, tied, adapter);
    check(&Placing { info, view: &view, adapter, index, weight, vocabulary }, allowed)
}

/// Everything that can be told of one adapter on a base, whether it fits or not, with the values' defects after those of the
/// headers.
pub(super) fn diagnose(adapter: &LoraAdapter, weight: f32, allowed: &BTreeSet<Allowance>, info: &ModelInfo) -> Checked {
    let outlines = [(AdapterOutline::from(adapter), weight)];
    let own = |error: Error| match error {
        Error::AdapterMergeFailed { reason, .. } => Defect::new(reason),
        other => Defect::new(other.to_string()),
    };
    let (vocabulary, defect) = match grown_vocabulary(&outlines, info) {
        Ok(vocabulary) => (vocabulary, None),
        Err(error) => (None, Some(own(error))),
    };
    let mut checked = check_one(&outlines[0].0, 0, weight, Tied::of(info).as_ref(), vocabulary, info, allowed);
    checked.defects.splice(0..0, defect);
    // What concerns the base as a whole is looked at once all parts have their places.
    if checked.defects.iter().all(|defect| defect.allowance.is_some()) {
        let everything = [Allowance::ALL.into_iter().collect()];
        checked.defects.extend(outlined_changes(&outlines, &everything, info).err().map(own));
    }
    checked.defects.extend(by_values(adapter, weight, &checked.unused()));
    checked
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
