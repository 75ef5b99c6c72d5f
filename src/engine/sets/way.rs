//! How other adapters get into a model that is loaded.

use std::{collections::BTreeSet, sync::Arc};

use llm_local_core::{AdapterPolicy, Allowance, Error, LoraAdapter, ModelInfo, Result};

use super::for_fit;
use crate::{
    engine::route::Route,
    lora::{self, AdapterOutline, FitReport},
    plan::Plan,
};

/// How other adapters get into a model that is loaded.
pub(super) enum Way {
    /// Beside its weights, which this describes.
    Beside(Arc<ModelInfo>),
    /// Into its weights: what the old ones touched and the new ones touch is read anew from the base.
    Merged(Merging),
    /// Not at all, and why.
    Neither(String),
}

/// What is known of a model whose adapters are merged.
pub(super) struct Merging {
    /// What adapters must fit.
    pub(super) info: Arc<ModelInfo>,
    /// Why requests cannot name adapters of their own.
    not_named: String,
    /// Whether tensors that the base has quantized would have to be quantized again.
    requantizes: bool,
}

impl Way {
    /// That of the model that was loaded by `plan`, with adapters in it by `route` if `has_adapters`. `info` describes its
    /// base.
    pub(super) fn new(
        plan: &Plan,
        has_adapters: bool,
        (policy, route): (AdapterPolicy, Route),
        info: &ModelInfo,
    ) -> Self {
        let can = |what: fn(&llm_local_core::Capabilities) -> bool| {
            plan.model.as_ref().is_some_and(|model| what(&model.capabilities))
        };
        let can_run = can(|capabilities| capabilities.unmerged);
        let is_merged = route != Route::Beside && has_adapters;
        let not_beside = if !can_run {
            format!("backend `{}` cannot run adapters beside the weights of `{}`", plan.backend, plan.id)
        } else if is_merged {
            format!("the adapters of `{}` were merged into its weights when it was loaded; {UNMERGED}", plan.id)
        } else if matches!(policy, AdapterPolicy::MergeDequantized | AdapterPolicy::MergeRequantized { .. }) {
            format!("`{}` was loaded with the `adapter_policy` `{policy}`; {UNMERGED}", plan.id)
        } else {
            return Self::Beside(Arc::new(for_fit(info)));
        };
        let can_merge = can(|capabilities| capabilities.replaces_tensors && capabilities.needs_weights);
        if !can_merge || policy == AdapterPolicy::KeepUnmerged {
            return Self::Neither(not_beside);
        }
        let requantizes = matches!(policy, AdapterPolicy::MergeRequantized { .. });
        Self::Merged(Merging { info: Arc::new(for_fit(info)), not_named: not_beside, requantizes })
    }

    /// What adapters must fit.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] of the adapters `names` if the model takes no others than it was loaded with.
    pub(super) fn info(&self, names: impl FnOnce() -> String) -> Result<&Arc<ModelInfo>> {
        match self {
            Self::Beside(info) | Self::Merged(Merging { info, .. }) => Ok(info),
            Self::Neither(why) => Err(Error::adapter(names(), why.clone())),
        }
    }

    /// Checks that requests may name sets of their own.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] of the adapters `names`.
    pub(super) fn check_named(&self, names: impl FnOnce() -> String) -> Result<()> {
        match self {
            Self::Beside(_) => Ok(()),
            Self::Merged(Merging { not_named: why, .. }) | Self::Neither(why) => {
                Err(Error::adapter(names(), why.clone()))
            }
        }
    }

    /// Checks that `outlines`, which fit as `report` says, can go this way. Those that `may_be_in` are perhaps what the model
    /// has already, which [`Way::check_merged`] leaves to whoever knows.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] that names the adapter and why it cannot.
    pub(super) fn check(&self, outlines: &[(AdapterOutline, f32)], report: &FitReport, may_be_in: bool) -> Result<()> {
        match self {
            Self::Beside(_) => check_beside(outlines, report),
            Self::Merged(_) => {
                let names = || super::names(report.adapters.iter().map(|adapter| &adapter.reference));
                if let Some(why) = lora::not_mergeable(report) {
                    let reason = format!("{why}; use a checkpoint of the base in f32, f16 or bf16");
                    return Err(Error::adapter(names(), reason));
                }
                let quantized = report.quantized().filter(|_| !may_be_in);
                self.check_merged(quantized.map(|touched| &*touched.name), names)
            }
            Self::Neither(_) => Ok(()),
        }
    }

    /// Checks that a set may be merged into a loaded model that touches `quantized`, the first such tensor if there is one.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] of the adapters `names` where it would have to be quantized again.
    pub(super) fn check_merged(&self, quantized: Option<&str>, names: impl FnOnce() -> String) -> Result<()> {
        match (self, quantized) {
            (Self::Merged(Merging { requantizes: true, .. }), Some(tensor)) => {
                let reason = format!(
                    "the base has `{tensor}` quantized, and what is lost when such a tensor is quantized again is measured by \
                     a load alone; name the adapter in a spec and load that"
                );
                Err(Error::adapter(names(), reason))
            }
            _ => Ok(()),
        }
    }

    /// `adapters` as they are put into a set, which fit `info`: in the form in which backends run them, or as they are read.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`].
    pub(super) fn formed(
        &self,
        adapters: Vec<(Arc<LoraAdapter>, f32)>,
        allow: &[BTreeSet<Allowance>],
        info: &ModelInfo,
    ) -> Result<Vec<(Arc<LoraAdapter>, f32)>> {
        match self {
            Self::Merged(_) => Ok(adapters),
            Self::Beside(_) | Self::Neither(_) => lora::for_backend(&adapters, allow, info),
        }
    }
}

/// The names of the tensors that `adapters` touch, which are in the model that `info` describes: whatever was let pass of them
/// then is let pass.
pub(super) fn touched(adapters: &[(Arc<LoraAdapter>, f32)], info: &ModelInfo) -> Result<Vec<String>> {
    let outlines: Vec<_> =
        adapters.iter().map(|(adapter, weight)| (AdapterOutline::from(&**adapter), *weight)).collect();
    let everything = vec![Allowance::ALL.into_iter().collect(); outlines.len()];
    let report = lora::fit_outlines_allowing(&outlines, &everything, info)?;
    Ok(report.touched.into_iter().map(|touched| touched.name).collect())
}

/// Checks that `outlines`, which fit as `report` says, can run beside the weights.
fn check_beside(outlines: &[(AdapterOutline, f32)], report: &FitReport) -> Result<()> {
    for ((outline, _), fitted) in outlines.iter().zip(&report.adapters) {
        if let Some(why) = lora::only_merged(outline, fitted, report) {
            let reason =
                format!("it can only be merged, since {why}; name it in the spec of a model that is loaded anew");
            return Err(Error::adapter(&fitted.reference, reason));
        }
    }
    Ok(())
}

/// What to do where adapters are in the weights.
const UNMERGED: &str = "load it with `adapter_policy = \"keep-unmerged\"` to change its adapters while it is loaded";
