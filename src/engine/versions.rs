//! Which version a ref means, as far as what is kept can tell.
//!
//! - A ref that names a version that is kept is that one, without a request.
//! - A moving ref (`@latest`, none, a branch) is what its source says, unless it is held: pinned, or rolled back. `@latest`
//!   means the newest, of any source, also where there is a version that is called `latest`: no ref names that one.
//! - Where the source cannot be asked, it is what it was when it was used last.
//!
//! Sources that publish into the cache of another tool know its branches themselves, also offline; of them holds alone are
//! kept here.

use std::sync::Arc;

use llm_local_core::{ArtifactRef, ArtifactSource, Error, Manifest, Result, Want, lora::AdapterFormat};
use llm_local_source_common::{
    location::{Location, split},
    store::{Artifact, HoldKind, Kept, Selected, Selection, Store},
};

use super::Pin;
use crate::{adapters::absolute, blocking::blocking, lora, plan::PinnedBy};

/// The revision that means the newest, in refs of any source.
pub(super) const LATEST: &str = "latest";

/// What is kept of what a ref names, and which of it was chosen.
#[derive(Debug)]
pub(crate) struct Versions {
    /// The ref, with the whole path of a file.
    pub(crate) reference: ArtifactRef,
    pub(crate) want: Want,
    /// Newest first.
    pub(crate) kept: Vec<Kept>,
    pub(crate) selection: Selection,
}

impl Versions {
    /// What `store` has of `reference`.
    ///
    /// # Errors
    /// [`Error::Io`]; those of a path.
    pub(crate) async fn of(store: &Store, reference: &ArtifactRef, want: Want) -> Result<Self> {
        let (store, reference) = (store.clone(), absolute(reference)?);
        blocking("store", move || {
            let kept = store.kept(&reference, want)?;
            let selection = store.selection(&reference, want)?;
            Ok(Self { reference, want, kept, selection })
        })
        .await
    }

    /// The version that the ref names, if it is kept and whole, and `source` leaves it to us.
    pub(crate) fn named(&self, source: &dyn ArtifactSource) -> Result<Option<&Kept>> {
        match self.fixed().and_then(|revision| self.find(revision)) {
            Some(kept) if kept.whole && source.placement(&kept.manifest)?.is_none() => Ok(Some(kept)),
            _ => Ok(None),
        }
    }

    /// The revision that the ref asks for, if that can be the name of a version.
    pub(crate) fn fixed(&self) -> Option<&str> {
        fixed(&self.reference)
    }

    /// What is kept at `revision`, pinned or by its name. A name means what it meant first, unless files of that are gone
    /// and another of the name is whole: they are of the same bytes, for others would not have been taken.
    pub(crate) fn find(&self, revision: &str) -> Option<&Kept> {
        let at = self.kept.iter().find(|kept| kept.manifest.revision == revision);
        let named = || self.kept.iter().rev().filter(|kept| kept.manifest.version.as_deref() == Some(revision));
        at.or_else(|| named().find(|kept| kept.whole).or_else(|| named().next()))
    }

    /// The version that was chosen last, if one was.
    pub(crate) fn current(&self) -> Option<&Selected> {
        self.selection.current()
    }

    /// Why that one stays chosen, whatever is newer.
    pub(crate) fn hold(&self) -> Option<HoldKind> {
        self.selection.hold
    }

    /// [`Versions::current`], if it is kept and whole.
    pub(crate) fn current_kept(&self) -> Option<&Kept> {
        let current = self.current()?;
        self.kept.iter().find(|kept| kept.whole && kept.manifest.revision == current.revision)
    }

    /// What is kept of the version that was chosen last, or of the one that was used last if none was: a ref that names a
    /// version chooses none.
    pub(crate) fn used_last(&self) -> Option<&Kept> {
        match self.current() {
            Some(current) => self.find(&current.revision),
            None => by_use(&self.kept).first().copied(),
        }
    }

    /// Whether the ref is known to mean the newest of something, before its source is asked.
    pub(crate) fn is_moving(&self) -> bool {
        match self.fixed() {
            None => true,
            Some(revision) => self.find(revision).is_none() && self.was_moving(revision),
        }
    }

    /// Whether something was fetched by `revision` that has another name.
    fn was_moving(&self, revision: &str) -> bool {
        let mut kept = self.kept.iter().map(|kept| &kept.manifest);
        kept.any(|m| asked(&m.reference) == Some(revision))
    }
}

