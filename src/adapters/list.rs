//! What is kept.

use std::time::SystemTime;

use llm_local_core::{ArtifactRef, Result, Want};
use llm_local_source_common::store::{HoldKind, Kept};

use super::Adapters;
use crate::engine::{Versions, is_of_one};

/// An adapter of which versions are kept.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct InstalledAdapter {
    /// A ref by which it was asked for. Refs that differ from it in their revision alone are of the same adapter.
    pub reference: ArtifactRef,
    /// Its versions, newest first.
    pub versions: Vec<AdapterVersion>,
    /// Why moving refs to it mean the current version, whatever is newer.
    pub hold: Option<HoldKind>,
}

/// A version of an adapter.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AdapterVersion {
    /// Its name for people, where it has one: a release's tag, or the branch or tag under which a source lists it.
    pub version: Option<String>,
    /// The immutable revision.
    pub revision: String,
    /// Whether all its files are on this machine.
    pub installed: bool,
    /// Whether it is what moving refs meant last.
    pub current: bool,
    /// Bytes on disk.
    pub bytes: u64,
    /// When it came.
    pub created: Option<SystemTime>,
    /// When it was last used.
    pub last_used: Option<SystemTime>,
}

impl AdapterVersion {
    /// The version that is kept.
    pub(super) fn kept(kept: &Kept, versions: &Versions) -> Self {
        let revision = kept.manifest.revision.clone();
        Self {
            version: kept.manifest.version.clone(),
            current: versions.current().is_some_and(|current| current.revision == revision),
            revision,
            installed: kept.whole,
            bytes: kept.bytes,
            created: Some(kept.created),
            last_used: Some(kept.last_used),
        }
    }

    /// A version that is not kept.
    pub(super) fn elsewhere(version: Option<String>, revision: String) -> Self {
        Self { version, revision, installed: false, current: false, bytes: 0, created: None, last_used: None }
    }

    /// The version as people name it.
    pub fn title(&self) -> &str {
        self.version.as_deref().unwrap_or(&self.revision)
    }
}

impl Adapters {
    /// The adapters that are kept, by ref. Files of this machine are among them once they were copied into the store.
    ///
    /// # Errors
    /// [`llm_local_core::Error::Io`].
    pub async fn list(&self) -> Result<Vec<InstalledAdapter>> {
        let store = self.store().clone();
        let listing = crate::blocking::blocking("store", move || store.list()).await?;
        let mut adapters = Vec::<InstalledAdapter>::new();
        for artifact in listing.artifacts.into_iter().filter(|artifact| artifact.want == Want::Adapter) {
            let reference = artifact.reference;
            if !adapters.iter().any(|known| is_of_one(&known.reference, &reference)) {
                let versions = self.kept(&reference).await?;
                let kept = versions.kept.iter().map(|kept| AdapterVersion::kept(kept, &versions)).collect();
                adapters.push(InstalledAdapter { reference, versions: kept, hold: versions.hold() });
            }
        }
        Ok(adapters)
    }
}
