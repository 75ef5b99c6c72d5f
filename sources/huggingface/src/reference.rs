//! `hf:` refs.

use llm_local_core::{ArtifactRef, Error, Result, manifest::check_relative_path};
use llm_local_weights::is_gguf;

/// The scheme of this source.
pub(crate) const SCHEME: &str = "hf";
/// The branch that a ref without a revision means.
const MAIN: &str = "main";
/// What a ref may look like, for messages.
const FORMS: &str = "expected `hf:org/name`, then `@revision` (a branch, a tag, a commit or `refs/pr/1`), `:subfolder`, \
                     and `#file.gguf` or `#Q4_K_M` for one GGUF file, each of them only if wanted";

/// What an `hf:` ref means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HubRef {
    /// The repository: `org/name`, or `name` for the oldest ones.
    pub(crate) repo: String,
    /// The branch, tag or commit.
    pub(crate) revision: String,
    /// The folder in the repository that is the artifact, without slashes around it; empty for all of it.
    pub(crate) folder: String,
    /// The GGUF file that is asked for.
    pub(crate) gguf: Option<Gguf>,
}

/// Which GGUF file is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Gguf {
    /// The one at this path below the folder.
    Path(String),
    /// The one whose name holds this: `Q4_K_M`.
    Tag(String),
}

impl HubRef {
    /// Reads the locator `org/name[:subfolder]`, the revision `name[:subfolder]` (a git ref has no colon) and the
    /// fragment.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] that says what was expected.
    pub(crate) fn parse(reference: &ArtifactRef) -> Result<Self> {
        let bad = |reason: String| Error::invalid_spec(format!("ref `{reference}`"), format!("{reason}; {FORMS}"));
        if reference.scheme() != SCHEME {
            return Err(bad(format!("the Hugging Face source reads `hf:` refs, not `{}:`", reference.scheme())));
        }
        let (repo, below_locator) = split(reference.locator());
        let (revision, below_revision) = split(reference.revision().unwrap_or(MAIN));
        check_repo(repo).map_err(bad)?;
        check_relative_path(revision).map_err(|_| bad(format!("`{}` is not a revision", revision.escape_debug())))?;
        let below = match (below_locator, below_revision) {
            (Some(_), Some(_)) => return Err(bad("it names a subfolder twice".into())),
            (one, other) => one.or(other),
        };
        let mut folder = below.unwrap_or_default().trim_end_matches('/').to_owned();
        if below.is_some() {
            check_relative_path(&folder).map_err(|_| bad(format!("`{}` is not a subfolder", folder.escape_debug())))?;
        }
        let mut gguf = reference.fragment().map(fragment).transpose().map_err(bad)?;
        if is_gguf(&folder) {
            if gguf.is_some() {
                return Err(bad("it names a GGUF file twice".into()));
            }
            let (parent, name) = folder.rsplit_once('/').unwrap_or(("", &folder));
            (gguf, folder) = (Some(Gguf::Path(name.to_owned())), parent.to_owned());
        }
        Ok(Self { repo: repo.into(), revision: revision.into(), folder, gguf })
    }

    /// The path in the repository of the file at `path` below the folder.
    pub(crate) fn in_repo(&self, path: &str) -> String {
        if self.folder.is_empty() { path.to_owned() } else { format!("{}/{path}", self.folder) }
    }

    /// The path below the folder of the file at `path` in the repository, if it is there.
    pub(crate) fn below<'a>(&self, path: &'a str) -> Option<&'a str> {
        if self.folder.is_empty() { Some(path) } else { path.strip_prefix(&self.folder)?.strip_prefix('/') }
    }

    /// The text of a ref to another folder of the repository, at the same revision.
    pub(crate) fn with_folder(&self, folder: &str) -> String {
        self.text(folder, None)
    }

    /// The text of a ref to the GGUF file at `path` below the folder, at the same revision.
    pub(crate) fn with_gguf(&self, path: &str) -> String {
        self.text(&self.folder, Some(path))
    }

    fn text(&self, folder: &str, fragment: Option<&str>) -> String {
        let below = if folder.is_empty() { String::new() } else { format!(":{folder}") };
        let locator = format!("{}{below}", self.repo);
        let mut reference = ArtifactRef::new(SCHEME, &locator);
        if self.revision != MAIN {
            reference = reference.and_then(|r| r.with_revision(&self.revision));
        }
        if let Some(fragment) = fragment {
            reference = reference.and_then(|r| r.with_fragment(fragment));
        }
        // Names with control characters, which no ref takes, can come from a listing only.
        reference.map_or_else(|_| format!("{SCHEME}:{}", locator.escape_debug()), |r| r.to_string())
    }
}

