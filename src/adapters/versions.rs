//! What there is at the source, beside what is kept.

use llm_local_core::{ArtifactRef, Error, FetchContext, Manifest, ManifestFile, Result, Revision, Want};
use llm_local_source_common::store::Kept;

use super::{AdapterVersion, Adapters};
use crate::engine::{Versions, could_not_ask, names};

impl Adapters {
    /// The versions that the source of `reference` has, newest first as it lists them, and then those that are kept and
    /// that it does not list. Of a source that lists none, what `reference` means now and what is kept; where the source
    /// cannot be asked, what is kept.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] around what the source says.
    pub async fn versions(&self, reference: &ArtifactRef) -> Result<Vec<AdapterVersion>> {
        self.all_versions(reference).await.map_err(|e| e.into_adapter(reference))
    }

    /// Whether `reference` means something else than what was used last: its source is asked. Of an adapter of which nothing
    /// is kept and nothing was used yet, this is so. A ref that names a version never means another, kept or not, whatever
    /// others are, and is asked for nonetheless.
    ///
    /// The files at a path are used where they lie, and no load notes what they were: they are compared with the last copy of
    /// them ([`Adapters::update`], [`Adapters::pin`]), and as long as there is none, this is so.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] around what the source says: [`Error::Offline`]; [`Error::IntegrityFailed`] if the
    /// bytes of a version are other ones now; [`Error::NotFound`] if it is not there any more, which says that the kept one
    /// stays usable.
    pub async fn is_update_available(&self, reference: &ArtifactRef) -> Result<bool> {
        self.is_newer(reference).await.map_err(|e| e.into_adapter(reference))
    }

    async fn all_versions(&self, reference: &ArtifactRef) -> Result<Vec<AdapterVersion>> {
        self.engine.inner.policy.check_ref(reference)?;
        let (source, versions, cx) = (self.source(reference)?, self.kept(reference).await?, self.context(None));
        let _cancel_on_drop = cx.cancel.clone().drop_guard();
        let listed = match source.revisions(reference, &cx).await {
            Ok(listed) => listed,
            Err(Error::Unsupported { .. }) => match source.resolve(&versions.reference, Want::Adapter, &cx).await {
                Ok(manifest) => vec![of_manifest(&manifest)],
                Err(error) if is_kept_enough(&error, &versions) => Vec::new(),
                Err(error) => return Err(error),
            },
            Err(error) if is_kept_enough(&error, &versions) => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(merged(listed, &versions))
    }

    async fn is_newer(&self, reference: &ArtifactRef) -> Result<bool> {
        let cx = self.context(None);
        let _cancel_on_drop = cx.cancel.clone().drop_guard();
        let versions = self.kept(reference).await?;
        let now = match self.ask(&versions, &cx).await {
            Err(Error::NotFound { what, reason }) => {
                let kept = versions.named_or_current().filter(|kept| kept.whole);
                let hint = kept.map(|kept| format!("; {} is kept and stays usable", title(&kept.manifest)));
                return Err(Error::NotFound { what, reason: reason + hint.as_deref().unwrap_or_default() });
            }
            now => now?,
        };
        match versions.named_or_current() {
            None if names(&versions.reference, now.version.as_deref(), &now.revision) => Ok(false),
            None => Ok(versions.current().is_none_or(|current| current.revision != now.revision)),
            Some(kept) => Ok(!is_same(&kept.manifest, &now)?),
        }
    }

    /// What the source says that the ref means, now and of itself: not what a cache has.
    pub(super) async fn ask(&self, versions: &Versions, cx: &FetchContext) -> Result<Manifest> {
        let (inner, reference) = (&self.engine.inner, &versions.reference);
        inner.policy.check_ref(reference)?;
        let source = self.source(reference)?;
        if cx.offline && !reference.is_file() {
            return Err(Error::Offline { what: format!("what {reference} means now") });
        }
        let manifest = source.resolve(reference, versions.want, cx).await?;
        // A source that shares the cache of another tool answers from it where its host cannot be reached. The list it has
        // from its host alone.
        if source.placement(&manifest)?.is_some() {
            match source.revisions(reference, cx).await {
                Ok(_) | Err(Error::Unsupported { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        inner.policy.check_manifest(&manifest)?;
        Ok(manifest)
    }
}

impl Versions {
    /// What is kept of the version that the ref names, or of the one that was used last if it names none.
    fn named_or_current(&self) -> Option<&Kept> {
        if self.is_moving() {
            return self.used_last();
        }
        self.fixed().and_then(|revision| self.find(revision))
    }
}

/// Whether `now` is what is kept as `kept`.
///
/// # Errors
/// [`Error::IntegrityFailed`] if it is the same version with other bytes.
pub(super) fn is_same(kept: &Manifest, now: &Manifest) -> Result<bool> {
    if kept.revision == now.revision {
        return Ok(true);
    }
    let (Some(version), true) = (&now.version, kept.version == now.version) else { return Ok(false) };
    let differs = |file: &ManifestFile| match now.file(&file.path) {
        Some(other) if other.size != file.size => Some(format!("{} bytes in `{}`", other.size, file.path)),
        Some(other) => match (file.digest, other.digest) {
            (Some(expected), Some(found)) if expected != found => Some(format!("{found} for `{}`", file.path)),
            _ => None,
        },
        None => Some(format!("no `{}`", file.path)),
    };
    match kept.files.iter().find_map(differs) {
        None => Ok(true),
        Some(found) => Err(Error::IntegrityFailed {
            what: format!("the version {version} of {}", now.reference),
            expected: "the bytes that were fetched under that name, which are kept and stay usable".into(),
            found: format!("{found}: its owner has changed it since; delete the kept version to take the new bytes"),
        }),
    }
}

/// The version as people name it.
pub(super) fn title(manifest: &Manifest) -> &str {
    manifest.version.as_ref().unwrap_or(&manifest.revision)
}

fn of_manifest(manifest: &Manifest) -> Revision {
    Revision::new(title(manifest), &manifest.revision)
}

fn is_kept_enough(error: &Error, versions: &Versions) -> bool {
    let enough = could_not_ask(error) && !versions.kept.is_empty();
    if enough {
        tracing::warn!(reference = %versions.reference, %error, "its source cannot be asked; only what is kept is listed");
    }
    enough
}

/// What is `listed`, and then what is kept and not listed.
fn merged(listed: Vec<Revision>, versions: &Versions) -> Vec<AdapterVersion> {
    let of = |listed: &Revision| versions.kept.iter().find(|kept| kept.manifest.revision == listed.pinned);
    let mut all = Vec::new();
    for listed in &listed {
        let name = Some(listed.name.clone()).filter(|name| *name != listed.pinned);
        all.push(match of(listed) {
            Some(kept) => AdapterVersion { version: name, ..AdapterVersion::kept(kept, versions) },
            None => AdapterVersion::elsewhere(name, listed.pinned.clone()),
        });
    }
    let unlisted = versions.kept.iter().filter(|kept| listed.iter().all(|l| l.pinned != kept.manifest.revision));
    all.extend(unlisted.map(|kept| AdapterVersion::kept(kept, versions)));
    all
}
