//! What the cache gives without a request.

use llm_local_core::{ArtifactRef, Error, Manifest, Result, Want};

use crate::{cache::RepoCache, cache::is_commit, choose::choose, reference::HubRef};

/// Files that a message names.
const LISTED: usize = 10;

/// The manifest of what the cache has whole for `reference`. A branch or tag is the commit that it was when it was last
/// asked for.
///
/// # Errors
/// [`Error::Offline`] that names what is missing; what else [`choose`] gives.
pub(crate) fn resolve(cache: &RepoCache, reference: &ArtifactRef, at: &HubRef, want: Want) -> Result<Manifest> {
    let offline = |what: String| Error::Offline { what };
    let commit = cache.commit(&at.revision).filter(|commit| cache.has_snapshot(commit));
    let Some(commit) = commit else { return Err(offline(reference.to_string())) };
    let files = match cache.tree(&commit) {
        Some(tree) => choose(reference, at, want, &tree.files())?,
        None => {
            let found = cache.found(&commit);
            match choose(reference, at, want, &found) {
                // Without a list, what is not there may be in the repository.
                Err(Error::NotFound { .. }) => {
                    let what = match (&at.gguf, RepoCache::has_weights(&found, at)) {
                        (Some(_), _) => "the GGUF file",
                        (None, true) => "what else is needed",
                        (None, false) => "the weights",
                    };
                    return Err(offline(format!("the cache has some files of {reference}; the rest ({what})")));
                }
                files => files?,
            }
        }
    };
    let missing = cache.missing(&commit, at, &files);
    if missing.is_empty() {
        return Manifest::new(reference.clone(), want, commit, files);
    }
    let mut names = missing.iter().take(LISTED).map(|m| format!("`{m}`")).collect::<Vec<_>>().join(", ");
    if let more @ 1.. = missing.len().saturating_sub(LISTED) {
        names += &format!(" and {more} more");
    }
    let (missing, all) = (missing.len(), files.len());
    Err(offline(format!("the cache has {} of {all} files of {reference}; the rest ({names})", all - missing)))
}

/// The manifest of a commit that is complete in the cache by its list of files, for which nothing needs to be asked. A
/// branch or tag is none, since it may have moved; nor is a commit without a list, of which more may be needed.
pub(crate) fn complete_commit(cache: &RepoCache, reference: &ArtifactRef, at: &HubRef, want: Want) -> Option<Manifest> {
    let known = is_commit(&at.revision) && cache.tree(&at.revision).is_some();
    known.then(|| resolve(cache, reference, at, want).ok()).flatten()
}
