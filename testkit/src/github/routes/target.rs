//! What a path asks for.

/// A repository as a path names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Which {
    Named(String),
    Numbered(u64),
}

/// What is wanted of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    Repository,
    Releases,
    Latest,
    ByTag(String),
    Release(u64),
    AssetsOf(u64),
    Asset(u64),
    Reference(String),
    TagObject(String),
    Commit(String),
}

/// The repository, what is wanted of it, and how the path ends after the repository, by the segments of a path of the
/// API.
pub(super) fn of_the_api(segments: &[String]) -> Option<(Which, Wanted)> {
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (which, rest) = match segments.as_slice() {
        ["repos", owner, name, rest @ ..] => (Which::Named(format!("{owner}/{name}")), rest),
        ["repositories", id, rest @ ..] => (Which::Numbered(id.parse().ok()?), rest),
        _ => return None,
    };
    // Tags and branches may hold slashes, whether they are encoded or not.
    let joined = |rest: &[&str]| (!rest.is_empty()).then(|| rest.join("/"));
    let wanted = match rest {
        [] => Wanted::Repository,
        ["releases"] => Wanted::Releases,
        ["releases", "latest"] => Wanted::Latest,
        ["releases", "tags", tag @ ..] => Wanted::ByTag(joined(tag)?),
        ["releases", "assets", id] => Wanted::Asset(id.parse().ok()?),
        ["releases", id] => Wanted::Release(id.parse().ok()?),
        ["releases", id, "assets"] => Wanted::AssetsOf(id.parse().ok()?),
        ["git", "ref", reference @ ..] => Wanted::Reference(joined(reference)?),
        ["git", "tags", sha] => Wanted::TagObject((*sha).into()),
        ["commits", reference @ ..] => Wanted::Commit(joined(reference)?),
        _ => return None,
    };
    Some((which, wanted))
}

/// A download as the web host names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Download {
    pub(super) repository: String,
    /// `None` for the latest release.
    pub(super) tag: Option<String>,
    pub(super) asset: String,
}

/// What a path of the web host downloads.
pub(super) fn of_the_web(segments: &[String]) -> Option<Download> {
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let [owner, name, "releases", rest @ ..] = segments.as_slice() else { return None };
    let (tag, asset) = match rest {
        ["latest", "download", asset] => (None, asset),
        ["download", tag @ .., asset] if !tag.is_empty() => (Some(tag.join("/")), asset),
        _ => return None,
    };
    Some(Download { repository: format!("{owner}/{name}"), tag, asset: (*asset).into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(path: &str) -> Vec<String> {
        path.split('/').map(|segment| segment.replace("%2F", "/")).collect()
    }

    #[test]
    fn a_path_of_the_api_names_a_repository_and_what_is_wanted_of_it() {
        for (path, wanted) in [
            ("", Wanted::Repository),
            ("/releases", Wanted::Releases),
            ("/releases/latest", Wanted::Latest),
            ("/releases/tags/v1", Wanted::ByTag("v1".into())),
            ("/releases/tags/lora%2Fv1", Wanted::ByTag("lora/v1".into())),
            ("/releases/tags/lora/v1", Wanted::ByTag("lora/v1".into())),
            ("/releases/7", Wanted::Release(7)),
            ("/releases/7/assets", Wanted::AssetsOf(7)),
            ("/releases/assets/8", Wanted::Asset(8)),
            ("/git/ref/tags/a/b", Wanted::Reference("tags/a/b".into())),
            ("/git/tags/abc", Wanted::TagObject("abc".into())),
            ("/commits/a%2Fb", Wanted::Commit("a/b".into())),
        ] {
            let named = (Which::Named("o/r".into()), wanted.clone());
            assert_eq!(of_the_api(&segments(&format!("repos/o/r{path}"))), Some(named), "{path}");
            let numbered = Some((Which::Numbered(5), wanted));
            assert_eq!(of_the_api(&segments(&format!("repositories/5{path}"))), numbered, "{path}");
        }
        for path in ["repos/o", "repositories/x", "repos/o/r/releases/x", "repos/o/r/releases/tags", "users/o"] {
            assert_eq!(of_the_api(&segments(path)), None, "{path}");
        }
    }

    #[test]
    fn a_path_of_the_web_host_names_an_asset() {
        let download = |tag: Option<&str>| {
            Some(Download { repository: "o/r".into(), tag: tag.map(Into::into), asset: "a.zip".into() })
        };
        assert_eq!(of_the_web(&segments("o/r/releases/download/v1/a.zip")), download(Some("v1")));
        assert_eq!(of_the_web(&segments("o/r/releases/download/x/v1/a.zip")), download(Some("x/v1")));
        assert_eq!(of_the_web(&segments("o/r/releases/latest/download/a.zip")), download(None));
        for path in ["o/r/releases/download/a.zip", "o/r/releases/tag/v1", "o/r"] {
            assert_eq!(of_the_web(&segments(path)), None, "{path}");
        }
    }
}
