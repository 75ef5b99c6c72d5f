//! A release and its assets as the text of a revision.

use std::fmt;

use llm_local_core::Manifest;

/// The ids of a release and of the assets that are the files of a manifest, in their order. GitHub gives a new id to an
/// asset whose bytes are replaced, so the same ids are the same bytes. As text, also in a ref: `release~asset,asset`, which
/// no tag can be called: git allows no `~` in names. Nor can it hold a `:`, which in refs sets off a part of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pinned {
    pub(crate) release: u64,
    pub(crate) assets: Vec<u64>,
}

impl Pinned {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (release, assets) = text.split_once('~')?;
        let assets = assets.split(',').map(|id| id.parse().ok()).collect::<Option<_>>()?;
        let pinned = Self { release: release.parse().ok()?, assets };
        // Elsewhere texts are compared.
        (pinned.to_string() == text).then_some(pinned)
    }

    /// The id of the asset that is the file `name` of `manifest`.
    pub(crate) fn asset(manifest: &Manifest, name: &str) -> Option<u64> {
        let at = manifest.files.iter().position(|file| file.path == name)?;
        let pinned = Self::parse(&manifest.revision)?;
        (pinned.assets.len() == manifest.files.len()).then(|| pinned.assets[at])
    }
}

impl fmt::Display for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}~", self.release)?;
        for (i, id) in self.assets.iter().enumerate() {
            write!(f, "{}{id}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use llm_local_core::{ManifestFile, Want};

    use super::*;

    #[test]
    fn the_asset_of_a_file_is_found_by_its_place() {
        let revision = Pinned { release: 7, assets: vec![1, 22] }.to_string();
        assert_eq!(revision, "7~1,22");
        assert_eq!(Pinned::parse(&revision).unwrap().assets, [1, 22]);
        assert_eq!(["07~1", "+7~1", "7~1,", "7"].map(Pinned::parse), [None, None, None, None]);
        let files = vec![ManifestFile::new("a", 1), ManifestFile::new("b", 1)];
        let reference = "github:o/r@v1".parse().unwrap();
        let mut manifest = Manifest::new(reference, Want::Adapter, revision, files).unwrap();
        assert_eq!(Pinned::asset(&manifest, "b"), Some(22));
        assert_eq!(Pinned::asset(&manifest, "c"), None);
        for broken in ["7~1", "7", "7~1,x", "", "x~1,2", "7:1,2"] {
            manifest.revision = broken.into();
            assert_eq!(Pinned::asset(&manifest, "b"), None, "{broken}");
        }
    }
}
