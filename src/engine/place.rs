//! Where refs point, whatever revision they ask for.

use std::borrow::Cow;

use llm_local_core::ArtifactRef;

use crate::adapters::absolute;

/// Where a ref points. What stands behind the first `:` of its locator or of its revision is a part of what is there (a
/// subfolder, in refs of the Hugging Face Hub): `org/name:sub@rev` and `org/name@rev:sub` are two spellings of one, as the
/// store has it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place<'a> {
    scheme: &'a str,
    /// Without the part; of a path, all of it, from the root.
    locator: Cow<'a, str>,
    part: Option<&'a str>,
}

impl<'a> Place<'a> {
    pub(super) fn of(reference: &'a ArtifactRef) -> Self {
        let (scheme, whole) = (reference.scheme(), reference.locator());
        // In a path a `:` means itself: `C:\x`.
        if reference.is_file() {
            let locator = absolute(reference).map_or(Cow::Borrowed(whole), |r| Cow::Owned(r.locator().to_owned()));
            return Self { scheme, locator, part: None };
        }
        let ((locator, below), (_, behind)) = (split(whole), split(reference.revision().unwrap_or_default()));
        match (below, behind) {
            // Where there are two, the source says what they mean, if anything.
            (Some(_), Some(_)) => Self { scheme, locator: whole.into(), part: behind },
            _ => Self { scheme, locator: locator.into(), part: below.or(behind) },
        }
    }

    /// Whether both are in one place, as parts of it or all of it.
    pub(super) fn is_beside(&self, other: &Self) -> bool {
        self.scheme == other.scheme && self.locator == other.locator
    }
}

/// Whether `one` and `other` differ in their revision at most.
pub(crate) fn is_of_one(one: &ArtifactRef, other: &ArtifactRef) -> bool {
    one.fragment() == other.fragment() && Place::of(one) == Place::of(other)
}

/// The revision that `reference` asks for, without the part of the artifact that may stand behind it.
pub(super) fn asked(reference: &ArtifactRef) -> Option<&str> {
    reference.revision().map(|revision| split(revision).0)
}

/// What is before the first `:` and what is behind it. A part that is empty is none.
fn split(text: &str) -> (&str, Option<&str>) {
    text.split_once(':').map_or((text, None), |(before, part)| (before, Some(part).filter(|part| !part.is_empty())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_one(one: &str, other: &str) -> bool {
        is_of_one(&one.parse().unwrap(), &other.parse().unwrap())
    }

    #[test]
    fn refs_that_differ_in_their_revision_alone_are_of_one_adapter() {
        let whole = std::env::current_dir().unwrap().join("x").display().to_string();
        for (one, other) in [
            ("github:o/r", "github:o/r@v1"),
            ("hf:o/r@main:sub", "hf:o/r@c0ffee:sub"),
            // However the part is written.
            ("hf:o/r:sub@x", "hf:o/r@x:sub"),
            ("hf:o/r:sub", "hf:o/r@main:sub"),
            ("hf:o/r:a/b@x#m.gguf", "hf:o/r@y:a/b#m.gguf"),
            ("./x", "x"),
            ("./x/", &whole),
        ] {
            assert!(of_one(one, other) && of_one(other, one), "{one} {other}");
        }
        for (one, other) in [
            ("github:o/r", "hf:o/r"),
            ("github:o/r", "github:o/s"),
            ("github:o/r#a", "github:o/r#b"),
            ("github:o/r#a", "github:o/r"),
            ("hf:o/r@main:sub", "hf:o/r@main"),
            ("hf:o/r:sub", "hf:o/r"),
            ("hf:o/r:sub@x:other", "hf:o/r@x:other"),
            ("./x", "./y"),
            ("/a:b", "/a:c"),
        ] {
            assert!(!of_one(one, other) && !of_one(other, one), "{one} {other}");
        }
    }
}
