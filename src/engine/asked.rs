//! What a source has said of one moving ref, for others of the same plan that move with it.

use llm_local_core::{ArtifactRef, Manifest};
use llm_local_source_common::location::Location;

use super::versions::{LATEST, asked};

/// Answers of sources to moving refs, while one spec is resolved.
#[derive(Debug, Default)]
pub(crate) struct Asked(Vec<(ArtifactRef, String)>);

impl Asked {
    /// Notes that `reference` means `manifest`. What has no name is noted of none: another part of it may have another
    /// revision.
    pub(super) fn note(&mut self, reference: &ArtifactRef, manifest: &Manifest) {
        self.0.extend(manifest.version.clone().map(|version| (reference.clone(), version)));
    }

    /// The name of the version that `reference` means, if that was asked for one which moves with it: of the same place,
    /// and with the same revision or none.
    pub(super) fn version(&self, reference: &ArtifactRef) -> Option<&str> {
        let place = |reference| {
            let Location { scheme, locator, .. } = Location::of(reference);
            (scheme, locator, revision(reference))
        };
        let known = self.0.iter().find(|(known, _)| place(known) == place(reference));
        known.map(|(_, version)| version.as_str())
    }
}

/// What `reference` asks for, in words.
fn revision(reference: &ArtifactRef) -> &str {
    asked(reference).unwrap_or(LATEST)
}

#[cfg(test)]
mod tests {
    use llm_local_core::Want;

    use super::*;

    #[test]
    fn refs_to_one_place_move_together_whatever_they_want_of_it() {
        let mut asked = Asked::default();
        let reference = |text: &str| text.parse::<ArtifactRef>().unwrap();
        let manifest = Manifest::new(reference("github:o/r@latest#m.gguf"), Want::Model, "7~1", Vec::new()).unwrap();
        asked.note(&manifest.reference, &manifest);
        assert_eq!(asked.version(&manifest.reference), None, "it has no name");
        asked.note(&manifest.reference, &manifest.clone().with_version("v1"));
        for same in
            ["github:o/r@latest#m.gguf", "github:o/r#lora.zip", "github:o/r", "github:o/r@latest:sub", "github:o/r:sub"]
        {
            assert_eq!(asked.version(&reference(same)), Some("v1"), "{same}");
        }
        for other in ["github:o/r@main", "github:o/s", "gitlab:o/r", "github:o/r:sub@v1"] {
            assert_eq!(asked.version(&reference(other)), None, "{other}");
        }
    }
}
