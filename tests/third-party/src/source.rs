//! The source: models and adapters that are part of this crate.

use std::ops::Range;

use llm_local_core::{
    AdapterSource, ArtifactRef, ArtifactSource, Error, FetchContext, Manifest, ManifestFile, ModelSource, Opened,
    Result, Want, async_trait,
};

use crate::format;

pub(crate) const SCHEME: &str = "mem";

/// A file: its path, its bytes, and their digest, which the engine checks.
type File = (&'static str, &'static [u8], &'static str);

/// A model whose one weight is 1: it repeats its prompt once.
const POLLY: &[File] = &[
    (
        "config.json",
        br#"{"architectures":["ParrotForCausalLM"],"model_type":"parrot"}"#,
        "sha256:fa6e6e7e9b51e40fe7031db83bef92b3a0aa4ad57c6dd0b7e0e49a1a1f663519",
    ),
    (
        "model.safetensors",
        b"H\0\0\0\0\0\0\0{\"voice.weight\":{\"dtype\":\"F32\",\"shape\":[1,1],\"data_offsets\":[0,4]}}     \0\0\x80?",
        "sha256:fe091b05ecb9ac8957acbb3c24b3a26cb32bd4fb938b244fa6a8dd5abdea4dcc",
    ),
];

/// An adapter of rank 1 that adds 1 to the weight: the parrot says everything twice.
const TWICE: &[File] = &[
    (
        "adapter_config.json",
        br#"{"peft_type":"LORA","r":1,"lora_alpha":1,"target_modules":["voice"]}"#,
        "sha256:a062cdcc02457bd4aa8b7cc1f200b04ce5850c2b85bd0a6d14a823594a9ecad9",
    ),
    (
        "adapter_model.safetensors",
        b"\xb8\0\0\0\0\0\0\0{\"base_model.model.voice.lora_A.weight\":{\"dtype\":\"F32\",\"shape\":[1,1],\"data_offsets\":[0,4]},\"base_model.model.voice.lora_B.weight\":{\"dtype\":\"F32\",\"shape\":[1,1],\"data_offsets\":[4,8]}}   \0\0\x80?\0\0\x80?",
        "sha256:b36664959512d695f5c46242d33c8652340aa52dcd27122fb996add80f0e4e56",
    ),
];

/// An adapter of rank 2, in the format of this crate, that adds 2 to the weight: the parrot says everything three times.
const THRICE: &[File] = &[(
    format::FILE,
    br#"{"kind":"factors","scale":0.5,"modules":{"voice":{"a":[[2],[1]],"b":[[1.5,1]]}}}"#,
    "sha256:2b8e682b4d144d43231868dc4dbba6e3286f11ee0e9f1b7bc9081fa3b5e861d3",
)];

/// One whose factors do not go together.
const MUTE: &[File] = &[(
    format::FILE,
    br#"{"kind":"factors","scale":0.5,"modules":{"voice":{"a":[[2],[1]],"b":[[1.5]]}}}"#,
    "sha256:19123a4f0a88f06cd1290d99a52aed58b81edb0800d431d76e7a824b42b53693",
)];

/// The source of refs such as `mem:polly` (a model) and `mem:twice` (an adapter).
#[derive(Debug)]
pub struct Memory;

fn files(reference: &ArtifactRef, want: Want, cx: &FetchContext) -> Result<&'static [File]> {
    if cx.cancel.is_cancelled() {
        return Err(Error::Cancelled);
    }
    match (want, reference.locator(), reference.revision()) {
        (Want::Model, "polly", None) => Ok(POLLY),
        (Want::Adapter, "twice", None) => Ok(TWICE),
        (Want::Adapter, "thrice", None) => Ok(THRICE),
        (Want::Adapter, "mute", None) => Ok(MUTE),
        _ => Err(Error::not_found(
            reference,
            "there is the model mem:polly, and the adapters mem:twice, mem:thrice and mem:mute, without revisions",
        )),
    }
}

#[async_trait]
impl ArtifactSource for Memory {
    fn scheme(&self) -> &str {
        SCHEME
    }

    async fn resolve(&self, reference: &ArtifactRef, want: Want, cx: &FetchContext) -> Result<Manifest> {
        let listed = files(reference, want, cx)?
            .iter()
            .map(|(path, bytes, digest)| Ok(ManifestFile::new(*path, bytes.len() as u64).with_digest(digest.parse()?)));
        Manifest::new(reference.clone(), want, env!("CARGO_PKG_VERSION"), listed.collect::<Result<_>>()?)
    }

    async fn open(
        &self,
        manifest: &Manifest,
        file: &ManifestFile,
        range: Range<u64>,
        cx: &FetchContext,
    ) -> Result<Opened> {
        let files = files(&manifest.reference, manifest.want, cx)?;
        let bytes = files.iter().find(|(path, ..)| *path == file.path).map(|(_, bytes, _)| bytes);
        match bytes.and_then(|bytes| bytes.get(range.start as usize..range.end as usize)) {
            Some(bytes) => Ok(Opened::bytes(bytes)),
            None => {
                Err(Error::not_found(format!("{} {range:?} of {}", file.path, manifest.reference), "no such bytes"))
            }
        }
    }
}

impl ModelSource for Memory {}
impl AdapterSource for Memory {}
