//! Repositories, releases and assets with the ids that GitHub has given them.

use std::collections::BTreeMap;

use super::{Asset, MakeLatest, Release, asset::Digest};
use crate::server::digest;

/// A repository that is served.
#[derive(Debug)]
pub(super) struct PublishedRepository {
    pub(super) id: u64,
    /// `owner/name`
    pub(super) name: String,
    pub(super) former_names: Vec<String>,
    pub(super) private: bool,
    pub(super) license: Option<String>,
    pub(super) default_branch: String,
    pub(super) releases: Vec<PublishedRelease>,
    pub(super) tags: BTreeMap<String, Tag>,
    /// The release that was made the latest.
    pub(super) latest: Option<u64>,
}

/// What a tag points to.
#[derive(Debug, Clone)]
pub(super) struct Tag {
    pub(super) commit: String,
    pub(super) annotated: bool,
}

/// A release with its id and times.
#[derive(Debug)]
pub(super) struct PublishedRelease {
    pub(super) id: u64,
    /// What it was made with, without its assets.
    pub(super) release: Release,
    pub(super) created_at: String,
    pub(super) published_at: Option<String>,
    pub(super) updated_at: String,
    pub(super) assets: Vec<PublishedAsset>,
}

/// An asset with its id and times.
#[derive(Debug)]
pub(super) struct PublishedAsset {
    pub(super) id: u64,
    pub(super) asset: Asset,
    pub(super) created_at: String,
    pub(super) updated_at: String,
}

impl Tag {
    /// The id of the git object that an annotated tag is.
    pub(super) fn object(&self, name: &str) -> Option<String> {
        self.annotated.then(|| digest::sha1_of(["tag", name, &self.commit]))
    }
}

impl PublishedRepository {
    /// Whether it has this name; GitHub does not heed case.
    pub(super) fn is_called(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    pub(super) fn was_called(&self, name: &str) -> bool {
        self.former_names.iter().any(|former| former.eq_ignore_ascii_case(name))
    }

    /// The release for `tag` that is published.
    pub(super) fn by_tag(&self, tag: &str) -> Option<&PublishedRelease> {
        self.releases.iter().find(|release| release.release.tag == tag && !release.release.draft)
    }

    /// The one that was made the latest if it still can be, else the one created last of those that can.
    pub(super) fn latest(&self) -> Option<&PublishedRelease> {
        let can_be = |release: &&PublishedRelease| !release.release.draft && !release.release.prerelease;
        let releases = || self.releases.iter().filter(can_be);
        releases()
            .find(|release| Some(release.id) == self.latest)
            .or_else(|| releases().max_by_key(|release| (&release.created_at, release.id)))
    }

    /// The asset with this id, and its release.
    pub(super) fn asset(&self, id: u64) -> Option<(&PublishedRelease, &PublishedAsset)> {
        let assets = |release: &'_ PublishedRelease| release.assets.iter().position(|asset| asset.id == id);
        self.releases.iter().find_map(|release| Some((release, &release.assets[assets(release)?])))
    }

    /// The commit that `reference` names: a tag, `tags/{tag}`, the default branch, or a whole id that some tag has.
    pub(super) fn commit(&self, reference: &str) -> Option<String> {
        let tag = self.tags.get(reference).or_else(|| self.tags.get(reference.strip_prefix("tags/")?));
        if let Some(tag) = tag {
            return Some(tag.commit.clone());
        }
        if reference.strip_prefix("heads/").unwrap_or(reference) == self.default_branch {
            return Some(self.head());
        }
        self.tags.values().find(|tag| tag.commit == reference).map(|tag| tag.commit.clone())
    }

    /// The commit of the default branch, which moves with each release.
    pub(super) fn head(&self) -> String {
        let releases: Vec<String> = self.releases.iter().map(|release| release.id.to_string()).collect();
        digest::sha1_of(["head"].into_iter().chain(releases.iter().map(String::as_str)))
    }

    /// Notes that the release with this id has just been published.
    pub(super) fn note_latest(&mut self, id: u64, make_latest: MakeLatest) {
        match make_latest {
            MakeLatest::True => self.latest = Some(id),
            // The one that is the latest may be so only by its date.
            MakeLatest::False => self.latest = self.latest_but(id),
            MakeLatest::Legacy => self.latest = None,
        }
    }

    fn latest_but(&self, id: u64) -> Option<u64> {
        let others = self.releases.iter().filter(|release| release.id != id);
        let can_be = others.filter(|release| !release.release.draft && !release.release.prerelease);
        self.latest
            .filter(|latest| *latest != id)
            .or_else(|| can_be.max_by_key(|release| (&release.created_at, release.id)).map(|release| release.id))
    }
}

impl PublishedAsset {
    pub(super) fn size(&self) -> u64 {
        if self.asset.uploading { 0 } else { self.asset.size.unwrap_or(self.asset.content.size()) }
    }

    pub(super) fn digest(&self) -> Option<String> {
        match &self.asset.digest {
            _ if self.asset.uploading => None,
            Digest::True => Some(format!("sha256:{}", self.asset.content.sha256())),
            Digest::Absent => None,
            Digest::Other(digest) => Some(digest.clone()),
        }
    }

    /// What the object store calls it.
    pub(super) fn object(&self) -> String {
        let hex = digest::sha1_of(["asset", &self.id.to_string()]);
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..32])
    }
}
