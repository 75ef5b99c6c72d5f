//! `github:` refs.

use std::fmt;

use llm_local_core::{ArtifactRef, Error, Result, manifest::check_relative_path};

use crate::pinned::Pinned;

/// The scheme of this source.
pub(crate) const SCHEME: &str = "github";
/// The revision that means the newest release that is neither a draft nor a prerelease.
pub(crate) const LATEST: &str = "latest";
/// The release that a ref means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Which {
    Tag(String),
    Latest,
    /// The one of a revision that the source gave, with the assets that it had.
    Pinned(Pinned),
}

/// What a ref may look like, for messages.
const FORMS: &str = "expected `github:owner/repo`, then `@tag` or `@latest`, and `#asset` if the release has several \
                     that it could be";

/// What a `github:` ref means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReleaseRef {
    pub(crate) owner: String,
    pub(crate) repo: String,
    pub(crate) which: Which,
    /// The asset that is asked for.
    pub(crate) asset: Option<String>,
}

impl ReleaseRef {
    /// Reads a ref.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] that says what was expected.
    pub(crate) fn parse(reference: &ArtifactRef) -> Result<Self> {
        let bad = |reason: String| Error::invalid_spec(format!("ref `{reference}`"), format!("{reason}; {FORMS}"));
        if reference.scheme() != SCHEME {
            return Err(bad(format!("the GitHub source reads `github:` refs, not `{}:`", reference.scheme())));
        }
        let Some((owner, repo)) = reference.locator().split_once('/') else {
            return Err(bad(format!("`{}` has no `/` between owner and repository", reference.locator())));
        };
        for (name, what) in [(owner, "an owner"), (repo, "a repository")] {
            // GitHub's own rule; it also keeps both from being anything but a part of a path.
            let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
            if !plain || name.is_empty() || name.chars().all(|c| c == '.') {
                return Err(bad(format!("`{}` is not the name of {what}", name.escape_debug())));
            }
        }
        let asset = reference.fragment().map(str::to_owned);
        if let Some(asset) = &asset
            && (asset.contains('/') || check_relative_path(asset).is_err())
        {
            return Err(bad(format!("`{}` is not the name of an asset", asset.escape_debug())));
        }
        let which = match reference.revision() {
            None | Some(LATEST) => Which::Latest,
            Some(text) => Pinned::parse(text).map_or_else(|| Which::Tag(text.to_owned()), Which::Pinned),
        };
        Ok(Self { owner: owner.to_owned(), repo: repo.to_owned(), which, asset })
    }

    /// The ref of `asset` in this release.
    pub(crate) fn with_asset(&self, asset: &str) -> String {
        Self { asset: Some(asset.to_owned()), ..self.clone() }.to_string()
    }

    /// The ref of the release `tag`.
    pub(crate) fn with_tag(&self, tag: &str) -> String {
        self.at_tag(tag).to_string()
    }

    /// The release `tag` of the same repository.
    pub(crate) fn at_tag(&self, tag: &str) -> Self {
        Self { which: Which::Tag(tag.to_owned()), ..self.clone() }
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Latest => f.write_str(LATEST),
            Self::Pinned(pinned) => pinned.fmt(f),
        }
    }
}

impl fmt::Display for ReleaseRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let made = ArtifactRef::new(SCHEME, format!("{}/{}", self.owner, self.repo))
            .and_then(|r| r.with_revision(self.which.to_string()))
            .and_then(|r| self.asset.iter().try_fold(r, |r, asset| r.with_fragment(asset)));
        match made {
            Ok(reference) => reference.fmt(f),
            // A tag or a name of GitHub's that no ref can hold.
            Err(_) => write!(f, "the release `{}`", self.which.to_string().escape_debug()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ReleaseRef> {
        ReleaseRef::parse(&text.parse()?)
    }

    #[test]
    fn a_ref_names_repository_release_and_asset() {
        let read = |text: &str| {
            let r = parse(text).unwrap();
            (format!("{}/{}", r.owner, r.repo), r.which, r.asset)
        };
        let some = |text: &str| Some(text.to_owned());
        let tag = |text: &str| Which::Tag(text.to_owned());
        assert_eq!(read("github:o/r"), ("o/r".into(), Which::Latest, None));
        assert_eq!(read("github:o/r@latest"), ("o/r".into(), Which::Latest, None));
        assert_eq!(
            read("github:O-1/r.x_y@v1.0+a/b c#x y.zip"),
            ("o-1/r.x_y".into(), tag("v1.0+a/b c"), some("x y.zip"))
        );
        assert_eq!(read("github:o/r#a%23b.gguf"), ("o/r".into(), Which::Latest, some("a#b.gguf")));
        let pinned = Pinned { release: 7, assets: vec![1, 22] };
        assert_eq!(read("github:o/r@7~1,22"), ("o/r".into(), Which::Pinned(pinned), None));
        assert_eq!(read("github:o/r@7~1,x"), ("o/r".into(), tag("7~1,x"), None));
    }

    #[test]
    fn what_cannot_be_one_says_what_was_expected() {
        for text in [
            "github:o",
            "github:o/r/x",
            "github:/r",
            "github:o/",
            "github:../r",
            "github:o/..",
            "github:o/r#../x",
            "hf:o/r",
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.code(), "invalid_spec", "{text}");
            assert!(error.to_string().contains("github:owner/repo"), "{error}");
        }
    }

    #[test]
    fn a_ref_that_is_suggested_can_be_read_again() {
        let reference = parse("github:o/r@a@b").unwrap();
        assert_eq!(reference.with_asset("x#y"), "github:o/r@a@b#x#y");
        assert_eq!(parse(&reference.with_asset("x#y")).unwrap().asset.as_deref(), Some("x#y"));
        assert_eq!(reference.with_tag("v/1"), "github:o/r@v/1");
        assert_eq!(parse("github:o/r@7~1,2").unwrap().to_string(), "github:o/r@7~1,2");
    }
}
