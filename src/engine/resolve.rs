//! Refs to manifests: what a ref of a spec means now, and whether the application allows it.

use std::sync::Arc;

use llm_local_core::{
    ArtifactRef, ArtifactSource, Error, FetchContext, LockedArtifact, Manifest, ModelSpec, Result, Want,
};
use llm_local_source_common::{store::Selection, transfer::Job};

use super::{
    Inner,
    asked::Asked,
    prepare::{Pinned, resolving},
    versions::{Versions, could_not_ask, names},
};
use crate::{adapters::Copies, lora::ReadOptions, plan::PinnedBy};

/// A ref that was resolved.
#[derive(Clone)]
pub(crate) struct Pin {
    /// The ref as it was asked for. That of the manifest may be another one by which the same was fetched.
    pub(crate) reference: ArtifactRef,
    pub(crate) source: Arc<dyn ArtifactSource>,
    pub(crate) manifest: Manifest,
    pub(crate) by: PinnedBy,
    /// Whether it is a path of whose files the copies in the store are used.
    pub(crate) is_copy: bool,
    /// What was selected of its versions before that.
    pub(crate) seen: Selection,
}

impl Pin {
    pub(crate) fn job(&self) -> Job {
        Job::new(self.source.clone(), self.manifest.clone())
    }

    /// Whether its files are their owner's, and used where they lie.
    pub(crate) fn is_where_it_lies(&self) -> bool {
        self.reference.is_file() && !self.is_copy
    }
}

impl std::fmt::Debug for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pin").field("manifest", &self.manifest).field("by", &self.by).finish_non_exhaustive()
    }
}

impl Inner {
    /// Pins the refs of `spec`: to what its lock says, if it has one. Refs that move together, as two to assets of the
    /// newest release of a repository, are of one release.
    pub(super) async fn resolve(&self, spec: &ModelSpec, cx: &FetchContext) -> Result<Pinned> {
        spec.validate()?;
        let resolution = self.registry.resolve(spec)?;
        let locked = |reference, want| spec.lock.as_ref().map(|lock| lock.artifact(reference, want)).transpose();
        let (lock, mut asked) = (locked(&spec.base, Want::Model)?, Asked::default());
        let base = self.pin(resolution.model_source.clone(), &spec.base, Want::Model, lock, &mut asked, cx).await?;
        let mut adapters = Vec::new();
        for (adapter, source) in spec.adapters.iter().zip(&resolution.adapter_sources) {
            let reference = &adapter.reference;
            let pinning = async {
                let lock = locked(reference, Want::Adapter)?;
                let cx = ReadOptions::from(adapter).context(cx);
                self.pin(source.clone(), reference, Want::Adapter, lock, &mut asked, &cx).await
            };
            adapters.push(pinning.await.map_err(|e| e.into_adapter(reference))?);
        }
        Ok(Pinned { resolution, base, adapters })
    }

    /// Pins `reference`, to what `lock` says if there is one, if the policy allows it. `asked` is what sources have said of
    /// refs that are to mean the same.
    pub(crate) async fn pin(
        &self,
        source: Arc<dyn ArtifactSource>,
        reference: &ArtifactRef,
        want: Want,
        lock: Option<&LockedArtifact>,
        asked: &mut Asked,
        cx: &FetchContext,
    ) -> Result<Pin> {
        self.policy.check_ref(reference)?;
        resolving(reference, cx);
        let unseen = Selection::default;
        let mut is_copy = false;
        let (manifest, by, seen) = match lock {
            Some(lock) => {
                let (manifest, is_kept) = self.resolve_locked(&*source, reference, lock, cx).await?;
                is_copy = reference.is_file() && is_kept;
                (manifest, PinnedBy::Lock, unseen())
            }
            // The files of a model are used where they lie, and no others of it are kept.
            None if reference.is_file() && want == Want::Model => {
                (source.resolve(reference, want, cx).await?, PinnedBy::Source, unseen())
            }
            None => {
                let versions = Versions::of(self.transfer.store(), reference, want).await?;
                let (manifest, by) = self.resolve_now(&*source, reference, &versions, asked, cx).await?;
                is_copy = reference.is_file() && matches!(by, PinnedBy::Hold(_));
                (manifest, by, versions.selection)
            }
        };
        self.policy.check_manifest(&manifest)?;
        let source = if is_copy { Arc::new(Copies(source)) } else { source };
        Ok(Pin { reference: reference.clone(), source, manifest, by, is_copy, seen })
    }

