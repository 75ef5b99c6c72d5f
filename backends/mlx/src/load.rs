//! From weights to a model on MLX's thread.

use std::sync::Arc;

use llm_local_backend_common::{
    decoder::{Loading, of_model, open_text_while},
    worker::{self, Built},
};
use llm_local_core::{AdapterSet, DeviceKind, Error, LoadOptions, LoadedInfo, LoadedModel, ModelWeights, Result};

use crate::{
    NAME,
    decoder::Decoder,
    memory::{self, ClearOnDrop},
    support::Supported,
    thread::MLX,
};

/// Tokens of a prompt computed in one step, which is what a cancelled generation has to wait for.
pub(crate) fn prefill_chunk(device: DeviceKind) -> usize {
    match device {
        DeviceKind::Cpu => 256,
        _ => 512,
    }
}

/// Loads the model on MLX's thread, where other models go on meanwhile.
pub(crate) async fn load(s: Supported, w: ModelWeights, o: LoadOptions) -> Result<Arc<dyn LoadedModel>> {
    // The worker cancels this token when the load is given up; the caller's own may be for more than this load.
    let child = o.cancel.child_token();
    let o = o.with_cancel(child);
    let (options, name) = (o.clone(), s.id.clone());
    let loaded = worker::spawn_on(&MLX, &options, async move || {
        // Dropped last, also behind a load that fails or is given up.
        let clear = ClearOnDrop::new(w.reservation);
        let (info, text, adapters) = (w.info, w.text, w.adapters);
        let source = w.tensors.ok_or_else(|| Error::load(&s.id, "it came without its tensors, which mlx needs"))?;
        let tensors = s.decoder.base_tensors(s.layout).len();
        let (text_side, model) = open_text_while(&s.id, &text, &o, async |o| {
            Decoder::load(&s, &*source, o.context_length, Loading::new(o, tensors)).await
        })
        .await?;
        // What was read and is not needed any more.
        drop((source, info, text));
        memory::clear("loaded")?;
        let adapters = adapters.into_iter().fold(AdapterSet::new(), |set, (adapter, weight)| set.with(adapter, weight));
        let info = LoadedInfo::new(&s.id, NAME, s.device.clone(), s.dtype, o.context_length, s.decoder.vocab_size)
            .with_held_in(s.held_in());
        Ok(Built {
            model,
            info,
            text: text_side,
            prefill_chunk: prefill_chunk(s.device.kind),
            adapters,
            reservation: Some(Box::new(clear)),
        })
    })
    .await;
    loaded.map_err(|error| of_model(&name, error))
}
