//! From refs to a set of adapters that fits a loaded model: resolve → fetch → read → fit.

use std::sync::Arc;

use llm_local_core::{AdapterSet, AdapterSpec, Error, FetchContext, ModelInfo, Result, Want};

use super::{Sets, check_weight, lock, names_of};
use crate::{
    engine::{Asked, Engine, Inner, Model, Pin},
    lora::{self, AdapterOutline, FitReport},
    plan::PlannedArtifact,
};

impl Engine {
    /// The adapters of `adapters`, fetched, read, and checked against the base of `model`, for [`Model::set_adapters`] and
    /// for requests to `model` ([`GenerateRequest::with_adapters`](llm_local_core::GenerateRequest::with_adapters)). Its
    /// adapters may be put into other sets for `model`, with other weights. They are copies in memory, as long as anybody
    /// holds them; their files may go. A lock of the model's spec says nothing of them.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] with the cause for whatever is wrong: an adapter that cannot be had, is not allowed, is
    /// broken, does not fit, can only be merged or exceeds the [limits](crate::AdapterLimits); a model that was loaded with
    /// its adapters merged, or whose backend runs none. [`Error::Cancelled`].
    pub async fn adapter_set(&self, model: &Model, adapters: &[AdapterSpec]) -> Result<AdapterSet> {
        let cx = self.context(None);
        let _cancel_on_drop = cx.cancel.clone().drop_guard();
        let made = self.inner.adapter_set(model.sets(), adapters, &cx).await;
        made.map_err(|e| e.into_adapter(names_of(adapters)))
    }

    /// Replaces the adapters of `model` by `adapters`: [`Engine::adapter_set`], then [`Model::set_adapters`].
    ///
    /// # Errors
    /// Those of both.
    pub async fn set_adapters(&self, model: &Model, adapters: &[AdapterSpec]) -> Result<()> {
        model.set_adapters(self.adapter_set(model, adapters).await?).await
    }
}

impl Inner {
    async fn adapter_set(&self, sets: &Sets, adapters: &[AdapterSpec], cx: &FetchContext) -> Result<AdapterSet> {
        let info = sets.base(|| names_of(adapters))?;
        sets.limits.check_count(adapters.len(), || names_of(adapters))?;
        for AdapterSpec { reference, weight, .. } in adapters {
            check_weight(reference, *weight)?;
        }
        let (mut pins, mut asked) = (Vec::new(), Asked::default());
        for AdapterSpec { reference, .. } in adapters {
            let pinning = async {
                let source = self.registry.adapter_source(reference)?;
                self.pin(source, reference, Want::Adapter, None, &mut asked, cx).await
            };
            pins.push(pinning.await.map_err(|e| e.into_adapter(reference))?);
        }
        // Until they are read.
        let _holds = self.hold(&pins).await?;
        self.check_heads(&pins, adapters, info, cx).await?;
        let mut made = Vec::new();
        let fetched = self.fetch_allowed(&pins.iter().map(Pin::job).collect::<Vec<_>>(), cx).await?;
        for ((pin, files), adapter) in pins.iter().zip(fetched).zip(adapters) {
            let adapter = Arc::new(self.read_adapter(&pin.reference, files, adapter.into()).await?);
            // Before more is read.
            sets.limits.check(made.iter().chain([&adapter]).map(|adapter| &**adapter))?;
            made.push(adapter);
        }
        let weighted: Vec<_> = made.into_iter().zip(adapters.iter().map(|adapter| adapter.weight)).collect();
        let outlines: Vec<_> =
            weighted.iter().map(|(adapter, weight)| (AdapterOutline::from(&**adapter), *weight)).collect();
        let allow: Vec<_> = adapters.iter().map(|adapter| adapter.allow.clone()).collect();
        check_beside(&outlines, &lora::fit_outlines_allowing(&outlines, &allow, info)?)?;
        let fitted = lora::for_backend(&weighted, &allow, info)?;
        let mut set = AdapterSet::new();
        for (pin, (adapter, weight)) in pins.iter().zip(fitted) {
            let used = PlannedArtifact::new(pin, true).used(weight);
            set = set.with(lock(&sets.known).take_up(adapter, used), weight);
            self.note_selected(pin).await;
        }
        Ok(set)
    }

    /// Checks by their heads those of `pins` that are not here, so that nothing is fetched that cannot be used.
    async fn check_heads(
        &self,
        pins: &[Pin],
        adapters: &[AdapterSpec],
        info: &ModelInfo,
        cx: &FetchContext,
    ) -> Result<()> {
        for (pin, adapter) in pins.iter().zip(adapters) {
            let job = pin.job();
            if self.transfer.present(&job, cx).await?.is_some() {
                continue;
            }
            if let Some(outline) = self.peek_adapter(&job, &adapter.into(), cx).await? {
                let outlines = [(outline, adapter.weight)];
                let allow = [adapter.allow.clone()];
                check_beside(&outlines, &lora::fit_outlines_allowing(&outlines, &allow, info)?)?;
            }
        }
        Ok(())
    }
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
