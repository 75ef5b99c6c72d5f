//! Which artifacts are versions of one.

use llm_local_core::{ArtifactRef, Digest, Want};
use sha2::{Digest as _, Sha256};

/// Refs that differ in their revision alone, wanted as the same. What stands behind the first `:` of a revision is a
/// part of the artifact (a subfolder, in refs of the Hugging Face Hub) and no part of the revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Group<'a> {
    scheme: &'a str,
    locator: &'a str,
    part: Option<&'a str>,
    fragment: Option<&'a str>,
    want: Want,
}

impl<'a> Group<'a> {
    /// The group of `reference`.
    pub(super) fn of(reference: &'a ArtifactRef, want: Want) -> Self {
        Self {
            scheme: reference.scheme(),
            locator: reference.locator(),
            part: reference.revision().and_then(|revision| revision.split_once(':')).map(|(_, part)| part),
            fragment: reference.fragment(),
            want,
        }
    }

    /// The name of its files.
    pub(super) fn key(&self) -> String {
        let want = if self.want == Want::Model { "model" } else { "adapter" };
        // An empty one is none, as a ref has it.
        hex_of([self.scheme, self.locator, self.part.unwrap_or(""), self.fragment.unwrap_or(""), want])
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
    reference.revision().map(|revision| revision.split_once(':').map_or(revision, |(asked, _)| asked))
}