/// Those of `kept` that are whole, the one that was used last first.
fn by_use(kept: &[Kept]) -> Vec<&Kept> {
    let mut whole: Vec<_> = kept.iter().filter(|kept| kept.whole).collect();
    // Of one moment the newest comes first, as it does in `kept`: a clock may stand still.
    whole.sort_by_key(|kept| std::cmp::Reverse(kept.last_used));
    whole
}

/// Whether what `store` has of `kept` can be used, as far as that can be told without what it is used with. That it was
/// downloaded says nothing of that.
fn is_usable(store: &Store, kept: &Manifest, formats: &[Arc<dyn AdapterFormat>]) -> Result<bool> {
    if kept.want == Want::Model {
        return Ok(true);
    }
    let is_it = |artifact: &Artifact| {
        artifact.want == kept.want
            && artifact.revision == kept.revision
            && artifact.reference == kept.reference
            && artifact.damaged.is_empty()
    };
    let artifact = store.list()?.artifacts.into_iter().find(is_it);
    Ok(artifact.is_some_and(|artifact| {
        let files = artifact.files.into_iter().collect();
        let read = lora::check_readable(&kept.reference, &files, formats);
        if let Err(error) = &read {
            tracing::debug!(reference = %kept.reference, revision = kept.revision, %error, "it is kept, and no adapter");
        }
        read.is_ok()
    }))
}

/// `seen`, what was selected before `next` is to be. Nothing is noted of the use of a version by its name, so where
/// nothing was selected, the version that was used last is now, of those that can be used: what comes first can be rolled
/// back, too.
///
/// # Errors
/// Those of [`Store::select_if`].
pub(crate) fn with_used_last(
    store: &Store,
    next: &Manifest,
    of: &ArtifactRef,
    seen: Selection,
    formats: &[Arc<dyn AdapterFormat>],
) -> Result<Selection> {
    let want = next.want;
    if !seen.history.is_empty() {
        return Ok(seen);
    }
    let kept = store.kept(of, want)?;
    let mut before = by_use(&kept).into_iter().filter(|kept| kept.manifest.revision != next.revision);
    let last = loop {
        match before.next() {
            Some(kept) if is_usable(store, &kept.manifest, formats)? => break kept,
            Some(_) => {}
            None => return Ok(seen),
        }
    };
    store.select_if(of, want, &last.manifest, None, &seen)?;
    let now = store.selection(of, want)?;
    let is_last = now.hold.is_none() && now.current().is_some_and(|current| current.revision == last.manifest.revision);
    // Who chose something meanwhile is not overruled.
    Ok(if is_last { now } else { seen })
}

/// Whether `reference` names the version called `version`, or pinned to `revision`, and can mean no other.
pub(crate) fn names(reference: &ArtifactRef, version: Option<&str>, revision: &str) -> bool {
    fixed(reference).is_some_and(|asked| Some(asked) == version || asked == revision)
}

/// Whether `one` and `other` differ in their revision at most. Paths are of one if they are from the root, wherever the
/// current folder is.
pub(crate) fn is_of_one(one: &ArtifactRef, other: &ArtifactRef) -> bool {
    let whole = |reference| absolute(reference).unwrap_or_else(|_| ArtifactRef::clone(reference));
    let (one, other) = (whole(one), whole(other));
    one.fragment() == other.fragment() && Location::of(&one) == Location::of(&other)
}

/// The revision that `reference` asks for, without the part of the artifact that may stand behind it.
pub(super) fn asked(reference: &ArtifactRef) -> Option<&str> {
    reference.revision().map(|revision| split(revision).0)
}

/// The revision that `reference` asks for, if that can be the name of a version.
fn fixed(reference: &ArtifactRef) -> Option<&str> {
    asked(reference).filter(|revision| *revision != LATEST)
}

/// Whether what a source says is that it could not be asked.
pub(crate) fn could_not_ask(error: &Error) -> bool {
    match error {
        Error::Offline { .. } | Error::RateLimited { .. } => true,
        Error::DownloadFailed { retryable, .. } => *retryable,
        _ => false,
    }
}

