//! Which artifacts are versions of one.

use llm_local_core::{ArtifactRef, Digest, Want};
use sha2::{Digest as _, Sha256};

use crate::location::{Location, split};

/// Refs that differ in their revision alone, wanted as the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Group<'a> {
    location: Location<'a>,
    fragment: Option<&'a str>,
    want: Want,
}

impl<'a> Group<'a> {
    /// The group of `reference`.
    pub(super) fn of(reference: &'a ArtifactRef, want: Want) -> Self {
        Self { location: Location::of(reference), fragment: reference.fragment(), want }
    }

    /// The group of `reference`, which was resolved to `revision`.
    pub(super) fn of_resolved(reference: &'a ArtifactRef, revision: &str, want: Want) -> Self {
        Self { location: Location::of_resolved(reference, revision), ..Self::of(reference, want) }
    }

    /// The name of its files.
    pub(super) fn key(&self) -> String {
        let want = if self.want == Want::Model { "model" } else { "adapter" };
        let location = self.location.parts().into_iter();
        hex_of(location.chain([self.fragment.unwrap_or(""), want]))
    }
}

/// The SHA-256 of `parts`, each ended by a NUL, as hex digits.
pub(super) fn hex_of<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
        hash.update([0]);
    }
    Digest::Sha256(hash.finalize().into()).to_string().replace("sha256:", "")
}

/// The revision that `reference` asks for, without the part behind it.
pub(super) fn asked(reference: &ArtifactRef) -> Option<&str> {
    reference.revision().map(|revision| split(revision).0)
}

/// Whether `which` asks for what `reference` was resolved to, which is at `revision` and may be called `name`: the same
/// location, and no revision but that, its name, or the one that `reference` asks for. Of fragments it says nothing.
pub(super) fn asks_for(which: &ArtifactRef, reference: &ArtifactRef, revision: &str, name: Option<&str>) -> bool {
    let known = [Some(revision), name, asked(reference)];
    Location::of_resolved(which, revision) == Location::of_resolved(reference, revision)
        && (which.revision() == Some(revision) || asked(which).is_none_or(|it| known.contains(&Some(it))))
}

/// `reference`, which was resolved to `revision`, at `version`, with the part where it was. A path, which has no versions,
/// as it is.
pub(super) fn at_version(reference: &ArtifactRef, revision: &str, version: &str) -> ArtifactRef {
    let part = reference.revision().filter(|asked| *asked != revision).and_then(|asked| split(asked).1);
    let revision = part.map_or_else(|| version.to_owned(), |part| format!("{version}:{part}"));
    reference.clone().with_revision(revision).unwrap_or_else(|_| reference.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(text: &str) -> (String, String) {
        let reference: ArtifactRef = text.parse().unwrap();
        let group = Group::of(&reference, Want::Adapter);
        (group.key(), format!("{group:?}"))
    }

    #[test]
    fn a_part_is_the_same_behind_the_locator_and_behind_the_revision() {
        for (one, other) in [
            ("hf:org/name:sub@main", "hf:org/name@main:sub"),
            ("hf:org/name:sub", "hf:org/name@c0ffee:sub"),
            ("hf:org/name:a/b:c@v1", "hf:org/name@v2:a/b:c"),
            ("hf:org/name:sub@v1#m.gguf", "hf:org/name@v1:sub#m.gguf"),
            ("hf:org/name", "hf:org/name@v1"),
            ("hf:org/name:", "hf:org/name@v1:"),
        ] {
            assert_eq!(group(one), group(other), "{one} {other}");
        }
    }

    #[test]
    fn what_is_no_part_tells_artifacts_apart() {
        let all = [
            "hf:org/name",
            "hf:org/name:sub",
            "hf:org/name:other",
            "hf:org/name:sub/sub",
            "hf:org/name:sub#sub",
            "hf:org/name#sub",
            "hf:org/sub:name",
            "gh:org/name:sub",
            // Both, which is for the source to refuse.
            "hf:org/name:sub@v1:other",
            "hf:org/name@v1:sub:other",
            // Paths, of which no colon is a separator.
            "file:C:\\x",
            "file:C:\\y",
            "file:D:\\x",
            "file:C",
            "file:/a:b",
            "file:/a",
            "file:/a:",
            "file:/a:c",
        ];
        for (i, one) in all.iter().enumerate() {
            for other in &all[i + 1..] {
                let (one, other) = (group(one), group(other));
                assert!(one.0 != other.0 && one.1 != other.1, "{one:?} {other:?}");
            }
        }
        assert_eq!(group("C:\\x"), group("file:C:\\x"));
    }

    #[test]
    fn a_ref_asks_for_a_part_by_either_spelling_and_for_a_pinned_revision_by_all_of_it() {
        let asks =
            |which: &str, reference: &str| asks_for(&which.parse().unwrap(), &reference.parse().unwrap(), "7:1", None);
        for reference in ["gh:o/r:sub@v1", "gh:o/r@v1:sub"] {
            for which in ["gh:o/r:sub", "gh:o/r:sub@v1", "gh:o/r@v1:sub", "gh:o/r:sub@7:1"] {
                assert!(asks(which, reference), "{which} {reference}");
            }
            for which in ["gh:o/r", "gh:o/r@v1", "gh:o/r@7:1", "gh:o/r:sub@v2", "gh:o/r@v2:sub", "gh:o/r@v1:other"] {
                assert!(!asks(which, reference), "{which} {reference}");
            }
        }
        for (which, reference) in
            [("gh:o/r@7:1", "gh:o/r@latest"), ("gh:o/r", "gh:o/r@7:1"), ("gh:o/r@7:1", "gh:o/r@7:1")]
        {
            assert!(asks(which, reference), "{which} {reference}");
        }
        assert!(!asks("gh:o/r@7:2", "gh:o/r@latest") && !asks("gh:o/r:sub", "gh:o/r@latest"));
    }

    #[test]
    fn another_version_of_a_part_is_asked_for_as_the_part_was() {
        for (text, expected) in [
            ("gh:o/r@main:sub", "gh:o/r@v1:sub"),
            ("gh:o/r:sub@main", "gh:o/r:sub@v1"),
            ("gh:o/r:sub", "gh:o/r:sub@v1"),
            ("gh:o/r", "gh:o/r@v1"),
            ("gh:o/r@7:1", "gh:o/r@v1"),
            ("/a:b", "file:/a:b"),
        ] {
            assert_eq!(at_version(&text.parse().unwrap(), "7:1", "v1").to_string(), expected);
        }
    }
}
