//! What the cache gives without a request.

use llm_local_core::{ArtifactRef, Error, Manifest, ManifestFile, Result, Want};
use llm_local_weights::ShardIndex;

use crate::{
    cache::{RepoCache, is_commit},
    choose::{Choice, choose},
    reference::HubRef,
    tree::Tree,
};

/// Files that a message names.
const LISTED: usize = 10;

/// What the cache has whole.
pub(crate) struct Cached {
    /// Its manifest.
    pub(crate) manifest: Manifest,
    /// Whether the Hub would say the same: a commit was named, and its list of files is known. A branch or tag may have
    /// moved, and of a commit without a list more may be needed.
    pub(crate) is_final: bool,
}

/// What the cache has whole for `reference`. A branch or tag is the commit that it was when it was last asked for.
///
/// # Errors
/// [`Error::Offline`] that names what is missing; what else [`choose`] gives.
pub(crate) fn resolve(
    cache: &RepoCache,
    reference: &ArtifactRef,
    at: &HubRef,
    want: Want,
    any: bool,
) -> Result<Cached> {
    let offline = |what: String| Error::Offline { what };
    let commit = cache.commit(&at.revision).filter(|commit| cache.has_snapshot(commit));
    let Some(commit) = commit else { return Err(offline(reference.to_string())) };
    let tree = cache.tree(&commit);
    let files = match needed(cache, reference, at, (want, any), &commit, tree.as_ref())? {
        Needed::Files(files) => files,
        Needed::More(what) => {
            return Err(offline(format!("the cache has some files of {reference}; the rest ({what})")));
        }
    };
    let missing = cache.missing(&commit, at, &files);
    if missing.is_empty() {
        let is_final = is_commit(&at.revision) && tree.is_some();
        return Ok(Cached { manifest: Manifest::new(reference.clone(), want, commit, files)?, is_final });
    }
    let mut names = missing.iter().take(LISTED).map(|m| format!("`{m}`")).collect::<Vec<_>>().join(", ");
    if let more @ 1.. = missing.len().saturating_sub(LISTED) {
        names += &format!(" and {more} more");
    }
    let (missing, all) = (missing.len(), files.len());
    Err(offline(format!("the cache has {} of {all} files of {reference}; the rest ({names})", all - missing)))
}

/// What of a commit is needed, as far as the cache knows.
enum Needed {
    Files(Vec<ManifestFile>),
    /// More than that, which is not there.
    More(String),
}

fn needed(
    cache: &RepoCache,
    reference: &ArtifactRef,
    at: &HubRef,
    (want, any): (Want, bool),
    commit: &str,
    tree: Option<&Tree>,
) -> Result<Needed> {
    let choice = match tree {
        Some(tree) => choose(reference, at, want, any, &tree.files())?,
        None => {
            let found = cache.found(commit);
            match choose(reference, at, want, false, &found) {
                // Without a list, what is not there may be in the repository.
                Err(Error::NotFound { .. }) => {
                    let what = match (&at.gguf, RepoCache::has_weights(&found, at)) {
                        (Some(_), _) => "the GGUF file",
                        (None, true) => "what else is needed",
                        (None, false) => "the weights",
                    };
                    return Ok(Needed::More(what.to_owned()));
                }
                choice => choice?,
            }
        }
    };
    let indexed = match choice {
        Choice::Files(files) => return Ok(Needed::Files(files)),
        Choice::Indexed(indexed) => indexed,
    };
    match cache.index(commit, at, indexed.index()) {
        Some((path, _)) => indexed.by(&ShardIndex::read(&path)?).map(Needed::Files),
        None => Ok(Needed::More(format!("`{}`, and the weights that it names", at.in_repo(&indexed.index().path)))),
    }
}