impl super::Inner {
    /// Notes that the ref of `pin` means this version now, if it is one that may mean another tomorrow and was fetched.
    /// To use what was fetched needs no such note, so that it cannot be written is logged and no error.
    pub(super) async fn note_selected(&self, pin: &Pin) {
        let Pin { reference, manifest, by, seen, .. } = pin;
        let is_named = names(reference, manifest.version.as_deref(), &manifest.revision);
        if *by != PinnedBy::Source || is_named || reference.is_file() || manifest.files.is_empty() {
            return;
        }
        if let Err(error) = self.select_if_new(pin.source.as_ref(), manifest, seen.clone()).await {
            tracing::warn!(%reference, %error, "which version it means is not noted: it cannot be rolled back, nor used offline");
        }
    }

    /// Selects `manifest`, unless another was selected since the selection was `seen`.
    async fn select_if_new(&self, source: &dyn ArtifactSource, manifest: &Manifest, seen: Selection) -> Result<()> {
        if manifest.want != Want::Adapter && source.placement(manifest)?.is_some() {
            return Ok(());
        }
        let (store, manifest) = (self.transfer.store().clone(), manifest.clone());
        let formats = self.registry.adapter_formats()?;
        blocking("store", move || {
            let (reference, want) = (&manifest.reference, manifest.want);
            let is_current = seen.current().is_some_and(|current| current.revision == manifest.revision);
            // Of files that are all their owner's nothing is kept.
            let is_kept = || Ok(store.kept(reference, want)?.iter().any(|k| k.manifest.revision == manifest.revision));
            if is_current || seen.hold.is_some() || !is_kept()? {
                return Ok(());
            }
            let seen = with_used_last(&store, &manifest, reference, seen, &formats)?;
            store.select_if(reference, want, &manifest, None, &seen).map(drop)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ref_names_a_version_by_its_name_or_its_revision() {
        let names = |text: &str| names(&text.parse().unwrap(), Some("v1"), "c0ffee");
        assert!(names("github:o/r@v1") && names("hf:o/r@c0ffee") && names("hf:o/r@c0ffee:sub"));
        assert!(!super::names(&"github:o/r@latest".parse().unwrap(), Some("latest"), "7~1"));
        assert!(!names("github:o/r") && !names("github:o/r@latest") && !names("github:o/r@v"));
    }

    fn of_one(one: &str, other: &str) -> bool {
        is_of_one(&one.parse().unwrap(), &other.parse().unwrap())
    }

    #[test]
    fn refs_that_differ_in_their_revision_alone_are_of_one_adapter() {
        let whole = std::env::current_dir().unwrap().join("x").display().to_string();
        for (one, other) in [
            ("github:o/r", "github:o/r@v1"),
            ("hf:o/r@main:sub", "hf:o/r@c0ffee:sub"),
            // However the part is written.
            ("hf:o/r:sub@x", "hf:o/r@x:sub"),
            ("hf:o/r:sub", "hf:o/r@main:sub"),
            ("hf:o/r:a/b@x#m.gguf", "hf:o/r@y:a/b#m.gguf"),
            ("./x", "x"),
            ("./x/", &whole),
        ] {
            assert!(of_one(one, other) && of_one(other, one), "{one} {other}");
        }
        for (one, other) in [
            ("github:o/r", "hf:o/r"),
            ("github:o/r", "github:o/s"),
            ("github:o/r#a", "github:o/r#b"),
            ("github:o/r#a", "github:o/r"),
            ("hf:o/r@main:sub", "hf:o/r@main"),
            ("hf:o/r:sub", "hf:o/r"),
            ("hf:o/r:sub@x:other", "hf:o/r@x:other"),
            ("./x", "./y"),
            ("/a:b", "/a:c"),
        ] {
            assert!(!of_one(one, other) && !of_one(other, one), "{one} {other}");
        }
    }

    #[test]
    fn a_source_that_refuses_was_asked() {
        assert!(could_not_ask(&Error::Offline { what: "x".into() }));
        assert!(could_not_ask(&Error::RateLimited { what: "x".into(), retry_after: None }));
        let failed =
            |retryable| Error::DownloadFailed { what: "x".into(), reason: "y".into(), retryable, source: None };
        assert!(could_not_ask(&failed(true)) && !could_not_ask(&failed(false)));
        assert!(!could_not_ask(&Error::not_found("x", "y")) && !could_not_ask(&Error::not_allowed("x", "y")));
    }
}
