//! The digests of a release's assets: GitHub's, else those of an asset that lists them.

use std::collections::{HashMap, hash_map::Entry};

use llm_local_core::{Digest, Error, Result};

use crate::{
    api::{Api, Asset, Release},
    refusal::Asked,
    sums,
};

/// Looks up digests in one release.
pub(crate) struct Digests<'a> {
    api: &'a Api,
    asked: &'a Asked,
    release: &'a Release,
    /// The lists that were fetched, by the ids of their assets.
    texts: HashMap<u64, String>,
}

impl<'a> Digests<'a> {
    pub(crate) fn new(api: &'a Api, asked: &'a Asked, release: &'a Release) -> Self {
        Self { api, asked, release, texts: HashMap::new() }
    }

    /// The digest of `asset`, if one is told.
    ///
    /// # Errors
    /// Those of the requests for lists; [`Error::DownloadFailed`], which may be tried again, for one that is still being
    /// uploaded; [`Error::IntegrityFailed`] if one tells two digests.
    pub(crate) async fn of(&mut self, asset: &Asset) -> Result<Option<Digest>> {
        if let Some(digest) = &asset.digest {
            match digest.parse() {
                Ok(digest) => return Ok(Some(digest)),
                Err(_) => {
                    tracing::warn!(asset = asset.name, digest, "GitHub tells a digest of a kind that is not known")
                }
            }
        }
        let (asked, release) = (self.asked, self.release);
        let names: Vec<_> = release.assets.iter().map(|a| a.name.as_str()).filter(|n| sums::is_sums(n)).collect();
        let lists = sums::of(&asset.name, &names);
        for name in &lists {
            let Some(list) = release.assets.iter().find(|a| a.name == *name) else { continue };
            list.check_uploaded(&asked.reference)?;
            let text = match self.texts.entry(list.id) {
                Entry::Occupied(text) => text.into_mut(),
                Entry::Vacant(text) => text.insert(self.api.sums(asked, list).await?),
            };
            match sums::digest(text, name, &asset.name) {
                Ok(None) => {}
                Ok(digest) => return Ok(digest),
                Err((one, other)) => {
                    return Err(Error::IntegrityFailed {
                        what: format!("`{name}` of {}", asked.reference),
                        expected: format!("one digest of `{}`", asset.name),
                        found: format!("{one} and {other}; ask the owner of the release which is right"),
                    });
                }
            }
        }
        if !lists.is_empty() {
            tracing::warn!(
                reference = asked.reference,
                asset = asset.name,
                lists = lists.join(", "),
                "the release lists digests, but tells none of this asset, or several; it is verified against what was first \
                 fetched alone"
            );
        }
        Ok(None)
    }
}
