//! How adapters get into a model: merged into its weights, or beside them.

use llm_local_core::{AdapterPolicy, Error, Result};

use super::choose::Chosen;
use crate::lora::{AdapterOutline, FitReport, not_mergeable, only_merged};

/// How adapters get into a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// Into its weights, while these are read.
    Merged,
    /// As low-rank paths that the backend runs beside them.
    Beside,
}

/// Why adapters that would better run beside quantized weights are merged, the tensors that they touch dequantized. There
/// must be memory for that.
#[derive(Debug)]
pub(super) struct Dequantized {
    not_beside: String,
    policy: AdapterPolicy,
}

impl Route {
    /// The way that `policy` asks for, of `adapters` that fit as `report` says, with the backend that was chosen. With
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
        let (hint_merged, hint_beside) =
            ("use a checkpoint of the base in f32, f16 or bf16", "let it be merged (`adapter_policy` `auto`)");
        let failed = |why, hint| Err(failure(report, policy, why, hint));
        match (policy, not_mergeable(report), not_beside) {
            (AdapterPolicy::KeepUnmerged, _, None) => Ok((Self::Beside, None)),
            (AdapterPolicy::KeepUnmerged, _, Some(why)) => failed(why, hint_beside),
            (AdapterPolicy::MergeDequantized, None, _) => Ok((Self::Merged, None)),
            (AdapterPolicy::MergeDequantized, Some(why), _) => failed(why, hint_merged),
            _ if report.quantized().is_none() => Ok((Self::Merged, None)),
            (_, _, None) => Ok((Self::Beside, None)),
            (_, None, Some(not_beside)) => Ok((Self::Merged, Some(Dequantized { not_beside, policy }))),
            (_, Some(not_merged), Some(why)) => failed(format!("{not_merged}; and {why}"), hint_merged),
        }
    }
}

impl Dequantized {
    /// Checks that a model whose touched tensors are dequantized, which takes `required` bytes, has room in `available` ones.
    /// Where nobody knows how many these are, it is tried.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`]: what keeps the adapters from running beside the weights, and how much memory is missing.
    pub(super) fn check_room(&self, report: &FitReport, required: u64, available: Option<u64>) -> Result<()> {
        let Some(available) = available.filter(|available| *available < required) else { return Ok(()) };
        let why = format!(
            "{}; and merged, the tensors that it changes dequantized, the model takes {required} bytes of memory, of \
             which {available} are available",
            self.not_beside
        );
        let hint = "free memory, ask for a shorter context, or use a base whose adapters can run beside its weights";
        Err(failure(report, self.policy, why, hint))
    }
}

fn failure(report: &FitReport, policy: AdapterPolicy, why: String, hint: &str) -> Error {
    let all: Vec<_> = report.adapters.iter().map(|adapter| adapter.reference.as_str()).collect();
    Error::adapter(all.join(" + "), format!("{why} (`adapter_policy` is `{policy}`); {hint}"))
}

#[cfg(test)]
mod tests;
