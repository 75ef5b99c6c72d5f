//! Which backend runs a model, and what it is told.

use std::sync::Arc;

use llm_local_core::{
    Capabilities, ContextLength, Error, LoadOptions, ModelInfo, ModelSpec, Resolution, Result, Support,
    registry::{PluginKind, resolve::Reason},
};

use super::{
    Inner,
    route::{Requantizing, Route, requantized},
};
use crate::{
    lora::{FitReport, FittedAdapter, merge_peak},
    plan::PlannedModel,
};

/// The context where neither the spec nor the model asks for less.
const AUTOMATIC_CONTEXT: usize = 4096;

/// The backend for a model, and what it is told.
pub(super) struct Chosen {
    pub(super) resolution: Resolution,
    pub(super) options: LoadOptions,
    pub(super) capabilities: Capabilities,
    context_reason: String,
}

impl Inner {
    /// The backend for the model that `info` describes.
    ///
    /// # Errors
    /// [`Error::NoBackend`] with what each says of it.
    pub(super) fn choose(&self, spec: &ModelSpec, info: &ModelInfo) -> Result<Chosen> {
        let (wanted, reason) = context(spec, info);
        let mut options = LoadOptions::new(wanted).with_dtype(spec.dtype);
        let resolution = self.registry.resolve_for(spec, info, &options)?;
        let choice = &resolution.backend;
        let Some(capabilities) = choice.capabilities.clone() else {
            return Err(Error::load(spec.id(), format!("backend `{}` was not asked about it", choice.backend.name())));
        };
        options.device = Some(choice.device.id.clone());
        let context_reason = match capabilities.max_context {
            Some(most) if most < wanted => {
                options.context_length = most;
                format!("all that backend `{}` can hold of this model", choice.backend.name())
            }
            _ => reason,
        };
        Ok(Chosen { resolution, options, capabilities, context_reason })
    }

    /// Refuses a model whose config no backend can run, whatever its tensors are. `by_config` is its description without
    /// them, and `resolution` what the spec gets before anything is known of the model.
    ///
    /// A backend cannot be asked for less than the whole, and may miss tensors in such a description. But one that repeats
    /// the error that the config itself gave has nothing against the tensors; if all do, the answer is known.
    ///
    /// # Errors
    /// As [`Inner::choose`].
    pub(super) fn refuse_by_config(
        &self,
        spec: &ModelSpec,
        resolution: &Resolution,
        by_config: &ModelInfo,
    ) -> Result<()> {
        let Err(Error::UnsupportedModelFormat { reason, .. }) = &by_config.decoder else { return Ok(()) };
        let options = LoadOptions::new(context(spec, by_config).0).with_dtype(spec.dtype);
        let later = resolution.passed_over.iter();
        let later = later.filter(|p| p.kind == PluginKind::Backend && p.reason == Reason::LowerPriority);
        let mut candidates = vec![resolution.backend.backend.clone()];
        for passed in later {
            let Ok(backend) = self.registry.backend(&passed.name) else { return Ok(()) };
            candidates.push(backend);
        }
        for backend in candidates {
            let Ok(devices) = backend.devices() else { return Ok(()) };
            for device in devices.iter().filter(|d| spec.device.as_ref().is_none_or(|id| d.id == *id)) {
                match backend.supports(by_config, &options.clone().with_device(&device.id)) {
                    Support::No(why) if why == *reason => {}
                    _ => return Ok(()),
                }
            }
        }
        self.choose(spec, by_config).map(drop)
    }
}

impl Chosen {
    /// What is known of the model that `info` describes, with adapters that change it as `report` says.
    pub(super) fn planned(&self, info: &ModelInfo, route: Route, report: &FitReport) -> Result<PlannedModel> {
        let mut estimate = self.resolution.backend.backend.estimate(info, &self.options)?;
        let (mut merged_tensors, mut unmerged_tensors) = (report.touched.len(), 0);
        let mut requantized_tensors = 0;
        match route {
            Route::Merged => estimate.merge_peak = merge_peak(report, info),
            Route::Beside => {
                (merged_tensors, unmerged_tensors) = (0, merged_tensors);
                estimate.adapters = report.adapters.iter().map(FittedAdapter::bytes_beside).sum();
                // As they were read, while the backend makes its own of them.
                estimate.merge_peak = report.adapters.iter().map(|adapter| adapter.bytes).sum();
            }
            Route::Requantized(_) => {
                requantized_tensors = requantized(report, info).count();
                estimate.merge_peak = merge_peak(report, info);
            }
        }
        Ok(PlannedModel {
            context_length: self.options.context_length,
            context_reason: self.context_reason.clone(),
            estimate,
            capabilities: self.capabilities.clone(),
            merged_tensors,
            unmerged_tensors,
            requantized_tensors,
        })
    }

    /// The bytes that `planned`, a model of the base `base`, takes while it is loaded, with what its loss is measured
    /// against if the tensors that adapters change are dequantized there.
    pub(super) fn required(
        &self,
        planned: &PlannedModel,
        base: &Arc<ModelInfo>,
        route: Route,
        report: &FitReport,
    ) -> Result<u64> {
        let own = planned.estimate.total();
        match route {
            Route::Requantized(Requantizing { can_be_beside: false, .. }) => {
                let dequantized = self.resolution.backend.backend.estimate(&report.merged_info(base), &self.options)?;
                Ok(own.max(dequantized.total()))
            }
            _ => Ok(own),
        }
    }
}

/// How many tokens the context is to hold, and why.
fn context(spec: &ModelSpec, info: &ModelInfo) -> (usize, String) {
    let most = info.decoder.as_ref().map(|d| d.max_positions).ok();
    match (spec.context_length, most) {
        (ContextLength::Tokens(n), Some(most)) if n as usize > most => {
            (most, format!("the spec asks for {n}, but the model was made for {most}"))
        }
        (ContextLength::Tokens(n), _) => (n as usize, "the spec asks for it".into()),
        (_, Some(most)) if most <= AUTOMATIC_CONTEXT => (most, "all that the model was made for".into()),
        _ => (AUTOMATIC_CONTEXT, format!("automatic, {AUTOMATIC_CONTEXT} at most")),
    }
}
