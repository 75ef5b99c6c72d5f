//! Versions that refs are held at, and those that go.

use std::{collections::BTreeSet, sync::Arc};

use llm_local_core::{ArtifactRef, Error, FetchContext, Manifest, ProgressHandler, Result, Want};
use llm_local_source_common::store::{Deleted, HoldKind};

use super::{AdapterVersion, Adapters, update::not_kept};
use crate::{blocking::blocking, engine::Versions};

impl Adapters {
    /// Holds moving refs to the adapter at `version` (its name, or its revision) until [`Adapters::unpin`]; without one,
    /// at the one that was used last, or else at what `reference` means now. It is fetched if it is not kept. The files at a path are copied into the store, and
    /// the copy is used.
    ///
    /// A model that is loaded keeps the version it has; the next load of its spec loads anew if it has another one.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] around [`Error::NotFound`] for a version that there is not, what the source says, and
    /// those of the transfer.
    pub async fn pin(
        &self,
        reference: &ArtifactRef,
        version: Option<&str>,
        progress: Option<Arc<dyn ProgressHandler>>,
    ) -> Result<AdapterVersion> {
        let cx = self.context(progress);
        let _cancel_on_drop = cx.cancel.clone().drop_guard();
        self.hold_at(reference, version, &cx).await.map_err(|e| e.into_adapter(reference))
    }

    /// Lets moving refs to the adapter mean what their source says again, whether they were pinned or rolled back.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] around [`Error::Io`].
    pub async fn unpin(&self, reference: &ArtifactRef) -> Result<()> {
        let releasing = async {
            let (store, of) = (self.store().clone(), super::absolute(reference)?);
            blocking("store", move || store.release(&of, Want::Adapter)).await?;
            self.engine.inner.detach(reference, None);
            Ok(())
        };
        releasing.await.map_err(|e: Error| e.into_adapter(reference))
    }

    /// Makes moving refs to the adapter mean the version before the current one, byte for byte and without a request, and
    /// holds them there until [`Adapters::update`] or [`Adapters::unpin`]. One that the engine's policy does not allow is not
    /// gone back to.
    ///
    /// A model that is loaded keeps the version it has; the next load of its spec loads anew.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] around [`Error::NotFound`] if there is none before, or it is not kept any more;
    /// [`Error::NotAllowed`] that names the rule, and the current version stays; [`Error::Io`].
    pub async fn rollback(&self, reference: &ArtifactRef) -> Result<AdapterVersion> {
        let cx = self.context(None);
        let _cancel_on_drop = cx.cancel.clone().drop_guard();
        self.roll_back(reference, &cx).await.map_err(|e| e.into_adapter(reference))
    }

    /// Deletes one version (by its name or revision), or without one that which `reference` names, or all, if that is a
    /// moving ref: their files go, as far as no other artifact has them. What is loaded stays. The files at a path are
    /// their owner's; of them the copies go.
    ///
    /// What a version was is forgotten with it, and what its release has now is accepted; also if nothing is kept of it
    /// any more but that.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] around [`Error::NotFound`] if nothing is kept of it or known, and what
    /// [`crate::Store::delete`] says.
    pub async fn delete(&self, reference: &ArtifactRef, version: Option<&str>) -> Result<Deleted> {
        self.delete_versions(reference, version).await.map_err(|e| e.into_adapter(reference))
    }

