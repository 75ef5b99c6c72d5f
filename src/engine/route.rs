//! How adapters get into a model: merged into its weights, or beside them.

use std::{collections::HashSet, sync::Arc};

use llm_local_core::{AdapterPolicy, Encoding, Error, ModelInfo, Result};

use super::choose::Chosen;
use crate::lora::{AdapterOutline, FitReport, TouchedTensor, not_mergeable, not_requantizable, only_merged};

/// How adapters get into a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Route {
    /// Into its weights, while these are read; what was quantized becomes floats.
    Merged,
    /// As low-rank paths that the backend runs beside them.
    Beside,
    /// Into its weights, some of which are quantized, and are quantized again.
    Requantized(Requantizing),
}

/// What is asked of a merge that quantizes again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Requantizing {
    /// The largest part of the adapters' effect that may be lost.
    pub(super) max_error: f32,
    /// Whether the adapters can run beside the weights, which is what the loss is measured against. If not, it is measured
    /// against the merge into dequantized tensors.
    pub(super) can_be_beside: bool,
}

/// Why adapters that would better run beside quantized weights are merged, the tensors that they touch dequantized. There
/// must be memory for that.
#[derive(Debug)]
pub(super) struct Dequantized {
    not_beside: String,
    policy: AdapterPolicy,
}

impl Route {
    /// The way that `policy` asks for, of `adapters` that fit as `report` says, with the backend that was chosen. Without
    /// adapters it is the one that asks nothing of a backend. With
    /// [`Dequantized`] it is the way only if that has room.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] if there is none: what keeps the adapters from each.
    pub(super) fn new(
        policy: AdapterPolicy,
        adapters: &[(AdapterOutline, f32)],
        report: &FitReport,
        chosen: &Chosen,
    ) -> Result<(Self, Option<Dequantized>)> {
        let backend = chosen.resolution.backend.backend.name();
        let not_beside = if chosen.capabilities.unmerged {
            let fitted = adapters.iter().zip(&report.adapters);
            fitted.into_iter().find_map(|((adapter, _), fitted)| only_merged(adapter, fitted, report))
        } else {
            Some(format!("backend `{backend}` cannot run adapters beside the weights of this model"))
        };
        Self::decide(policy, report, not_beside)
    }

    /// [`Route::new`], where what keeps the backend from running the adapters beside the weights is `not_beside`.
    fn decide(
        policy: AdapterPolicy,
        report: &FitReport,
        not_beside: Option<String>,
    ) -> Result<(Self, Option<Dequantized>)> {
        // Without adapters there is nothing to do, which every backend can.
        if report.adapters.is_empty() {
            return Ok((Self::Merged, None));
        }
        let not_merged = not_mergeable(report);
        let failed = |why, merged, beside| Err(failure(report, policy, why, &hint(merged, beside)));
        match (policy, not_merged, not_beside) {
            (AdapterPolicy::KeepUnmerged, _, None) => Ok((Self::Beside, None)),
            (AdapterPolicy::KeepUnmerged, not_merged, Some(why)) => {
                let merged =
                    if not_merged.is_none() { Some("let it be merged (`adapter_policy` `auto`)") } else { None };
                failed(both(not_merged, why), merged, false)
            }
            (AdapterPolicy::MergeDequantized, None, _) => Ok((Self::Merged, None)),
            (AdapterPolicy::MergeDequantized, Some(why), not_beside) => failed(why, None, not_beside.is_none()),
            _ if report.quantized().is_none() => Ok((Self::Merged, None)),
            (AdapterPolicy::MergeRequantized { max_error }, None, not_beside) => {
                if let Some(why) = not_requantizable(report) {
                    let merged = Some("let it be merged into floats (`merge-dequantized`)");
                    return failed(why, merged, not_beside.is_none());
                }
                let route = Self::Requantized(Requantizing { max_error, can_be_beside: not_beside.is_none() });
                Ok((route, not_beside.map(|not_beside| Dequantized { not_beside, policy })))
            }
            (AdapterPolicy::MergeRequantized { .. }, Some(why), None) => failed(why, None, true),
            (_, _, None) => Ok((Self::Beside, None)),
            (_, None, Some(not_beside)) => Ok((Self::Merged, Some(Dequantized { not_beside, policy }))),
            (_, not_merged, Some(why)) => failed(both(not_merged, why), None, false),
        }
    }
}

/// What is in the way of both ways, of those there are.
fn both(not_merged: Option<String>, not_beside: String) -> String {
    match not_merged {
        Some(not_merged) => format!("{not_merged}; and {not_beside}"),
        None => not_beside,
    }
}

/// What to do where one way is not open: `merged` if there can be a merge, to keep adapters unmerged if they can run `beside`
/// the weights, and another base where neither helps, or where only that lets them be merged.
fn hint(merged: Option<&'static str>, beside: bool) -> String {
    let merged = merged.unwrap_or("use a checkpoint of the base in f32, f16 or bf16");
    if beside { format!("keep it unmerged (`keep-unmerged`), or {merged}") } else { merged.into() }
}

impl Route {
    /// The description of the model that the backend gets, whose base is `info`.
    pub(super) fn info(self, report: &FitReport, info: &Arc<ModelInfo>) -> Arc<ModelInfo> {
        match self {
            Self::Beside => info.clone(),
            Self::Merged => report.merged_info(info),
            Self::Requantized(_) => report.requantized_info(info),
        }
    }
}

impl Dequantized {
    /// What it means that such a model has no room, which is what `error` says; any other error stays as it is.
    pub(super) fn short(&self, report: &FitReport, error: Error) -> Error {
        let Error::InsufficientMemory { required, available, .. } = error else { return error };
        let why_dequantized = match self.policy {
            AdapterPolicy::MergeRequantized { .. } => ", which tells what is lost once they are quantized again",
            _ => "",
        };
        let why = format!(
            "{}; and merged, the tensors that it changes dequantized{why_dequantized}, the model takes {required} bytes \
             of memory, of which {available} are available",
            self.not_beside
        );
        let hint = "free memory, ask for a shorter context, or use a base whose adapters can run beside its weights";
        failure(report, self.policy, why, hint)
    }
}

/// The tensors that are quantized again, in the model that `info` describes. A head that leaves a packed embedding is none of
/// them: it is given as floats.
pub(super) fn requantized<'a>(report: &'a FitReport, info: &ModelInfo) -> impl Iterator<Item = &'a TouchedTensor> {
    let floats = info.tensors.iter().filter(|tensor| matches!(tensor.encoding, Encoding::Float(_)));
    let floats: HashSet<_> = floats.map(|tensor| tensor.name.clone()).collect();
    report.touched.iter().filter(move |touched| !touched.adapters.is_empty() && !floats.contains(&touched.name))
}

fn failure(report: &FitReport, policy: AdapterPolicy, why: String, hint: &str) -> Error {
    let all: Vec<_> = report.adapters.iter().map(|adapter| adapter.reference.as_str()).collect();
    Error::adapter(all.join(" + "), format!("{why} (`adapter_policy` is `{policy}`); {hint}"))
}

#[cfg(test)]
mod tests;
