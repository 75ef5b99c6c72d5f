//! From weights to a model on its worker's thread.

use std::sync::Arc;

use candle_core::Device;
use llm_local_backend_common::{
    decoder::{Loading, of_model, open_text_beside},
    worker::{self, Built, StepModel},
};
use llm_local_core::{
    AdapterSet, DeviceKind, Error, LoadOptions, LoadedInfo, LoadedModel, ModelWeights, Result, TensorSource,
};

use crate::{
    backend::NAME,
    decoder::{Decoder, reading_threads},
    device,
    heap::{self, TrimOnDrop},
    support::Supported,
};

/// Tokens of a prompt computed in one step, which is what a cancelled generation has to wait for.
pub(crate) fn prefill_chunk(device: DeviceKind) -> usize {
    match device {
        DeviceKind::Cpu => 256,
        _ => 512,
    }
}

/// Loads the model on a worker's thread.
pub(crate) async fn load(s: Supported, w: ModelWeights, o: LoadOptions) -> Result<Arc<dyn LoadedModel>> {
    let (id, count) = (s.id.clone(), s.decoder.base_tensors(s.layout).len());
    let on = (s.device_info.id.clone(), s.device.clone());
    spawn(id, count, on, w, o, move |source, context, loading| {
        let (device, vocab) = (s.device_info.clone(), s.decoder.vocab_size);
        Ok(Loaded {
            model: Decoder::load(&s, source, context, loading)?,
            info: LoadedInfo::new(&s.id, NAME, device, s.dtype, context, vocab)
                .with_held_in(s.held_in())
                .with_reads_at_once(reading_threads(&s.device)),
            prefill_chunk: prefill_chunk(s.device_info.kind),
        })
    })
    .await
}

/// What [`spawn`]'s closure makes of the weights.
pub(crate) struct Loaded<M> {
    pub(crate) model: M,
    pub(crate) info: LoadedInfo,
    /// Tokens of a prompt computed in one step.
    pub(crate) prefill_chunk: usize,
}

/// Loads the model `id` of `tensors` tensors on a worker's thread, from its weights, on the device that `on` names and has.
pub(crate) async fn spawn<M: StepModel>(
    id: String,
    tensors: usize,
    on: (String, Device),
    w: ModelWeights,
    o: LoadOptions,
    load: impl FnOnce(&dyn TensorSource, usize, Loading) -> Result<Loaded<M>> + Send + 'static,
) -> Result<Arc<dyn LoadedModel>> {
    // The worker cancels this token when the load is given up; the caller's own may be for more than this load.
    let child = o.cancel.child_token();
    let o = o.with_cancel(child);
    let (options, name) = (o.clone(), id.clone());
    let loaded = worker::spawn(&options, move || {
        let (device_id, device) = on;
        device::own(&device_id);
        // Dropped last, also behind a load that fails or is given up.
        let trim = TrimOnDrop::new(w.reservation, device);
        let source = w.tensors.ok_or_else(|| Error::load(&id, "it came without its tensors, which candle needs"))?;
        let (text, loaded) = open_text_beside(&id, &w.text, &o, heap::trim_end_of_thread, |o| {
            load(&*source, o.context_length, Loading::new(o, tensors)) //
        })?;
        let Loaded { model, info, prefill_chunk } = loaded;
        // What was read and is not needed any more, before what it leaves in the heap is given back.
        drop((source, w.info, w.text));
        let adapters =
            w.adapters.into_iter().fold(AdapterSet::new(), |set, (adapter, weight)| set.with(adapter, weight));
        heap::trim_thread();
        Ok(Built { model, info, text, prefill_chunk, adapters, reservation: Some(Box::new(trim)) })
    })
    .await;
    loaded.map_err(|error| of_model(&name, error))
}
