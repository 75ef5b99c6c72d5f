//! Where an artifact is, whatever its revision.

use llm_local_core::ArtifactRef;

/// Where an artifact is, in whatever revision. What stands behind the first `:` of the locator or of the revision is a
/// part of it (a subfolder, in refs of the Hugging Face Hub) and no part of either: `org/name:sub@rev` and
/// `org/name@rev:sub` are two spellings of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Location<'a> {
    /// The scheme of its refs.
    pub scheme: &'a str,
    /// What its source knows it by, without the part; of a path, all of it as it is written, whatever the current folder.
    pub locator: &'a str,
    /// The part, if it is not all that is there.
    pub part: Option<&'a str>,
}

impl<'a> Location<'a> {
    /// The location of `reference`.
    pub fn of(reference: &'a ArtifactRef) -> Self {
        Self::at(reference, reference.revision())
    }

    /// The location of `reference`, which was resolved to `revision`: if it asks for just that, it may have a `:` of its
    /// own.
    pub(crate) fn of_resolved(reference: &'a ArtifactRef, revision: &str) -> Self {
        Self::at(reference, reference.revision().filter(|asked| *asked != revision))
    }

    fn at(reference: &'a ArtifactRef, revision: Option<&'a str>) -> Self {
        let (scheme, whole) = (reference.scheme(), reference.locator());
        // In a path a `:` means itself: `C:\x`.
        let (locator, below) = if reference.is_file() { (whole, None) } else { split(whole) };
        match (below, revision.and_then(|revision| split(revision).1)) {
            (below, None) => Self { scheme, locator, part: below },
            // Where there are two, the source says what they mean, if anything.
            (_, part) => Self { scheme, locator: if below.is_some() { whole } else { locator }, part },
        }
    }

    /// It as texts; a part that it lacks is empty.
    pub(crate) fn parts(&self) -> [&'a str; 3] {
        [self.scheme, self.locator, self.part.unwrap_or("")]
    }
}

/// What is before the first `:` and what is behind it. A part that is empty is none.
pub fn split(text: &str) -> (&str, Option<&str>) {
    text.split_once(':').map_or((text, None), |(before, part)| (before, Some(part).filter(|part| !part.is_empty())))
}
