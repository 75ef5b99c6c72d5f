//! The backend: what is asked, and who answers.

use std::sync::Arc;

use llm_local_core::{
    Capabilities, DeviceInfo, DeviceMemory, Error, InferenceBackend, LoadOptions, LoadedModel, MemoryEstimate,
    ModelInfo, ModelWeights, Result, Support, async_trait,
};

use crate::{
    MlxMemory, NAME, device, estimate, load, memory,
    support::{self, Supported},
};

/// Runs decoder models through MLX, on the GPU of Apple silicon.
///
/// All models of a process compute on one thread, in turns, and share one allocator: its figures and its limits are the
/// process's, whichever backend they are asked of.
///
/// [`InferenceBackend::estimate`] and [`InferenceBackend::load`] answer a context of 0 tokens, or of more than
/// [`max_context`](Capabilities::max_context), with [`Error::InvalidSpec`]; [`InferenceBackend::supports`] does not look
/// at it, so that a caller can ask first and clamp then.
#[derive(Debug, Default)]
pub struct MlxBackend {
    /// In bytes.
    cache_limit: Option<u64>,
}

impl MlxBackend {
    /// A backend that has not looked at its device yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many bytes of freed memory the allocator may keep for later, from the next load on. By default 20 MiB on
    /// phones; on desktops a sixteenth of what the system recommends the GPU to take, 1 GiB at most.
    pub fn with_cache_limit(mut self, bytes: u64) -> Self {
        self.cache_limit = Some(bytes);
        self
    }

    /// What MLX's allocator has now.
    ///
    /// # Errors
    /// [`Error::BackendUnavailable`] if it does not say.
    pub fn memory(&self) -> Result<MlxMemory> {
        memory::now()
    }

    fn supported(&self, m: &ModelInfo, o: &LoadOptions) -> Result<Supported> {
        let s = check(m, o).map_err(|why| Error::unsupported_format(&m.id, format!("{why} (backend {NAME})")))?;
        let most = s.max_context;
        if o.context_length == 0 || o.context_length > most {
            let reason = format!("it is {}; {} with {NAME} holds 1 to {most} tokens", o.context_length, m.id);
            return Err(Error::invalid_spec("context_length", reason));
        }
        Ok(s)
    }
}

fn check(m: &ModelInfo, o: &LoadOptions) -> std::result::Result<Supported, String> {
    support::check(m, o, device::find(o.device.as_deref())?)
}

#[async_trait]
impl InferenceBackend for MlxBackend {
    fn name(&self) -> &str {
        NAME
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>> {
        device::device().map(|device| vec![device.clone()])
    }

    fn supports(&self, m: &ModelInfo, o: &LoadOptions) -> Support {
        let capabilities = |s: Supported| {
            Capabilities::new()
                .with_sessions(true)
                .with_unmerged(true)
                .with_replaces_tensors(true)
                .with_max_context(s.max_context)
        };
        check(m, o).map_or_else(Support::No, |s| Support::Yes(capabilities(s)))
    }

    fn device_memory(&self, id: &str) -> Result<Option<DeviceMemory>> {
        device::memory(id)
    }

    fn set_memory_budget(&self, id: &str, bytes: u64) -> Result<()> {
        device::find(Some(id)).map_err(|why| Error::backend_unavailable(NAME, why))?;
        memory::set_budget(bytes)
    }

    fn estimate(&self, m: &ModelInfo, o: &LoadOptions) -> Result<MemoryEstimate> {
        Ok(estimate::estimate(&self.supported(m, o)?, m, o.context_length))
    }

    async fn load(&self, w: ModelWeights, o: LoadOptions) -> Result<Arc<dyn LoadedModel>> {
        let s = self.supported(&w.info, &o)?;
        memory::limit_cache(self.cache_limit)?;
        load::load(s, w, o).await
    }
}
