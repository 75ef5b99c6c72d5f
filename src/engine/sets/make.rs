//! From refs to a set of adapters that fits a loaded model: resolve → fetch → read → fit.

use std::sync::Arc;

use llm_local_core::{AdapterSet, AdapterSpec, FetchContext, Result, Want};

use super::{Sets, check_weight, lock, names_of};
use crate::{
    engine::{Asked, Engine, Inner, Model, Pin},
    lora::{self, AdapterOutline, ReadOptions},
    plan::PlannedArtifact,
};

impl Engine {
    /// The adapters of `adapters`, fetched, read, and checked against the base of `model`, for [`Model::set_adapters`] and
    /// for requests to `model` ([`GenerateRequest::with_adapters`](llm_local_core::GenerateRequest::with_adapters)). Its
    /// adapters may be put into other sets for `model`, with other weights. They are copies in memory, as long as anybody
    /// holds them; their files may go. A lock of the model's spec says nothing of them. The adapters of a set are summed,
    /// whatever the spec's [`combination`](llm_local_core::ModelSpec::combination) is.
    ///
    /// For a model that was loaded with
    /// [`AdapterPolicy::MergeRequantized`](llm_local_core::AdapterPolicy::MergeRequantized) there is no set of adapters for
    /// tensors that are quantized, but of those that it has: [`Model::set_adapters`] says why.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`](llm_local_core::Error::AdapterMergeFailed) with the cause for whatever is wrong: an
    /// adapter that cannot be had, is not allowed, is broken, does not fit or exceeds the [limits](crate::AdapterLimits); one
    /// that can only be merged, for a model that has its adapters beside the weights; one for quantized tensors, for a model
    /// that was loaded to quantize them again; a model whose backend can neither run adapters nor replace tensors.
    /// [`Error::Cancelled`](llm_local_core::Error::Cancelled).
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
        let info = sets.way.info(|| names_of(adapters))?;
        sets.limits.check_count(adapters.len(), || names_of(adapters))?;
        for AdapterSpec { reference, weight, .. } in adapters {
            check_weight(reference, *weight)?;
        }
        let (mut pins, mut asked) = (Vec::new(), Asked::default());
        for adapter @ AdapterSpec { reference, .. } in adapters {
            let pinning = async {
                let (source, cx) = (self.registry.adapter_source(reference)?, ReadOptions::from(adapter).context(cx));
                self.pin(source, reference, Want::Adapter, None, &mut asked, &cx).await
            };
            pins.push(pinning.await.map_err(|e| e.into_adapter(reference))?);
        }
        // Until they are read.
        let _holds = self.hold(&pins).await?;
        self.check_heads(&pins, adapters, sets, info, cx).await?;
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
        let may_be_own = sets.may_be_own(pins.iter().map(|pin| &pin.reference));
        sets.way.check(&outlines, &lora::fit_outlines_allowing(&outlines, &allow, info)?, may_be_own)?;
        let fitted = sets.way.formed(weighted, &allow, info)?;
        let mut set = AdapterSet::new();
        for ((pin, (adapter, weight)), allow) in pins.iter().zip(fitted).zip(allow) {
            let used = PlannedArtifact::new(pin, true).used(weight);
            set = set.with(lock(&sets.known).take_up(adapter, used, allow), weight);
            self.note_selected(pin).await;
        }
        Ok(set)
    }
}
