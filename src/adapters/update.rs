//! Newer versions.

use std::sync::Arc;

use llm_local_core::{ArtifactRef, ArtifactSource, Error, FetchContext, Manifest, ProgressHandler, Result, Want};
use llm_local_source_common::store::{HoldKind, Selection};

use super::{AdapterVersion, Adapters, Copies, versions::is_same};
use crate::{
    blocking::blocking,
    engine::{Pin, Versions, names, with_used_last},
    plan::PinnedBy,
};

impl Adapters {
    /// Makes a moving ref mean what its source says now: fetches that version, verifies that it is an adapter, and notes it
    /// as the current one; the version before, which can be gone back to, is then the one that was, or if none was, the one
    /// that was used last. A [rollback](Adapters::rollback) is over then. Of a ref that names a version, that version is
    /// fetched, if it is not here. The files at a path are copied into the store, so that what they are now can be gone
    /// back to.
    ///
    /// A model that is loaded keeps the version it has; the next load of its spec loads anew.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] around [`Error::Unsupported`] for a moving ref to an adapter that is pinned, what its source says, and
    /// those of the transfer; what the files are if they are no adapter. The version before stays the current one.
    pub async fn update(
        &self,
        reference: &ArtifactRef,
        progress: Option<Arc<dyn ProgressHandler>>,
    ) -> Result<AdapterVersion> {
        let cx = self.context(progress);
        let _cancel_on_drop = cx.cancel.clone().drop_guard();
        self.update_to_newest(reference, &cx).await.map_err(|e| e.into_adapter(reference))
    }

    async fn update_to_newest(&self, reference: &ArtifactRef, cx: &FetchContext) -> Result<AdapterVersion> {
        self.engine.inner.policy.check_ref(reference)?;
        let versions = self.kept(reference).await?;
        // A ref that names a version is never what is pinned; that another one moves is known once its source was asked.
        if versions.is_moving() {
            check_unpinned(&versions)?;
        }
        if let Some(kept) = versions.named(&*self.source(reference)?)? {
            let manifest = kept.manifest.clone();
            self.engine.inner.policy.check_manifest(&manifest)?;
            self.bring(&versions.reference, manifest.clone(), cx).await?;
            return self.version(reference, &manifest.revision).await;
        }
        let manifest = self.ask(&versions, cx).await?;
        let is_named = names(reference, manifest.version.as_deref(), &manifest.revision);
        if !is_named {
            check_unpinned(&versions)?;
        }
        if let Some(kept) =
            versions.find(&manifest.revision).or_else(|| versions.find(super::versions::title(&manifest)))
        {
            // What is kept of a version is held against what it is now.
            is_same(&kept.manifest, &manifest)?;
        }
        self.bring(&versions.reference, manifest.clone(), cx).await?;
        if !is_named {
            self.follow(&versions, &manifest).await?;
            self.engine.inner.detach(reference, Some(&manifest.revision));
        }
        self.version(reference, &manifest.revision).await
    }

    /// Makes `manifest` present, and reads it: what is no adapter must not become what a ref means.
    pub(super) async fn bring(&self, reference: &ArtifactRef, manifest: Manifest, cx: &FetchContext) -> Result<()> {
        let pin = self.pin_of(reference, manifest)?;
        let files = self.engine.inner.fetch(&pin, cx).await?;
        self.engine.inner.check_adapter(&pin.reference, files).await
    }

    /// `manifest`, to be had: the files at a path as copies.
    pub(super) fn pin_of(&self, reference: &ArtifactRef, manifest: Manifest) -> Result<Pin> {
        let source: Arc<dyn ArtifactSource> = self.source(reference)?;
        let is_copy = reference.is_file();
        let source: Arc<dyn ArtifactSource> = if is_copy { Arc::new(Copies(source)) } else { source };
        let (reference, by, seen) = (reference.clone(), PinnedBy::Source, Selection::default());
        Ok(Pin { reference, source, manifest, by, is_copy, seen })
    }

    /// Makes moving refs mean the version that `manifest` is.
    pub(super) async fn select(
        &self,
        reference: &ArtifactRef,
        manifest: &Manifest,
        hold: Option<HoldKind>,
    ) -> Result<()> {
        let (store, reference, manifest) = (self.store().clone(), reference.clone(), manifest.clone());
        blocking("store", move || store.select(&reference, Want::Adapter, &manifest, hold)).await
    }

    /// Makes moving refs mean the version that `manifest` is, unless they were held or let go since `before`.
    async fn follow(&self, before: &Versions, manifest: &Manifest) -> Result<()> {
        let (of, store, seen) = (before.reference.clone(), self.store().clone(), before.selection.clone());
        let (manifest, formats) = (manifest.clone(), self.engine.inner.registry.adapter_formats()?);
        blocking("store", move || {
            loop {
                let now = store.selection(&of, Want::Adapter)?;
                if now.hold.is_none() && now.current().is_some_and(|current| current.revision == manifest.revision) {
                    return Ok(());
                }
                // What a load noted meanwhile is overruled; what a user chose is not.
                if (now.hold.is_some() || seen.hold.is_some()) && !now.is_as(&seen) {
                    return Err(chosen_meanwhile(&of, &now));
                }
                let now = with_used_last(&store, &manifest, &of, now, &formats)?;
                if store.select_if(&of, Want::Adapter, &manifest, None, &now)? {
                    return Ok(());
                }
            }
        })
        .await
    }

    /// The kept version at `revision`.
    pub(super) async fn version(&self, reference: &ArtifactRef, revision: &str) -> Result<AdapterVersion> {
        let versions = self.kept(reference).await?;
        let kept = versions.find(revision).ok_or_else(|| not_kept(&versions, revision))?;
        Ok(AdapterVersion::kept(kept, &versions))
    }
}

/// # Errors
/// [`Error::Unsupported`] that says what to do, if the adapter is pinned.
fn check_unpinned(versions: &Versions) -> Result<()> {
    match (versions.hold(), versions.current()) {
        (Some(HoldKind::Pinned), Some(current)) => {
            let reason = format!("it is pinned to {}; unpin it first", current.title());
            Err(Error::unsupported(format!("updating {}", versions.reference), reason))
        }
        _ => Ok(()),
    }
}

/// What to say of an update during which somebody chose a version.
fn chosen_meanwhile(reference: &ArtifactRef, now: &Selection) -> Error {
    let title = now.current().map_or("none", |current| current.title());
    let reason = match now.hold {
        Some(HoldKind::Pinned) => format!("it was pinned to {title} meanwhile; unpin it first"),
        Some(_) => format!("it was rolled back to {title} meanwhile; update it again if that is to end"),
        None => format!("it was let go or updated to {title} meanwhile; update it again if there is a newer one"),
    };
    Error::unsupported(format!("updating {reference}"), reason)
}

/// What to say of a version that is not kept.
pub(super) fn not_kept(versions: &Versions, version: &str) -> Error {
    let kept: Vec<_> = versions.kept.iter().map(|kept| super::versions::title(&kept.manifest)).collect();
    let reason = match kept.is_empty() {
        true => "no version is kept; update or pull it first".to_owned(),
        false => format!("kept are {}", kept.join(", ")),
    };
    Error::not_found(format!("the version `{version}` of {}", versions.reference), reason)
}
