//! Mocks of the contract's traits, made by [mockall](https://docs.rs/mockall): each method has an `expect_` method.
//!
//! ```
//! use llm_local_core::{DeviceInfo, DeviceKind, InferenceBackend as _};
//! use llm_local_testkit::mocks::MockInferenceBackend;
//!
//! let mut backend = MockInferenceBackend::new();
//! backend.expect_devices().returning(|| Ok(vec![DeviceInfo::new("cpu", DeviceKind::Cpu, "a processor")]));
//! backend.expect_load().never();
//! assert_eq!(backend.devices()?[0].id, "cpu");
//! # Ok::<_, llm_local_core::Error>(())
//! ```
#![allow(missing_docs)] // what mockall generates has none; the traits are documented where they are defined

use std::{ops::Range, sync::Arc};

use llm_local_core::{
    AdapterSet, AdapterSource, ArtifactRef, ArtifactSource, Counters, DeviceInfo, FetchContext, GenerateRequest,
    Generation, InferenceBackend, LoadOptions, LoadedInfo, LoadedModel, LogitsRequest, Manifest, ManifestFile,
    MemoryEstimate, MemoryReport, ModelInfo, ModelSource, ModelWeights, Opened, Result, Revision, SessionId,
    SessionState, Support, TensorSource, TrimLevel, Want, async_trait,
};
use mockall::mock;

mock! {
    /// A mock of [`InferenceBackend`].
    pub InferenceBackend {}

    #[async_trait]
    impl InferenceBackend for InferenceBackend {
        fn name(&self) -> &str;
        fn devices(&self) -> Result<Vec<DeviceInfo>>;
        fn supports(&self, m: &ModelInfo, o: &LoadOptions) -> Support;
        fn estimate(&self, m: &ModelInfo, o: &LoadOptions) -> Result<MemoryEstimate>;
        async fn load(&self, w: ModelWeights, o: LoadOptions) -> Result<Arc<dyn LoadedModel>>;
    }
}

mock! {
    /// A mock of [`LoadedModel`].
    pub LoadedModel {}

    #[async_trait]
    impl LoadedModel for LoadedModel {
        fn info(&self) -> LoadedInfo;
        fn generate(&self, r: GenerateRequest) -> Generation;
        async fn logits(&self, r: LogitsRequest) -> Result<Vec<f32>>;
        async fn set_adapters(&self, a: AdapterSet) -> Result<()>;
        async fn replace_tensors(&self, tensors: Arc<dyn TensorSource>, info: Arc<ModelInfo>, names: Vec<String>) -> Result<()>;
        async fn end_session(&self, s: SessionId) -> Result<()>;
        async fn fork_session(&self, from: &SessionId, to: SessionId) -> Result<()>;
        async fn export_session(&self, s: &SessionId) -> Result<SessionState>;
        async fn import_session(&self, s: &SessionId, state: SessionState) -> Result<()>;
        fn memory(&self) -> MemoryReport;
        fn counters(&self) -> Counters;
        async fn trim(&self, level: TrimLevel) -> Result<u64>;
        async fn unload(&self) -> Result<()>;
    }
}

mock! {
    /// A mock of [`ModelSource`].
    pub ModelSource {}

    #[async_trait]
    impl ArtifactSource for ModelSource {
        fn scheme(&self) -> &str;
        async fn resolve(&self, reference: &ArtifactRef, want: Want, cx: &FetchContext) -> Result<Manifest>;
        async fn open(
            &self,
            manifest: &Manifest,
            file: &ManifestFile,
            range: Range<u64>,
            cx: &FetchContext,
        ) -> Result<Opened>;
        async fn revisions(&self, reference: &ArtifactRef, cx: &FetchContext) -> Result<Vec<Revision>>;
    }

    impl ModelSource for ModelSource {}
}

mock! {
    /// A mock of [`AdapterSource`].
    pub AdapterSource {}

    #[async_trait]
    impl ArtifactSource for AdapterSource {
        fn scheme(&self) -> &str;
        async fn resolve(&self, reference: &ArtifactRef, want: Want, cx: &FetchContext) -> Result<Manifest>;
        async fn open(
            &self,
            manifest: &Manifest,
            file: &ManifestFile,
            range: Range<u64>,
            cx: &FetchContext,
        ) -> Result<Opened>;
        async fn revisions(&self, reference: &ArtifactRef, cx: &FetchContext) -> Result<Vec<Revision>>;
    }

    impl AdapterSource for AdapterSource {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use llm_local_core::{Error, ModelSpec, Registry};

    #[test]
    fn mocks_take_part_in_a_registry_as_trait_objects() {
        let mut backend = MockInferenceBackend::new();
        backend.expect_name().return_const("mocked".to_owned());
        backend.expect_devices().returning(|| Err(Error::backend_unavailable("mocked", "it is a mock")));
        let mut models = MockModelSource::new();
        models.expect_scheme().return_const("mem".to_owned());
        models
            .expect_resolve()
            .times(1)
            .returning(|reference, want, _| Manifest::new(reference.clone(), want, "1", vec![]));
        let mut adapters = MockAdapterSource::new();
        adapters.expect_scheme().return_const("mem".to_owned());
        let registry = Registry::empty()
            .with_backend(Arc::new(backend))
            .with_model_source(Arc::new(models))
            .with_adapter_source(Arc::new(adapters));
        let spec = ModelSpec::new("mem:tiny".parse().unwrap());
        let error = registry.resolve(&spec).unwrap_err();
        assert!(error.to_string().contains("it is a mock"), "{error}");
        let source = registry.model_source(&spec.base).unwrap();
        let manifest = pollster::block_on(source.resolve(&spec.base, Want::Model, &FetchContext::new())).unwrap();
        assert_eq!(manifest.reference, spec.base);
    }

    #[test]
    #[should_panic(expected = "MockLoadedModel::unload")]
    fn a_call_that_nobody_expected_panics() {
        let _ = pollster::block_on(MockLoadedModel::new().unload());
    }
}
