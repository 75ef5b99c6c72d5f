//! What is served, and how it changes.

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    Asset, Release, Repository,
    published::{PublishedAsset, PublishedRelease, PublishedRepository, Tag},
};
use crate::server::digest;

/// The first of January 2024.
const LONG_AGO: i64 = 1_704_067_200;
/// Ids begin where those of the real one would be taken for 32-bit numbers only by mistake.
const FIRST_ID: u64 = 5_000_000_001;

/// All repositories.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) repositories: Vec<PublishedRepository>,
    ids: u64,
    changes: i64,
}

/// Repositories.
impl State {
    /// Adds a repository, in the place of the one with its name.
    pub(super) fn create(&mut self, repository: Repository) {
        self.remove(&repository.name);
        let id = self.id();
        self.repositories.push(PublishedRepository {
            id,
            name: repository.name.clone(),
            former_names: repository.former_names,
            private: repository.private,
            license: repository.license,
            default_branch: repository.default_branch,
            releases: Vec::new(),
            tags: Default::default(),
            latest: None,
        });
        for release in repository.releases {
            self.publish(&repository.name, release);
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.repositories.retain(|repository| !repository.is_called(name));
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) {
        let repository = self.repository(from);
        let former = std::mem::replace(&mut repository.name, to.to_owned());
        repository.former_names.retain(|name| !name.eq_ignore_ascii_case(to));
        repository.former_names.push(former);
    }

    /// # Panics
    /// If there is none of that name.
    pub(super) fn repository(&mut self, name: &str) -> &mut PublishedRepository {
        let found = self.repositories.iter_mut().find(|repository| repository.is_called(name));
        found.unwrap_or_else(|| panic!("there is no repository {name}"))
    }
}

/// Releases.
impl State {
    /// Adds a release, in the place of one with its tag; a draft only in the place of a draft.
    pub(super) fn publish(&mut self, name: &str, mut release: Release) -> u64 {
        let (id, now) = (self.id(), self.now());
        let assets = std::mem::take(&mut release.assets);
        let assets = assets.into_iter().map(|asset| self.published_asset(asset)).collect();
        let repository = self.repository(name);
        let before = repository.releases.len();
        repository.releases.retain(|known| (&known.release.tag, known.release.draft) != (&release.tag, release.draft));
        let replaces = repository.releases.len() < before;
        let created_at = release.created_at.clone().unwrap_or_else(|| now.clone());
        repository.releases.push(PublishedRelease {
            id,
            release,
            created_at,
            published_at: None,
            updated_at: now.clone(),
            assets,
        });
        settle(repository, id, replaces, &now);
        id
    }

    /// Changes the release for `tag`; assets that `change` adds are uploaded.
    pub(super) fn edit(&mut self, name: &str, tag: &str, change: impl FnOnce(Release) -> Release) {
        let now = self.now();
        let published = self.release(name, tag);
        let (id, was_draft) = (published.id, published.release.draft);
        let mut release = change(published.release.clone());
        let assets = std::mem::take(&mut release.assets);
        let tag = release.tag.clone();
        published.created_at = release.created_at.clone().unwrap_or_else(|| published.created_at.clone());
        published.updated_at = now.clone();
        let moves = release.commit != published.release.commit;
        let retagged = release.tag != published.release.tag;
        published.release = release;
        let draft = published.release.draft;
        if draft {
            published.published_at = None;
        }
        if was_draft && !draft || moves || retagged {
            settle(self.repository(name), id, moves, &now);
        }
        for asset in assets {
            self.upload(name, &tag, asset);
        }
    }

    pub(super) fn delete_release(&mut self, name: &str, tag: &str) {
        let id = self.release(name, tag).id;
        self.repository(name).releases.retain(|release| release.id != id);
    }

