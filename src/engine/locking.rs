//! Specs locked to bytes.

use std::path::{Path, PathBuf};

use llm_local_core::{
    ArtifactRef, Digest, Error, FetchContext, LockedArtifact, Manifest, ModelSpec, Result, SpecLock, Want,
};
use llm_local_source_common::transfer::{Files, Job};

use super::{Engine, Inner, Pin, seen::Seen};
use crate::{
    blocking::{Wanted, blocking, blocking_while_wanted},
    content,
};

impl Engine {
    /// What `spec` means now, to the byte: its base, the tokenizer of it, and its adapters, each with the immutable revision
    /// and the digest of every file. [`ModelSpec::with_lock`] holds a spec to it, and [`crate::lock`] makes a file of it.
    ///
    /// Files whose source tells no digest are fetched, if they are not here, and read. A load of a spec that has a lock reads
    /// every file of it once more than other loads, whether it was fetched now or before, to hold it to its digest: that
    /// takes about as long as loading, and what has changed meanwhile is an error. What comes out of an archive is held to
    /// its digest when it was unpacked.
    ///
    /// # Errors
    /// Those of resolving, as [`Engine::plan`] has them, and of the transfer; [`Error::Io`].
    pub async fn lock(&self, spec: &ModelSpec) -> Result<SpecLock> {
        let cx = self.context(None);
        let _cancel_on_drop = cx.cancel.clone().drop_guard();
        let mut artifacts = Vec::new();
        for pin in self.inner.resolve(spec, &cx).await?.pins() {
            let (locked, reference) = (self.inner.locked(pin, &cx).await, &pin.reference);
            let is_base = artifacts.is_empty();
            artifacts.push(if is_base { locked? } else { locked.map_err(|e| e.into_adapter(reference))? });
        }
        Ok(SpecLock::new(artifacts))
    }
}

impl Inner {
    async fn locked(&self, pin: &Pin, cx: &FetchContext) -> Result<LockedArtifact> {
        let mut manifest = pin.manifest.clone();
        if manifest.files.iter().any(|file| file.digest.is_none()) {
            let files = self.fetch(pin, cx).await?;
            // An archive is gone once it is unpacked; the store remembers what it was.
            let (store, of) = (self.transfer.store().clone(), pin.manifest.clone());
            let known = blocking("store", move || store.digests(&of)).await?;
            for file in manifest.files.iter_mut().filter(|file| file.digest.is_none()) {
                file.digest = match (known.get(&file.path), files.get(&file.path)) {
                    (Some(digest), _) => Some(*digest),
                    (None, Some(path)) => Some(hash(path.clone()).await?),
                    (None, None) => None,
                };
            }
        }
        manifest.reference = pin.reference.clone();
        LockedArtifact::new(&manifest)
    }

    /// Reads those `files` of `jobs` that are here and holds them to what `spec` was locked to, if it was: what was here
    /// before, in whatever cache or folder, no transfer has looked at.
    ///
    /// # Errors
    /// [`Error::IntegrityFailed`] that names the file and both digests, within [`Error::AdapterMergeFailed`] for one of an
    /// adapter; [`Error::Io`].
    pub(super) async fn check_locked(&self, spec: &ModelSpec, jobs: &[Job], files: &[Option<Files>]) -> Result<Proven> {
        let mut proven = Proven::default();
        if spec.lock.is_none() {
            return Ok(proven);
        }
        for (job, files) in jobs.iter().zip(files) {
            let (manifest, Some(files)) = (job.manifest.clone(), files.clone()) else { continue };
            let checked = blocking_while_wanted("digest", move |wanted| Proven::of(&manifest, &files, wanted)).await;
            let checked = match job.manifest.want {
                Want::Adapter => checked.map_err(|e| e.into_adapter(&job.manifest.reference)),
                _ => checked,
            };
            proven.0.extend(checked?.0);
        }
        Ok(proven)
    }
}

/// Files that were read and are what they were locked to.
#[derive(Debug, Default)]
pub(super) struct Proven(Vec<Proof>);

/// A file that was read, and what it was before.
#[derive(Debug)]
struct Proof {
    path: PathBuf,
    seen: Seen,
    /// The adapter that it is of, if it is of one.
    adapter: Option<ArtifactRef>,
}

impl Proven {
    fn of(manifest: &Manifest, files: &Files, wanted: &Wanted) -> Result<Self> {
        let mut proven = Self::default();
        for (name, path) in files {
            let seen = Seen::now(path)?;
            let told = manifest.file(name).and_then(|file| file.digest);
            let Some(expected) = told.or_else(|| named(path)) else {
                return Err(Error::IntegrityFailed {
                    what: format!("{name} of {} ({})", manifest.reference, path.display()),
                    expected: "a digest that it was locked to".into(),
                    found: "none; lock the spec anew".into(),
                });
            };
            let found = content::hash_like(path, &expected, wanted)?;
            if found != expected {
                return Err(Error::IntegrityFailed {
                    what: format!("{name} of {} ({})", manifest.reference, path.display()),
                    expected: format!("{expected}, as it was locked"),
                    found: format!("{found}; {}", remedy(manifest)),
                });
            }
            let adapter = Some(&manifest.reference).filter(|_| manifest.want == Want::Adapter).cloned();
            proven.0.push(Proof { path: path.clone(), seen, adapter });
        }
        Ok(proven)
    }

    /// These files too.
    pub(super) fn and(mut self, more: Self) -> Self {
        self.0.extend(more.0);
        self
    }

    /// Checks that each path still has the file that was read: to be called once all that is used of it was opened.
    ///
    /// # Errors
    /// [`Error::IntegrityFailed`] that names the file; [`Error::Io`]; within [`Error::AdapterMergeFailed`] for one of an
    /// adapter.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        self.0.iter().try_for_each(|proof| match (proof.check_unchanged(), &proof.adapter) {
            (Err(error), Some(adapter)) => Err(error.into_adapter(adapter)),
            (checked, _) => checked,
        })
    }
}

impl Proof {
    fn check_unchanged(&self) -> Result<()> {
        if Seen::now(&self.path)? == self.seen {
            return Ok(());
        }
        Err(Error::IntegrityFailed {
            what: self.path.display().to_string(),
            expected: "the file that was held to its lock".into(),
            found: "another, or one that was written meanwhile; load it again".into(),
        })
    }
}

/// The digest in the name of a content of the store: what comes out of an archive is kept under its own.
fn named(path: &Path) -> Option<Digest> {
    let (kind, hex) = path.file_name()?.to_str()?.rsplit_once('-')?;
    format!("{kind}:{hex}").parse().ok()
}

/// What to do about a file that is not what it was.
fn remedy(manifest: &Manifest) -> &'static str {
    if manifest.reference.is_file() {
        "put back the file that was locked, or lock the spec anew"
    } else {
        "it was changed or damaged since it was fetched: delete it from the cache, and it is fetched anew"
    }
}

async fn hash(path: PathBuf) -> Result<Digest> {
    blocking_while_wanted("digest", move |wanted| Ok(content::hash(&path, wanted)?.1)).await
}
