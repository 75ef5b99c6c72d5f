//! What a release is made with.

use super::{Asset, Content};

/// A release with its assets: by default published, neither a draft nor a prerelease, and the latest one.
#[derive(Debug, Clone)]
#[must_use = "a release is served once a repository has it"]
pub struct Release {
    pub(super) tag: String,
    pub(super) name: Option<String>,
    pub(super) body: Option<String>,
    pub(super) draft: bool,
    pub(super) prerelease: bool,
    pub(super) immutable: bool,
    pub(super) make_latest: MakeLatest,
    pub(super) commit: Option<String>,
    pub(super) target: Option<String>,
    pub(super) annotated: bool,
    pub(super) created_at: Option<String>,
    pub(super) published_at: Option<String>,
    pub(super) assets: Vec<Asset>,
}

/// Whether a release becomes the latest one when it is published, as GitHub's `make_latest` says it. Drafts and
/// prereleases never do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum MakeLatest {
    /// It does.
    #[default]
    True,
    /// The one that was the latest stays so.
    False,
    /// The one that was created last is the latest, whatever was said before.
    Legacy,
}

impl Release {
    /// A release without assets for `tag`, which may have any characters.
    pub fn new(tag: impl Into<String>) -> Self {
        Self {
            tag: tag.into(),
            name: None,
            body: None,
            draft: false,
            prerelease: false,
            immutable: false,
            make_latest: MakeLatest::default(),
            commit: None,
            target: None,
            annotated: false,
            created_at: None,
            published_at: None,
            assets: Vec::new(),
        }
    }

    /// Its tag.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Adds an asset, in the place of one of that name.
    pub fn with_asset(mut self, asset: Asset) -> Self {
        self.assets.retain(|known| known.name != asset.name);
        self.assets.push(asset);
        self
    }

    /// Adds an asset with a digest: see [`Asset::new`].
    pub fn with_file(self, name: impl Into<String>, content: impl Into<Content>) -> Self {
        self.with_asset(Asset::new(name, content))
    }

    /// Adds a list of the SHA-256 of all assets so far, as `sha256sum` writes it, under this name.
    pub fn with_sha256sums(self, name: impl Into<String>) -> Self {
        let lines = self.assets.iter().map(|asset| format!("{}  {}\n", asset.content.sha256(), asset.name));
        let sums: String = lines.collect();
        self.with_file(name, sums)
    }

    /// Sets the title; without, it is the tag.
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets the text, in Markdown.
    pub fn with_body(mut self, body: impl Into<String>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// Makes it a draft: only tokens that may push see it, in the list and by its id.
    pub fn draft(mut self) -> Self {
        self.draft = true;
        self
    }

    /// Makes a draft a published release.
    pub fn published(mut self) -> Self {
        self.draft = false;
        self
    }

    /// Makes it a prerelease.
    pub fn prerelease(mut self) -> Self {
        self.prerelease = true;
        self
    }

    /// Marks it as immutable. Only the field says so: the methods of the server change it all the same.
    pub fn immutable(mut self) -> Self {
        self.immutable = true;
        self
    }

    /// Sets whether it becomes the latest one.
    pub fn make_latest(mut self, make_latest: MakeLatest) -> Self {
        self.make_latest = make_latest;
        self
    }

    /// Sets the commit of its tag: 40 hex digits. Without, it follows from the release.
    pub fn at_commit(mut self, commit: impl Into<String>) -> Self {
        self.commit = Some(commit.into());
        self
    }

    /// Sets the branch or commit that the tag is made from if it is not there; without, it is the default branch. Only
    /// the field `target_commitish` says so.
    pub fn with_target(mut self, target: impl Into<String>) -> Self {
        self.target = Some(target.into());
        self
    }

    /// Lets its tag be an annotated one: a git object of its own, which names the commit.
    pub fn with_annotated_tag(mut self) -> Self {
        self.annotated = true;
        self
    }

    /// Sets `created_at`, in RFC 3339; GitHub takes it from the commit, so it says nothing of when it was published.
    pub fn created_at(mut self, time: impl Into<String>) -> Self {
        self.created_at = Some(time.into());
        self
    }

    /// Sets `published_at`, in RFC 3339.
    pub fn published_at(mut self, time: impl Into<String>) -> Self {
        self.published_at = Some(time.into());
        self
    }
}
