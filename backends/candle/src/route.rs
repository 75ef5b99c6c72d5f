//! Who computes a model: the decoder, or candle-transformers what the decoder cannot describe.

use std::sync::Arc;

use candle_core::DType;
use llm_local_core::{
    Capabilities, KvCacheType, LoadOptions, LoadedModel, MemoryEstimate, ModelInfo, ModelWeights, Result,
};

use crate::{device::Devices, estimate, load, support, transformers};

/// A model that can be run, with who computes it.
pub(crate) enum Route {
    Decoder(Box<support::Supported>),
    Transformers(Box<transformers::Supported>),
}

impl Route {
    /// Finds out who computes `info`, or says what of it cannot be run.
    pub(crate) fn find(info: &ModelInfo, o: &LoadOptions, devices: &Devices) -> Result<Self, String> {
        let route = if info.decoder.is_err()
            && let Some(supported) = transformers::check(info, o, devices)
        {
            supported.map(|s| Self::Transformers(Box::new(s)))?
        } else {
            support::check(info, o, devices).map(|s| Self::Decoder(Box::new(s)))?
        };
        let kept = route.kv_cache();
        if o.kv_cache != KvCacheType::Auto && o.kv_cache != kept {
            return Err(format!(
                "kv_cache is {}; candle keeps keys and values as it computes, which is {kept} here",
                o.kv_cache
            ));
        }
        Ok(route)
    }

    /// What keys and values are kept in.
    fn kv_cache(&self) -> KvCacheType {
        match self {
            Self::Decoder(s) if s.activations == DType::F16 => KvCacheType::F16,
            Self::Decoder(s) if s.activations == DType::BF16 => KvCacheType::Bf16,
            _ => KvCacheType::F32,
        }
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        let is_own = matches!(self, Self::Decoder(_));
        Capabilities::new()
            .with_sessions(is_own)
            .with_unmerged(is_own)
            .with_replaces_tensors(is_own)
            .with_max_context(self.max_context())
    }

    /// The longest context, in tokens.
    pub(crate) fn max_context(&self) -> usize {
        match self {
            Self::Decoder(s) => s.max_context,
            Self::Transformers(s) => s.max_context(),
        }
    }

    pub(crate) fn estimate(&self, info: &ModelInfo, context: usize) -> MemoryEstimate {
        match self {
            Self::Decoder(s) => estimate::estimate(s, info, context),
            Self::Transformers(s) => transformers::estimate(s, info, context),
        }
    }

    pub(crate) async fn load(self, w: ModelWeights, o: LoadOptions) -> Result<Arc<dyn LoadedModel>> {
        match self {
            Self::Decoder(s) => load::load(*s, w, o).await,
            Self::Transformers(s) => transformers::load(*s, w, o).await,
        }
    }
}