    /// Takes a tag away; its release becomes a draft.
    pub(super) fn delete_tag(&mut self, name: &str, tag: &str) {
        let repository = self.repository(name);
        assert!(repository.tags.remove(tag).is_some(), "{name} has no tag {tag}");
        for release in repository.releases.iter_mut().filter(|release| release.release.tag == tag) {
            release.release.draft = true;
            release.published_at = None;
        }
    }

    pub(super) fn move_tag(&mut self, name: &str, tag: &str, commit: &str) {
        let found = self.repository(name).tags.get_mut(tag);
        found.unwrap_or_else(|| panic!("{name} has no tag {tag}")).commit = commit.to_owned();
    }

    /// The published release for `tag`, else the newest draft.
    ///
    /// # Panics
    /// If there is none.
    pub(super) fn release(&mut self, name: &str, tag: &str) -> &mut PublishedRelease {
        let releases = self.repository(name).releases.iter_mut().filter(|release| release.release.tag == tag);
        let found = releases.max_by_key(|release| (!release.release.draft, release.id));
        found.unwrap_or_else(|| panic!("{name} has no release {tag}"))
    }
}

/// Assets.
impl State {
    /// Adds an asset, in the place of one of its name.
    pub(super) fn upload(&mut self, name: &str, tag: &str, asset: Asset) -> u64 {
        let asset = self.published_asset(asset);
        let (id, now) = (asset.id, asset.created_at.clone());
        let release = self.release(name, tag);
        release.assets.retain(|known| known.asset.name != asset.asset.name);
        release.assets.push(asset);
        release.updated_at = now;
        id
    }

    pub(super) fn finish_upload(&mut self, name: &str, tag: &str, asset: &str) {
        let now = self.now();
        let found = self.asset(name, tag, asset);
        found.asset.uploading = false;
        found.updated_at = now;
    }

    pub(super) fn delete_asset(&mut self, name: &str, tag: &str, asset: &str) {
        let id = self.asset(name, tag, asset).id;
        self.release(name, tag).assets.retain(|known| known.id != id);
    }

    /// # Panics
    /// If there is none of that name.
    pub(super) fn asset(&mut self, name: &str, tag: &str, asset: &str) -> &mut PublishedAsset {
        let found = self.release(name, tag).assets.iter_mut().find(|known| known.asset.name == asset);
        found.unwrap_or_else(|| panic!("the release {tag} of {name} has no asset {asset}"))
    }

    fn published_asset(&mut self, asset: Asset) -> PublishedAsset {
        let now = self.now();
        PublishedAsset { id: self.id(), asset, created_at: now.clone(), updated_at: now }
    }

    fn id(&mut self) -> u64 {
        self.ids += 1;
        FIRST_ID + self.ids
    }

    /// A time after all that were given before.
    fn now(&mut self) -> String {
        self.changes += 1;
        let time = OffsetDateTime::from_unix_timestamp(LONG_AGO + 60 * self.changes).expect("a time of this century");
        time.format(&Rfc3339).expect("a year of four digits")
    }
}

/// Does what GitHub does when the release with this id is published, unless it is a draft: it gets its tag, which moves
/// if `moves` or if the release names a commit, and may become the latest.
fn settle(repository: &mut PublishedRepository, id: u64, moves: bool, now: &str) {
    let Some(published) = repository.releases.iter_mut().find(|release| release.id == id) else { return };
    let release = &published.release;
    if release.draft {
        return;
    }
    let commit = release.commit.clone();
    let tag = Tag {
        commit: commit.unwrap_or_else(|| digest::sha1_of([&*release.tag, &id.to_string()])),
        annotated: release.annotated,
    };
    if moves || release.commit.is_some() || !repository.tags.contains_key(&release.tag) {
        repository.tags.insert(release.tag.clone(), tag);
    }
    let first = published.published_at.is_none();
    published.published_at.get_or_insert_with(|| release.published_at.clone().unwrap_or_else(|| now.to_owned()));
    let (prerelease, make_latest) = (release.prerelease, release.make_latest);
    if first && !prerelease {
        repository.note_latest(id, make_latest);
    }
}