/// Splits at the first colon.
fn split(text: &str) -> (&str, Option<&str>) {
    text.split_once(':').map_or((text, None), |(before, after)| (before, Some(after)))
}

fn fragment(text: &str) -> Result<Gguf, String> {
    if is_gguf(text) {
        check_relative_path(text).map_err(|_| format!("`{}` is not a file's path", text.escape_debug()))?;
        return Ok(Gguf::Path(text.to_owned()));
    }
    if text.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)) {
        return Ok(Gguf::Tag(text.to_owned()));
    }
    Err(format!("`#{}` names neither a GGUF file nor a quantization such as `Q4_K_M`", text.escape_debug()))
}

/// Checks a repository's name by the Hub's rules. They keep it from leaving the cache's folder too.
fn check_repo(repo: &str) -> Result<(), String> {
    let is_part = |part: &str| {
        (1..=96).contains(&part.len())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
            && !part.contains("--")
            && !part.contains("..")
            && !part.ends_with(".git")
    };
    let parts: Vec<_> = repo.split('/').collect();
    if parts.len() <= 2 && parts.into_iter().all(is_part) {
        return Ok(());
    }
    Err(format!("`{}` is not the name of a repository", repo.escape_debug()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<HubRef> {
        HubRef::parse(&text.parse()?)
    }

    #[test]
    fn the_forms_of_a_ref() {
        let path = |p: &str| Some(Gguf::Path(p.into()));
        let tag = |t: &str| Some(Gguf::Tag(t.into()));
        for (text, repo, revision, folder, gguf) in [
            ("hf:org/name", "org/name", "main", "", None),
            ("hf:gpt2", "gpt2", "main", "", None),
            ("hf:org/name@v1.0", "org/name", "v1.0", "", None),
            ("hf:org/name@refs/pr/1", "org/name", "refs/pr/1", "", None),
            ("hf:org/name@feature/x:a/b/", "org/name", "feature/x", "a/b", None),
            ("hf:org/name:a/b", "org/name", "main", "a/b", None),
            ("hf:org/name:a/b@v1", "org/name", "v1", "a/b", None),
            ("hf:org/n.a-m_e#a b.gguf", "org/n.a-m_e", "main", "", path("a b.gguf")),
            ("hf:org/name:q/x.GGUF", "org/name", "main", "q", path("x.GGUF")),
            ("hf:org/name@v1:x.gguf", "org/name", "v1", "", path("x.gguf")),
            ("hf:org/name:q#Q4_K_M", "org/name", "main", "q", tag("Q4_K_M")),
        ] {
            let expected = HubRef { repo: repo.into(), revision: revision.into(), folder: folder.into(), gguf };
            assert_eq!(parse(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_such_ref_says_what_is_expected() {
        for (text, why) in [
            ("hf:a/b/c", "not the name of a repository"),
            ("hf:../b", "not the name of a repository"),
            ("hf:a/..", "not the name of a repository"),
            ("hf:a--b/c", "not the name of a repository"),
            ("hf:/a/b", "not the name of a repository"),
            ("hf:a/", "not the name of a repository"),
            ("hf:a b/c", "not the name of a repository"),
            ("hf:https://huggingface.co/a/b", "is not a subfolder"),
            ("hf:a/b@../../x", "is not a revision"),
            ("hf:a/b@/x", "is not a revision"),
            ("hf:a/b@:x", "is not a revision"),
            ("hf:a/b:", "is not a subfolder"),
            ("hf:a/b:../x", "is not a subfolder"),
            ("hf:a/b:/x", "is not a subfolder"),
            ("hf:a/b:x@v1:y", "subfolder twice"),
            ("hf:a/b:x.gguf#Q8_0", "GGUF file twice"),
            ("hf:a/b#../x.gguf", "not a file's path"),
            ("hf:a/b#model.safetensors/x", "neither a GGUF file nor a quantization"),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.code(), "invalid_spec", "{text}");
            let error = error.to_string();
            assert!(error.contains(why) && error.contains("hf:org/name"), "{text}: {error}");
        }
        let error = HubRef::parse(&"mem:a/b".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("not `mem:`"), "{error}");
    }

    #[test]
    fn the_refs_that_messages_name_can_be_read_again() {
        let at = parse("hf:org/name@v1:q").unwrap();
        assert_eq!((at.in_repo("x"), at.below("q/x")), ("q/x".into(), Some("x")));
        assert_eq!((at.below("qx"), at.below("x")), (None, None));
        let gguf = parse(&at.with_gguf("100%.gguf")).unwrap();
        assert_eq!(gguf, HubRef { gguf: Some(Gguf::Path("100%.gguf".into())), ..at.clone() });
        assert_eq!(parse(&at.with_folder("a")).unwrap(), HubRef { folder: "a".into(), ..at.clone() });
    }
}