    async fn hold_at(
        &self,
        reference: &ArtifactRef,
        version: Option<&str>,
        cx: &FetchContext,
    ) -> Result<AdapterVersion> {
        let versions = self.kept(reference).await?;
        let (of, policy) = (&versions.reference, &self.engine.inner.policy);
        policy.check_ref(of)?;
        let kept = match (version, versions.fixed()) {
            (Some(version), _) => versions.find(version),
            // What lies at a path now may be something else than what was kept of it.
            (None, _) if of.is_file() => None,
            (None, Some(revision)) if !versions.is_moving() => versions.find(revision),
            (None, _) => versions.current().and_then(|current| versions.find(&current.revision)),
        };
        let manifest = match (kept.filter(|kept| kept.whole), version) {
            (Some(kept), _) => kept.manifest.clone(),
            (None, Some(version)) if of.is_file() => return Err(not_kept(&versions, version)),
            (None, version) => {
                let source = self.source(of)?;
                let at = version.map_or(Ok(of.clone()), |version| source.at_revision(of, version))?;
                source.resolve(&at, Want::Adapter, cx).await?
            }
        };
        policy.check_manifest(&manifest)?;
        self.bring(of, manifest.clone(), cx).await?;
        self.select(of, &manifest, Some(HoldKind::Pinned)).await?;
        self.engine.inner.detach(reference, Some(&manifest.revision));
        self.version(of, &manifest.revision).await
    }

    async fn roll_back(&self, reference: &ArtifactRef, cx: &FetchContext) -> Result<AdapterVersion> {
        let versions = self.kept(reference).await?;
        self.engine.inner.policy.check_ref(&versions.reference)?;
        let kept = loop {
            let (store, of) = (self.store().clone(), versions.reference.clone());
            let before = blocking("store", move || store.version_before(&of, Want::Adapter)).await?.manifest;
            self.check_kept(&versions.reference, &before, cx).await?;
            let (store, of) = (self.store().clone(), versions.reference.clone());
            let rolled = move || store.roll_back(&of, Want::Adapter, &before.revision);
            // Another one is the version before, if somebody chose or deleted one meanwhile.
            if let Some(kept) = blocking("store", rolled).await? {
                break kept;
            }
        };
        self.engine.inner.detach(reference, Some(&kept.manifest.revision));
        self.version(reference, &kept.manifest.revision).await
    }

    /// Checks that the policy allows the kept version that `manifest` is, with what came out of its archives.
    async fn check_kept(&self, reference: &ArtifactRef, manifest: &Manifest, cx: &FetchContext) -> Result<()> {
        let inner = &self.engine.inner;
        inner.policy.check_manifest(manifest)?;
        let pin = self.pin_of(reference, manifest.clone())?;
        match inner.transfer.present(&pin.job(), cx).await? {
            Some(files) => inner.policy.check_unpacked(manifest, &files),
            None => Ok(()),
        }
    }

    async fn delete_versions(&self, reference: &ArtifactRef, version: Option<&str>) -> Result<Deleted> {
        let versions = self.kept(reference).await?;
        let (of, store) = (versions.reference.clone(), self.store().clone());
        let version = version.or_else(|| versions.fixed().filter(|_| !versions.is_moving())).map(str::to_owned);
        blocking("store", move || {
            let remembered = store.remembered(&of, Want::Adapter)?;
            let going = match version {
                Some(version) => {
                    let is_known = versions.find(&version).is_some() || remembered.contains(&version);
                    vec![Some(version.clone()).filter(|_| is_known).ok_or_else(|| not_kept(&versions, &version))?]
                }
                None => all_of(&versions, remembered),
            };
            if going.is_empty() {
                return Err(Error::not_found(&of, "no version of it is kept; nothing is deleted"));
            }
            let mut all = Deleted::default();
            for version in going {
                let deleted = match store.delete_kept(&of, Want::Adapter, &version) {
                    // It went with another.
                    Err(Error::NotFound { .. }) => continue,
                    deleted => deleted?,
                };
                all.artifacts += deleted.artifacts;
                all.files += deleted.files;
                all.bytes += deleted.bytes;
            }
            Ok(all)
        })
        .await
    }
}

/// All that is kept, and then what is only `remembered`.
fn all_of(versions: &Versions, remembered: BTreeSet<String>) -> Vec<String> {
    let current = versions.current().map(|current| current.revision.as_str());
    let mut all: Vec<_> = versions.kept.iter().map(|kept| kept.manifest.revision.clone()).collect();
    // One that is held may go with the last of the others only.
    all.sort_by_key(|revision| Some(revision.as_str()) == current);
    all.extend(remembered);
    all
}