    /// What `reference` means now, and who says so.
    async fn resolve_now(
        &self,
        source: &dyn ArtifactSource,
        reference: &ArtifactRef,
        versions: &Versions,
        asked: &mut Asked,
        cx: &FetchContext,
    ) -> Result<(Manifest, PinnedBy)> {
        let want = versions.want;
        if let Some(kept) = versions.named(source)? {
            return Ok((kept.manifest.clone(), PinnedBy::Name));
        }
        if versions.is_moving()
            && let Some(held) = self.held(source, versions, cx).await?
        {
            return Ok(held);
        }
        if let Some(version) = asked.version(reference) {
            let manifest = match versions.find(version).filter(|kept| kept.whole) {
                Some(kept) if source.placement(&kept.manifest)?.is_none() => kept.manifest.clone(),
                _ => {
                    let mut manifest = source.resolve(&source.at_revision(reference, version)?, want, cx).await?;
                    manifest.reference = reference.clone();
                    manifest
                }
            };
            return Ok((manifest, PinnedBy::Source));
        }
        match source.resolve(reference, want, cx).await {
            // That it is a branch is known only now.
            Ok(manifest) if !names(reference, manifest.version.as_deref(), &manifest.revision) => {
                let held = if reference.is_file() { None } else { self.held(source, versions, cx).await? };
                Ok(held.unwrap_or_else(|| {
                    asked.note(reference, &manifest);
                    (manifest, PinnedBy::Source)
                }))
            }
            Ok(manifest) => Ok((manifest, PinnedBy::Source)),
            Err(error) => last_used(source, versions, error),
        }
    }

    /// The version that the ref is held at, if it is.
    async fn held(
        &self,
        source: &dyn ArtifactSource,
        versions: &Versions,
        cx: &FetchContext,
    ) -> Result<Option<(Manifest, PinnedBy)>> {
        let (Some(hold), Some(current)) = (versions.hold(), versions.current()) else { return Ok(None) };
        let by = PinnedBy::Hold(hold);
        if let Some(kept) = versions.find(&current.revision) {
            return Ok(Some((kept.manifest.clone(), by)));
        }
        let (reference, named) = (&versions.reference, current.version.as_ref().unwrap_or(&current.revision));
        if reference.is_file() {
            let reason =
                format!("it is held at {named}, which is not kept any more; unpin it to use what is there now");
            return Err(Error::not_found(reference, reason));
        }
        let manifest = source.resolve(&source.at_revision(reference, named)?, versions.want, cx).await?;
        if manifest.revision == current.revision {
            return Ok(Some((manifest, by)));
        }
        Err(Error::IntegrityFailed {
            what: format!("{named} of {reference}, at which it is held,"),
            expected: format!("the revision {}", current.revision),
            found: format!("{}; unpin it to use that", manifest.revision),
        })
    }

    /// What `lock` says that `reference` was, and whether that is kept.
    async fn resolve_locked(
        &self,
        source: &dyn ArtifactSource,
        reference: &ArtifactRef,
        lock: &LockedArtifact,
        cx: &FetchContext,
    ) -> Result<(Manifest, bool)> {
        let kept = self.kept_locked(source, reference, lock).await?;
        let is_kept = kept.is_some();
        let mut manifest = match kept {
            Some(manifest) => manifest,
            // Paths have no revisions: what is there must be what was.
            None if reference.is_file() => source.resolve(reference, lock.want, cx).await?,
            None => source.resolve(&source.at_revision(reference, lock.named())?, lock.want, cx).await?,
        };
        manifest.reference = reference.clone();
        lock.hold(&mut manifest)?;
        Ok((manifest, is_kept))
    }

    /// What `lock` says, if it is kept: of a path, as a copy.
    async fn kept_locked(
        &self,
        source: &dyn ArtifactSource,
        reference: &ArtifactRef,
        lock: &LockedArtifact,
    ) -> Result<Option<Manifest>> {
        if reference.is_file() && lock.want == Want::Model {
            return Ok(None);
        }
        let versions = Versions::of(self.transfer.store(), reference, lock.want).await?;
        match versions.find(&lock.revision) {
            Some(kept) if kept.whole && source.placement(&kept.manifest)?.is_none() => Ok(Some(kept.manifest.clone())),
            _ => Ok(None),
        }
    }
}

/// What the ref meant when it was used last, for its source `failed` and could not be asked.
fn last_used(source: &dyn ArtifactSource, versions: &Versions, failed: Error) -> Result<(Manifest, PinnedBy)> {
    let Some(kept) = versions.current_kept().filter(|_| versions.is_moving() && could_not_ask(&failed)) else {
        return Err(failed);
    };
    if source.placement(&kept.manifest)?.is_some() {
        return Err(failed);
    }
    let version = kept.manifest.version.as_ref().unwrap_or(&kept.manifest.revision);
    tracing::warn!(
        reference = %versions.reference, error = %failed, version,
        "its source cannot be asked; the version that was used last is used, which may not be the newest"
    );
    Ok((kept.manifest.clone(), PinnedBy::LastUse))
}
