//! The sample inside the program: a small model that tells stories, and an adapter that makes it a pirate. They make
//! the program work at once and offline, and are a source like any other, given through the explicit door.

use std::ops::Range;

use llm_local::{
    AdapterSource, ArtifactRef, Error, ModelSource, Result,
    core::{ArtifactSource, Digest, FetchContext, Manifest, ManifestFile, Opened, Want, async_trait},
};
use sha2::{Digest as _, Sha256};

/// The ref of the model.
pub(crate) const MODEL: &str = "sample:tiny-llama";
/// The ref of the adapter.
pub(crate) const ADAPTER: &str = "sample:pirate";

type Files = &'static [(&'static str, &'static [u8])];

macro_rules! files {
    ($folder:literal: $($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../sample/", $folder, "/", $name)))),*]
    };
}

const TINY_LLAMA: Files = files!("tiny-llama":
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json");
const PIRATE: Files = files!("pirate": "adapter_config.json", "adapter_model.safetensors");

/// Refs of the scheme `sample`.
#[derive(Debug)]
pub(crate) struct SampleSource;

fn files(reference: &ArtifactRef, want: Want) -> Result<Files> {
    match (reference.to_string().as_str(), want) {
        (MODEL, Want::Model) => Ok(TINY_LLAMA),
        (ADAPTER, Want::Adapter) => Ok(PIRATE),
        _ => {
            Err(Error::not_found(reference, format!("the samples are the model `{MODEL}` and the adapter `{ADAPTER}`")))
        }
    }
}

#[async_trait]
impl ArtifactSource for SampleSource {
    fn scheme(&self) -> &str {
        "sample"
    }

    async fn resolve(&self, reference: &ArtifactRef, want: Want, _: &FetchContext) -> Result<Manifest> {
        let mut whole = Sha256::new();
        let mut listed = Vec::new();
        for (name, bytes) in files(reference, want)? {
            let digest = Digest::Sha256(Sha256::digest(bytes).into());
            whole.update(format!("{name} {digest}\n"));
            listed.push(ManifestFile::new(*name, bytes.len() as u64).with_digest(digest));
        }
        let revision = Digest::Sha256(whole.finalize().into());
        Manifest::new(reference.clone(), want, revision.to_string(), listed)
    }

    /// There is one of each, in this program.
    fn at_revision(&self, reference: &ArtifactRef, _: &str) -> Result<ArtifactRef> {
        Ok(reference.clone())
    }

    async fn open(
        &self,
        manifest: &Manifest,
        file: &ManifestFile,
        range: Range<u64>,
        _: &FetchContext,
    ) -> Result<Opened> {
        files(&manifest.reference, manifest.want)?
            .iter()
            .find(|(name, _)| *name == file.path)
            .and_then(|(_, bytes)| bytes.get(range.start as usize..range.end as usize))
            .map(Opened::bytes)
            .ok_or_else(|| {
                Error::not_found(format!("{} of {}", file.path, manifest.reference), "the sample has no such bytes")
            })
    }
}

impl ModelSource for SampleSource {}
impl AdapterSource for SampleSource {}
