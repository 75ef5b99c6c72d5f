//! Refs: where a model or an adapter is, as one line of text.

use std::{fmt, path::Path, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A parsed `scheme:locator[@revision][#fragment]`, or a plain path.
///
/// | text | scheme | locator | revision | fragment |
/// |---|---|---|---|---|
/// | `hf:org/name@main` | `hf` | `org/name` | `main` | |
/// | `github:owner/repo@v1#pirate.zip` | `github` | `owner/repo` | `v1` | `pirate.zip` |
/// | `file:/models/a@b` | `file` | `/models/a@b` | | |
/// | `./models/tiny`, `~/m.gguf` | `file` | as written | | |
///
/// A `file` ref is a path from the colon to the end: `@`, `#` and `%` mean themselves. In every other scheme a `%`,
/// and a separator that does not separate, is written percent-encoded (`%25`, `%40`, `%23`). The first `@` starts the
/// revision, so a revision may contain one; the first `#` starts the fragment.
///
/// Locators of `github` are without case, as its names are, and are kept in lower case.
///
/// Text without a scheme is a path; so is text whose "scheme" is one letter (`C:\models`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ArtifactRef {
    scheme: String,
    locator: String,
    revision: Option<String>,
    fragment: Option<String>,
}

/// The scheme of refs to this machine's file system.
pub const FILE_SCHEME: &str = "file";

/// Schemes whose locators mean the same in upper and lower case, so that they are kept in the latter: else what is known
/// of one spelling, as the digests that are trusted, would not hold for another.
const CASELESS_SCHEMES: [&str; 1] = ["github"];

impl ArtifactRef {
    /// A ref with neither revision nor fragment.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] for a scheme that is not `[a-z][a-z0-9+.-]+`, an empty locator, or a control character.
    pub fn new(scheme: impl Into<String>, locator: impl Into<String>) -> Result<Self> {
        Self { scheme: scheme.into(), locator: locator.into(), revision: None, fragment: None }.checked()
    }

    /// A `file` ref to `path`.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] for a path that is empty, not UTF-8, or has a control character in it.
    pub fn file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = path
            .to_str()
            .ok_or_else(|| Error::invalid_spec("ref", format!("the path {} is not UTF-8", path.display())))?;
        Self::new(FILE_SCHEME, text)
    }

    /// The same ref at `revision`.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] for a `file` ref, which has no revisions, and for an empty revision.
    pub fn with_revision(mut self, revision: impl Into<String>) -> Result<Self> {
        self.revision = Some(revision.into());
        self.checked()
    }

    /// The same ref with `fragment`, such as the name of a release's asset.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] for a `file` ref and for an empty fragment.
    pub fn with_fragment(mut self, fragment: impl Into<String>) -> Result<Self> {
        self.fragment = Some(fragment.into());
        self.checked()
    }

    /// Which source knows this ref: `file`, `hf`, `github`, ...
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// Where it is, in the words of its source: a path, `org/name`, ...
    pub fn locator(&self) -> &str {
        &self.locator
    }

    /// A branch, tag or commit.
    pub fn revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// A part of the artifact, such as the name of a release's asset.
    pub fn fragment(&self) -> Option<&str> {
        self.fragment.as_deref()
    }

    /// Whether this is a path on this machine.
    pub fn is_file(&self) -> bool {
        self.scheme == FILE_SCHEME
    }

    fn checked(mut self) -> Result<Self> {
        if CASELESS_SCHEMES.contains(&self.scheme.as_str()) {
            self.locator.make_ascii_lowercase();
        }
        let bad = |reason: String| Err(Error::invalid_spec(format!("ref `{self}`"), reason));
        if !is_scheme(&self.scheme) {
            return bad(format!(
                "the scheme `{}` is not two or more of a-z, 0-9, `+`, `.`, `-` after a letter",
                self.scheme
            ));
        }
        if self.locator.is_empty() {
            return bad("nothing stands after the scheme; expected e.g. `file:/path` or `hf:org/name`".into());
        }
        for (part, name) in [(&self.revision, "revision"), (&self.fragment, "fragment")] {
            match part.as_deref() {
                Some("") => return bad(format!("the {name} is empty")),
                Some(_) if self.is_file() => return bad(format!("a path has no {name}")),
                _ => {}
            }
        }
        let parts = [Some(&self.locator), self.revision.as_ref(), self.fragment.as_ref()];
        if parts.into_iter().flatten().any(|p| p.chars().any(char::is_control)) {
            return bad("it contains a control character".into());
        }
        Ok(self)
    }
}

fn is_scheme(text: &str) -> bool {
    text.len() >= 2
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "+.-".contains(c))
}

fn encode(part: &str, reserved: &[char], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for c in part.chars() {
        if c == '%' || reserved.contains(&c) {
            write!(f, "%{:02X}", c as u32)?;
        } else {
            write!(f, "{c}")?;
        }
    }
    Ok(())
}

