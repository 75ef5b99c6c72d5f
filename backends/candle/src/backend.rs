//! The backend: what is asked, and who answers.

use std::sync::{Arc, OnceLock};

use llm_local_core::{
    DeviceInfo, DeviceMemory, Error, InferenceBackend, LoadOptions, LoadedModel, MemoryEstimate, ModelInfo,
    ModelWeights, Result, Support, async_trait,
};

use crate::{device::Devices, route::Route};

/// The backend's name.
pub(crate) const NAME: &str = "candle";

/// Runs decoder models through candle.
///
/// [`InferenceBackend::estimate`] and [`InferenceBackend::load`] answer a context of 0 tokens, or of more than
/// [`max_context`](llm_local_core::Capabilities::max_context), with [`Error::InvalidSpec`];
/// [`InferenceBackend::supports`] does not look at it, so that a caller can ask first and clamp then.
#[derive(Debug, Default)]
pub struct CandleBackend {
    /// Probed when first asked for: opening a GPU takes a while.
    devices: OnceLock<Devices>,
}

impl CandleBackend {
    /// A backend that has not looked at its devices yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn devices(&self) -> &Devices {
        self.devices.get_or_init(Devices::probe)
    }

    fn route(&self, m: &ModelInfo, o: &LoadOptions) -> Result<Route> {
        let route = Route::find(m, o, self.devices())
            .map_err(|why| Error::unsupported_format(&m.id, format!("{why} (backend {NAME})")))?;
        let most = route.max_context();
        if o.context_length == 0 || o.context_length > most {
            let reason = format!("it is {}; {} with candle holds 1 to {most} tokens", o.context_length, m.id);
            return Err(Error::invalid_spec("context_length", reason));
        }
        Ok(route)
    }
}

#[async_trait]
impl InferenceBackend for CandleBackend {
    fn name(&self) -> &str {
        NAME
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>> {
        Ok(self.devices().infos())
    }

    fn supports(&self, m: &ModelInfo, o: &LoadOptions) -> Support {
        match Route::find(m, o, self.devices()) {
            Ok(route) => Support::Yes(route.capabilities()),
            Err(why) => Support::No(why),
        }
    }

    fn device_memory(&self, id: &str) -> Result<Option<DeviceMemory>> {
        self.devices().memory(id)
    }

    fn estimate(&self, m: &ModelInfo, o: &LoadOptions) -> Result<MemoryEstimate> {
        Ok(self.route(m, o)?.estimate(m, o.context_length))
    }

    async fn load(&self, w: ModelWeights, o: LoadOptions) -> Result<Arc<dyn LoadedModel>> {
        let route = self.route(&w.info, &o)?;
        if !w.adapters.is_empty() && !route.capabilities().unmerged {
            let reason =
                format!("candle-transformers computes {} and runs none; merge them into its weights", w.info.id);
            return Err(Error::unsupported("adapters beside the weights", reason));
        }
        route.load(w, o).await
    }
}
