//! How adapters get into a model: merged into its weights, or beside them.

use llm_local_core::{AdapterPolicy, Error, Result};

use super::choose::Chosen;
use crate::lora::{AdapterOutline, FitReport, only_merged};

/// How adapters get into a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// Into its weights, while these are read.
    Merged,
    /// As low-rank paths that the backend runs beside them.
    Beside,
}

impl Route {
    /// The way that `policy` asks for, of `adapters` that fit as `report` says, with the backend that was chosen.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] if there is none: what keeps the adapters from each.
    pub(super) fn new(
        policy: AdapterPolicy,
        adapters: &[(AdapterOutline, f32)],
        report: &FitReport,
        chosen: &Chosen,
    ) -> Result<Self> {
        let backend = chosen.resolution.backend.backend.name();
        let not_beside = if chosen.capabilities.unmerged {
            adapters.iter().find_map(|(adapter, _)| only_merged(adapter, report))
        } else {
            Some(format!("backend `{backend}` cannot run adapters beside the weights of this model"))
        };
        let not_merged = report.quantized().map(|tensor| {
            format!(
                "the base stores `{}` as {}, and merging into quantized weights is not supported yet",
                tensor.name, tensor.stored
            )
        });
        let (route, why) = match (policy, not_merged, not_beside) {
            (AdapterPolicy::KeepUnmerged, _, None) => (Self::Beside, None),
            (AdapterPolicy::KeepUnmerged, _, Some(why)) => (Self::Beside, Some(why)),
            (AdapterPolicy::MergeDequantized, not_merged, _) => (Self::Merged, not_merged),
            (_, None, _) => (Self::Merged, None),
            (_, Some(_), None) => (Self::Beside, None),
            (_, Some(quantized), Some(why)) => (Self::Merged, Some(format!("{quantized}; and {why}"))),
        };
        match why {
            None => Ok(route),
            Some(why) => {
                let all: Vec<_> = report.adapters.iter().map(|adapter| adapter.reference.as_str()).collect();
                let hint = match route {
                    Self::Merged => "use a checkpoint of the base in f32, f16 or bf16",
                    Self::Beside => "let it be merged (`adapter_policy` `auto`)",
                };
                Err(Error::adapter(all.join(" + "), format!("{why} (`adapter_policy` is `{policy}`); {hint}")))
            }
        }
    }
}
