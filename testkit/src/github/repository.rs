//! What a repository is made with, and who may see it.

use super::Release;

/// A repository with its releases.
#[derive(Debug, Clone)]
#[must_use = "a repository is served once a server has it"]
pub struct Repository {
    pub(super) name: String,
    pub(super) releases: Vec<Release>,
    pub(super) private: bool,
    pub(super) license: Option<String>,
    pub(super) default_branch: String,
    pub(super) former_names: Vec<String>,
}

/// What a token may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Access {
    /// Only what everybody sees, under the rate limit of tokens.
    Public,
    /// Private repositories too.
    Read,
    /// Private repositories, and drafts.
    Push,
}

impl Repository {
    /// A public repository without releases. `name` is `owner/name`; case does not matter in requests.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            releases: Vec::new(),
            private: false,
            license: None,
            default_branch: "main".into(),
            former_names: Vec::new(),
        }
    }

    /// Adds a release: see [`GitHub::publish`](super::GitHub::publish).
    pub fn with_release(mut self, release: Release) -> Self {
        self.releases.push(release);
        self
    }

    /// Makes it private: without a token that has access, it looks as if it were not there.
    pub fn private(mut self) -> Self {
        self.private = true;
        self
    }

    /// Sets the licence that GitHub has found in it, by its SPDX id.
    pub fn with_license(mut self, spdx_id: impl Into<String>) -> Self {
        self.license = Some(spdx_id.into());
        self
    }

    /// Sets the default branch; without, it is `main`.
    pub fn with_default_branch(mut self, name: impl Into<String>) -> Self {
        self.default_branch = name.into();
        self
    }

    /// Lets requests for this former name be redirected.
    pub fn renamed_from(mut self, name: impl Into<String>) -> Self {
        self.former_names.push(name.into());
        self
    }
}
