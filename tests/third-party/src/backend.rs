//! The backend: it runs models that say `"model_type": "parrot"`, which have one weight.

use std::{sync::Arc, time::Instant};

use llm_local_core::{
    Capabilities, DeviceInfo, DeviceKind, Error, FloatType, InferenceBackend, LoadOptions, LoadedInfo, LoadedModel,
    MemoryEstimate, ModelFormat, ModelInfo, ModelWeights, ProgressEvent, Result, Support, TensorData, TensorSource,
    async_trait,
};

use crate::model::{ParrotModel, VOCAB};

/// The one weight, of shape (1, 1): how often the parrot repeats what it hears.
const WEIGHT: &str = "voice.weight";

/// The backend `parrot`.
#[derive(Debug)]
pub struct Parrot;

#[async_trait]
impl InferenceBackend for Parrot {
    fn name(&self) -> &str {
        "parrot"
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>> {
        Ok(vec![DeviceInfo::new("cage", DeviceKind::Cpu, "a parrot in its cage")])
    }

    fn supports(&self, m: &ModelInfo, _: &LoadOptions) -> Support {
        let ModelFormat::Safetensors { config } = &m.format else {
            return Support::No("it reads safetensors only".into());
        };
        match config.get("model_type").and_then(|t| t.as_str()) {
            Some("parrot") => {}
            other => return Support::No(format!("model_type is {other:?}; it runs \"parrot\" only")),
        }
        match m.tensor(WEIGHT) {
            Some(weight) if weight.shape == [1, 1] => Support::Yes(Capabilities::new()),
            Some(weight) => Support::No(format!("{WEIGHT} has the shape {:?}; expected [1, 1]", weight.shape)),
            None => Support::No(format!("there is no {WEIGHT}")),
        }
    }

    fn estimate(&self, m: &ModelInfo, o: &LoadOptions) -> Result<MemoryEstimate> {
        match self.supports(m, o) {
            Support::No(reason) => Err(Error::unsupported_format(&m.id, reason)),
            _ => Ok(MemoryEstimate::new(4, 4 * o.context_length as u64)),
        }
    }

    async fn load(&self, w: ModelWeights, o: LoadOptions) -> Result<Arc<dyn LoadedModel>> {
        let started = Instant::now();
        let Some(tensors) = &w.tensors else {
            return Err(Error::load(&w.info.id, "no tensors were given"));
        };
        if o.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let repeats = scalar(tensors.as_ref())?;
        if !(1.0..=100.0).contains(&repeats) {
            return Err(Error::load(&w.info.id, format!("{WEIGHT} is {repeats}; expected 1 to 100")));
        }
        if let Some(progress) = &o.progress {
            progress.on_progress(&ProgressEvent::loading(1, 1));
        }
        let device = DeviceInfo::new("cage", DeviceKind::Cpu, "a parrot in its cage");
        let info = LoadedInfo::new(&w.info.id, self.name(), device, FloatType::F32, o.context_length, VOCAB)
            .with_load_time(started.elapsed());
        Ok(Arc::new(ParrotModel::new(info, repeats.round() as usize)))
    }
}

fn scalar(tensors: &dyn TensorSource) -> Result<f32> {
    let data = tensors.read(WEIGHT, Some(FloatType::F32))?;
    let value = match &data {
        TensorData::F32(values) => values.first().copied(),
        TensorData::Borrowed(bytes) => bytes.first_chunk().map(|b| f32::from_le_bytes(*b)),
        TensorData::Bytes(bytes) => bytes.first_chunk().map(|b| f32::from_le_bytes(*b)),
        _ => None,
    };
    value.ok_or_else(|| Error::load(WEIGHT, format!("expected one f32, found {data:?}")))
}