/// Undoes [`encode`] and nothing else: any other `%` sequence is refused, so that text and ref stay in step.
fn decode(part: &str, whole: &str) -> Result<String> {
    let mut out = String::with_capacity(part.len());
    let mut rest = part;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        out.push(match rest.get(at..at + 3) {
            Some("%25") => '%',
            Some("%40") => '@',
            Some("%23") => '#',
            _ => {
                return Err(Error::invalid_spec(
                    format!("ref `{whole}`"),
                    "a `%` must be written `%25` (`%40` is `@`, `%23` is `#`)",
                ));
            }
        });
        rest = &rest[at + 3..];
    }
    out.push_str(rest);
    Ok(out)
}

impl fmt::Display for ArtifactRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_file() {
            return write!(f, "{FILE_SCHEME}:{}", self.locator);
        }
        write!(f, "{}:", self.scheme)?;
        encode(&self.locator, &['@', '#'], f)?;
        if let Some(revision) = &self.revision {
            f.write_str("@")?;
            encode(revision, &['#'], f)?;
        }
        if let Some(fragment) = &self.fragment {
            f.write_str("#")?;
            encode(fragment, &[], f)?;
        }
        Ok(())
    }
}

impl FromStr for ArtifactRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (scheme, rest) = match text.split_once(':') {
            Some((scheme, rest)) if is_scheme(scheme) => (scheme, rest),
            _ if text.is_empty() => {
                return Err(Error::invalid_spec("ref", "it is empty; expected a path or e.g. `hf:org/name`"));
            }
            _ => (FILE_SCHEME, text),
        };
        if scheme == FILE_SCHEME {
            return Self::new(scheme, rest);
        }
        let (rest, fragment) = match rest.split_once('#') {
            Some((rest, fragment)) => (rest, Some(decode(fragment, text)?)),
            None => (rest, None),
        };
        let (locator, revision) = match rest.split_once('@') {
            Some((locator, revision)) => (locator, Some(decode(revision, text)?)),
            None => (rest, None),
        };
        let locator = decode(locator, text)?;
        Self { scheme: scheme.into(), locator, revision, fragment }.checked()
    }
}

impl TryFrom<String> for ArtifactRef {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<ArtifactRef> for String {
    fn from(r: ArtifactRef) -> Self {
        r.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parts(text: &str) -> (String, String, Option<String>, Option<String>) {
        let r: ArtifactRef = text.parse().unwrap();
        (r.scheme, r.locator, r.revision, r.fragment)
    }

    #[test]
    fn the_forms_of_a_ref() {
        let some = |s: &str| Some(s.to_owned());
        assert_eq!(parts("hf:org/name@main"), ("hf".into(), "org/name".into(), some("main"), None));
        assert_eq!(
            parts("github:o/r@pkg@1.0+x/y#a b.zip"),
            ("github".into(), "o/r".into(), some("pkg@1.0+x/y"), some("a b.zip"))
        );
        assert_eq!(parts("github:o/r#a.zip"), ("github".into(), "o/r".into(), None, some("a.zip")));
        assert_eq!(parts("github:O/R.x@V1#A.zip"), ("github".into(), "o/r.x".into(), some("V1"), some("A.zip")));
        assert_eq!(parts("hf:Org/Name").1, "Org/Name");
        for path in ["/a/b@c#d%", "./x", "~/m.gguf", "models/tiny", "C:\\models", "c:/m"] {
            assert_eq!(parts(path), ("file".into(), path.into(), None, None));
            assert_eq!(parts(&format!("file:{path}")).1, path);
        }
    }

    #[test]
    fn what_is_not_a_ref_says_why() {
        for (text, why) in [
            ("", "empty"),
            ("hf:", "nothing stands after the scheme"),
            ("file:", "nothing stands after the scheme"),
            ("hf:a/b@", "revision is empty"),
            ("hf:a/b#", "fragment is empty"),
            ("hf:a%2Fb", "%25"),
            ("hf:a%", "%25"),
            ("hf:a\u{0}b", "control character"),
        ] {
            let error = text.parse::<ArtifactRef>().unwrap_err();
            assert_eq!(error.code(), "invalid_spec", "{text}");
            assert!(error.to_string().contains(why), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn display_then_parse_is_the_identity(
            scheme in "[a-z][a-z0-9+.-]{1,8}",
            locator in "[^\\p{Cc}]{1,20}",
            revision in proptest::option::of("[^\\p{Cc}]{1,20}"),
            fragment in proptest::option::of("[^\\p{Cc}]{1,20}"),
        ) {
            let file = scheme == FILE_SCHEME;
            let (revision, fragment) = if file { (None, None) } else { (revision, fragment) };
            let r = ArtifactRef { scheme, locator, revision, fragment };
            prop_assert_eq!(r.to_string().parse::<ArtifactRef>().unwrap(), r);
        }

        #[test]
        fn parse_then_display_then_parse_is_stable(text in "\\PC{0,30}") {
            if let Ok(r) = text.parse::<ArtifactRef>() {
                let shown = r.to_string();
                prop_assert_eq!(shown.parse::<ArtifactRef>().unwrap(), r);
            }
        }
    }
}
