//! What a model takes, and how long a context there is room for.

use std::sync::Arc;

use llm_local_core::{MemoryEstimate, ModelInfo, Result};

use super::{
    choose::Chosen,
    route::{Requantizing, Route, requantized},
};
use crate::{
    lora::{FitReport, FittedAdapter, merge_peak},
    memory::ContextTiers,
    plan::PlannedModel,
};

/// A model with the adapters that change it as `report` says.
pub(super) struct Adapted<'a> {
    /// As the backend gets it.
    pub(super) info: &'a ModelInfo,
    /// The base alone.
    pub(super) base: &'a Arc<ModelInfo>,
    pub(super) route: Route,
    pub(super) report: &'a FitReport,
}

/// Whether a model is to be loaded.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    /// It is, with a context of so many tokens at most.
    Load(Option<usize>),
    /// Its files are wanted alone, however much memory there is now.
    Files,
}

/// What a model takes with the context that was chosen.
#[derive(Debug, Clone)]
pub(super) struct Planned {
    pub(super) estimate: MemoryEstimate,
    /// The most bytes at one time, with the models that its loss is measured against.
    pub(super) required: u64,
    /// Why the context is as long.
    context_reason: String,
}

impl Chosen {
    /// Chooses the context of `model`, and says what the model takes.
    ///
    /// # Errors
    /// [`llm_local_core::Error::InsufficientMemory`] if there is not enough of it for a context that may be.
    pub(super) fn fit(&mut self, model: &Adapted<'_>, tiers: &ContextTiers, purpose: Purpose) -> Result<Planned> {
        let room = match purpose {
            Purpose::Load(_) => self.room.bytes,
            Purpose::Files => None,
        };
        let mut context = self.bounds(tiers).fitting(room, |tokens| Ok(self.required(model, tokens)?.1))?;
        if let Purpose::Load(Some(most)) = purpose
            && most < context.tokens
        {
            context.reason = format!("{} did not fit when they were tried", context.tokens);
            context.tokens = most;
        }
        self.options.context_length = context.tokens;
        let (estimate, required) = self.required(model, context.tokens)?;
        let (model, context_length, reason) = (&model.info.id, context.tokens, &context.reason);
        tracing::debug!(target: "llm_local::memory", model, context_length, reason, required, room, "fits");
        Ok(Planned { estimate, required, context_reason: context.reason })
    }

    /// What `model` takes with a context of `tokens` tokens, and the most at one time.
    fn required(&self, model: &Adapted<'_>, tokens: usize) -> Result<(MemoryEstimate, u64)> {
        let backend = &self.resolution.backend.backend;
        let mut options = self.options.clone();
        options.context_length = tokens;
        let report = model.report;
        let beside = |estimate: MemoryEstimate| {
            let bytes = report.adapters.iter().map(FittedAdapter::bytes_beside).sum();
            estimate.with_adapters(bytes).with_merge_peak(report.peak_beside())
        };
        let estimate = backend.estimate(model.info, &options)?;
        let estimate = match model.route {
            Route::Merged | Route::Requantized(_) => estimate.with_merge_peak(merge_peak(report, model.info)),
            Route::Beside => beside(estimate),
        };
        // The models that tell what quantizing again loses are loaded one after the other.
        let telling = match model.route {
            Route::Merged | Route::Beside => None,
            Route::Requantized(Requantizing { can_be_beside: true, .. }) => {
                Some(beside(backend.estimate(model.base, &options)?))
            }
            Route::Requantized(_) => {
                let info = report.merged_info(model.base);
                Some(backend.estimate(&info, &options)?.with_merge_peak(merge_peak(report, &info)))
            }
        };
        Ok((estimate, telling.map_or(0, |telling| telling.total()).max(estimate.total())))
    }

    /// What a plan says of `model`.
    pub(super) fn planned(&self, model: &Adapted<'_>, planned: &Planned) -> PlannedModel {
        let touched = model.report.touched.len();
        let (merged_tensors, unmerged_tensors) = if model.route == Route::Beside { (0, touched) } else { (touched, 0) };
        let requantized_tensors = match model.route {
            Route::Requantized(_) => requantized(model.report, model.info).count(),
            Route::Merged | Route::Beside => 0,
        };
        PlannedModel {
            context_length: self.options.context_length,
            context_reason: planned.context_reason.clone(),
            capabilities: self.capabilities.clone(),
            estimate: planned.estimate,
            required: planned.required,
            room: self.room.bytes,
            merged_tensors,
            unmerged_tensors,
            requantized_tensors,
        }
    }
}
