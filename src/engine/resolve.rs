//! Refs to manifests: what a ref of a spec means now, and whether the application allows it.

use llm_local_core::{ArtifactRef, ArtifactSource, FetchContext, LockedArtifact, Manifest, ModelSpec, Result, Want};

use super::{
    Inner,
    prepare::{Pinned, resolving},
};

impl Inner {
    /// Pins the refs of `spec`: to what its lock says, if it has one.
    pub(super) async fn resolve(&self, spec: &ModelSpec, cx: &FetchContext) -> Result<Pinned> {
        spec.validate()?;
        let resolution = self.registry.resolve(spec)?;
        let locked = |reference, want| spec.lock.as_ref().map(|lock| lock.artifact(reference, want)).transpose();
        let lock = locked(&spec.base, Want::Model)?;
        let base = self.pin(&*resolution.model_source, &spec.base, Want::Model, lock, cx).await?;
        let mut adapters = Vec::new();
        for (adapter, source) in spec.adapters.iter().zip(&resolution.adapter_sources) {
            let reference = &adapter.reference;
            let pinning = async {
                let lock = locked(reference, Want::Adapter)?;
                self.pin(&**source, reference, Want::Adapter, lock, cx).await
            };
            adapters.push(pinning.await.map_err(|e| e.into_adapter(reference))?);
        }
        Ok(Pinned { resolution, base, adapters })
    }

    /// Pins `reference`, to what `lock` says if there is one, if the policy allows it.
    pub(super) async fn pin(
        &self,
        source: &dyn ArtifactSource,
        reference: &ArtifactRef,
        want: Want,
        lock: Option<&LockedArtifact>,
        cx: &FetchContext,
    ) -> Result<Manifest> {
        self.policy.check_ref(reference)?;
        resolving(reference, cx);
        let manifest = match lock {
            None => source.resolve(reference, want, cx).await?,
            Some(lock) => self.resolve_locked(source, reference, lock, cx).await?,
        };
        self.policy.check_manifest(&manifest)?;
        Ok(manifest)
    }

    /// What `lock` says that `reference` was.
    async fn resolve_locked(
        &self,
        source: &dyn ArtifactSource,
        reference: &ArtifactRef,
        lock: &LockedArtifact,
        cx: &FetchContext,
    ) -> Result<Manifest> {
        // Paths have no revisions: what is there must be what was.
        let at = if reference.is_file() { reference.clone() } else { source.at_revision(reference, lock.named())? };
        let mut manifest = source.resolve(&at, lock.want, cx).await?;
        manifest.reference = reference.clone();
        lock.hold(&mut manifest)?;
        Ok(manifest)
    }
}
