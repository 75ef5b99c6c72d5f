//! The backend of builds without MLX: it says so, whatever is asked.

use std::sync::Arc;

use llm_local_core::{
    DeviceInfo, Error, InferenceBackend, LoadOptions, LoadedModel, MemoryEstimate, ModelInfo, ModelWeights, Result,
    Support, async_trait,
};

use crate::NAME;

const WHY: &str = "it runs on Apple silicon, and this build is for another target; on Linux its CPU build can be tested \
                   (feature `mlx-linux-cpu` of llm-local, prepared by `scripts/mlx-linux`)";

/// Runs decoder models through MLX, which this build does not have: every call is answered with
/// [`Error::BackendUnavailable`] that says why.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct MlxBackend;

impl MlxBackend {
    /// A backend that has no devices.
    pub fn new() -> Self {
        Self
    }
}

fn unavailable() -> Error {
    Error::backend_unavailable(NAME, WHY)
}

#[async_trait]
impl InferenceBackend for MlxBackend {
    fn name(&self) -> &str {
        NAME
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>> {
        Err(unavailable())
    }

    fn supports(&self, _: &ModelInfo, _: &LoadOptions) -> Support {
        Support::No(WHY.to_owned())
    }

    fn estimate(&self, _: &ModelInfo, _: &LoadOptions) -> Result<MemoryEstimate> {
        Err(unavailable())
    }

    async fn load(&self, _: ModelWeights, _: LoadOptions) -> Result<Arc<dyn LoadedModel>> {
        Err(unavailable())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_is_missing_and_how_it_could_be_had() {
        let error = MlxBackend::new().devices().unwrap_err();
        assert_eq!(error.code(), "backend_unavailable");
        assert!(error.to_string().contains("Apple silicon") && error.to_string().contains("mlx-linux-cpu"), "{error}");
    }
}
