//! From weights to a model on its worker's thread.

use std::sync::Arc;

use llm_local_core::{FloatType, LoadOptions, LoadedInfo, LoadedModel, ModelWeights, Result};

use super::{Wrapped, check::Supported, estimate::prefill_chunk};
use crate::{
    backend::NAME,
    load::{Loaded, spawn},
};

/// Loads the model on a worker's thread.
pub(crate) async fn load(s: Supported, w: ModelWeights, o: LoadOptions) -> Result<Arc<dyn LoadedModel>> {
    let (id, count) = (s.id.clone(), s.description.tensors.len());
    let on = (s.device_info.id.clone(), s.device.clone());
    spawn(id, count, on, w, o, move |source, context, loading| {
        let (device, vocab) = (s.device_info.clone(), s.description.sizes.vocab);
        let info = LoadedInfo::new(&s.id, NAME, device, FloatType::F32, context, vocab);
        let prefill_chunk = prefill_chunk(&s.description, s.device_info.kind, context);
        Ok(Loaded { model: Wrapped::load(s, source, context, loading)?, info, prefill_chunk })
    })
    .await
}
