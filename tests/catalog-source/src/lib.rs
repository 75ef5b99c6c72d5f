//! A source of adapters as a third party writes it: the catalogue of an application, with refs such as
//! `catalog:pirate@1.0`. It says which files there are and where. Resume, verification, progress, cancellation and storage
//! are the engine's.

use std::ops::Range;

use llm_local_core::{
    AdapterSource, ArtifactRef, ArtifactSource, Error, FetchContext, Manifest, ManifestFile, Opened, Request, Result,
    Revision, Want, async_trait,
};

/// One version of an adapter: its name, the version, the URL that its files are below, and the files.
pub type Entry = (&'static str, &'static str, String, Vec<ManifestFile>);

/// The adapters that there are, newest first.
pub struct Catalog(pub Vec<Entry>);

impl Catalog {
    fn find(&self, reference: &ArtifactRef) -> Result<&Entry> {
        let is_it = |e: &&Entry| e.0 == reference.locator() && reference.revision().is_none_or(|v| v == e.1);
        self.0.iter().find(is_it).ok_or_else(|| Error::not_found(reference, "the catalogue does not list it"))
    }
}

#[async_trait]
impl ArtifactSource for Catalog {
    fn scheme(&self) -> &str {
        "catalog"
    }

    async fn resolve(&self, reference: &ArtifactRef, want: Want, _: &FetchContext) -> Result<Manifest> {
        let (_, version, _, files) = self.find(reference)?;
        Ok(Manifest::new(reference.clone(), want, *version, files.clone())?.with_version(*version))
    }

    async fn open(&self, m: &Manifest, file: &ManifestFile, _: Range<u64>, _: &FetchContext) -> Result<Opened> {
        let (_, _, url, _) = self.find(&m.reference.clone().with_revision(&m.revision)?)?;
        Ok(Opened::Request(Request::new(format!("{url}/{}", file.path))))
    }

    async fn revisions(&self, reference: &ArtifactRef, _: &FetchContext) -> Result<Vec<Revision>> {
        Ok(self.0.iter().filter(|e| e.0 == reference.locator()).map(|e| Revision::new(e.1, e.1)).collect())
    }
}

impl AdapterSource for Catalog {}
