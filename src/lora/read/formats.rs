//! The built-in formats, in the order in which they are tried: the fields that tell them apart are unmistakable in it.

use std::path::{Path, PathBuf};

use llm_local_core::{
    Error, LoraAdapter, Result,
    lora::{AdapterFiles as Given, AdapterFormat},
};
use llm_local_weights::{GgufSource, read_json_object};
use serde_json::{Map, Value};

use super::{
    CONFIG, GGUF, MLX_LM, MLX_VLM, PEFT,
    files::{AdapterFiles, starts_as_gguf},
    gguf, mlx,
    options::ReadOptions,
    peft,
};

/// A format with an `adapter_config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Configured {
    Peft,
    MlxLm,
    MlxVlm,
}

impl Configured {
    /// The one whose fields `config` has.
    pub(super) fn of(config: &Map<String, Value>) -> Option<Self> {
        [Self::Peft, Self::MlxLm, Self::MlxVlm].into_iter().find(|format| format.is_meant_by(config))
    }

    /// The format's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Peft => PEFT,
            Self::MlxLm => MLX_LM,
            Self::MlxVlm => MLX_VLM,
        }
    }

    fn is_meant_by(self, config: &Map<String, Value>) -> bool {
        let has = |key| config.contains_key(key);
        match self {
            Self::Peft => has("peft_type"),
            Self::MlxLm => has("fine_tune_type") || has("lora_parameters"),
            Self::MlxVlm => has("rank") && has("alpha"),
        }
    }
}

/// The name of the format that `config` is one of.
pub(crate) fn config_format(config: &Map<String, Value>) -> Option<&'static str> {
    Configured::of(config).map(Configured::name)
}

/// The built-in formats, with what the caller says of adapters that do not say it.
pub(super) fn builtin(options: &ReadOptions) -> [Box<dyn AdapterFormat + '_>; 4] {
    [Box::new(Peft), Box::new(MlxLm { options }), Box::new(MlxVlm { options }), Box::new(Gguf)]
}

struct Peft;
struct MlxLm<'o> {
    options: &'o ReadOptions,
}
struct MlxVlm<'o> {
    options: &'o ReadOptions,
}
struct Gguf;

impl AdapterFormat for Peft {
    fn name(&self) -> &str {
        PEFT
    }

    fn recognizes(&self, files: &Given<'_>) -> Result<bool> {
        Ok(files.config.is_some_and(|config| Configured::Peft.is_meant_by(config)))
    }

    fn read(&self, files: &Given<'_>) -> Result<LoraAdapter> {
        let (config, bytes) = config(files)?;
        let declared = peft::Declared::new(AdapterFiles::of(files), &config, &bytes, files.allow)?;
        declared.read(&bytes, path(files, declared.weights())?, files.allow)
    }
}

impl AdapterFormat for MlxLm<'_> {
    fn name(&self) -> &str {
        MLX_LM
    }

    fn recognizes(&self, files: &Given<'_>) -> Result<bool> {
        Ok(files.config.is_some_and(|config| Configured::MlxLm.is_meant_by(config)))
    }

    fn read(&self, files: &Given<'_>) -> Result<LoraAdapter> {
        let (config, bytes) = config(files)?;
        let declared = mlx::Declared::mlx_lm(AdapterFiles::of(files), &config, self.options)?;
        declared.read(&said(bytes, self.options.scale), path(files, declared.weights())?, files.allow)
    }
}

impl AdapterFormat for MlxVlm<'_> {
    fn name(&self) -> &str {
        MLX_VLM
    }

    fn recognizes(&self, files: &Given<'_>) -> Result<bool> {
        Ok(files.config.is_some_and(|config| Configured::MlxVlm.is_meant_by(config)))
    }

    fn read(&self, files: &Given<'_>) -> Result<LoraAdapter> {
        let (config, bytes) = config(files)?;
        let declared = mlx::Declared::mlx_vlm(AdapterFiles::of(files), &config, self.options)?;
        declared.read(&said(bytes, self.options.scale), path(files, declared.weights())?, files.allow)
    }
}

impl AdapterFormat for Gguf {
    fn name(&self) -> &str {
        GGUF
    }

    /// A header that cannot be read is for `read` to explain, and several files for whoever finds that no format has them.
    fn recognizes(&self, files: &Given<'_>) -> Result<bool> {
        let Ok(Some(name)) = AdapterFiles::of(files).gguf() else { return Ok(false) };
        let path = path(files, name)?;
        Ok(starts_as_gguf(path)? && GgufSource::open(path).is_ok_and(|source| source.is_adapter()))
    }

    fn read(&self, files: &Given<'_>) -> Result<LoraAdapter> {
        let listed = AdapterFiles::of(files);
        let name = listed.gguf()?.ok_or_else(|| listed.error("there is no GGUF file"))?;
        gguf::Declared::new(listed, name, files.allow).read(path(files, name)?)
    }
}

impl<'a> AdapterFiles<'a> {
    /// The names of the files that a format gets.
    pub(super) fn of(files: &Given<'a>) -> Self {
        Self { reference: files.reference, names: files.files.keys().map(String::as_str).collect() }
    }
}

fn path<'a>(files: &Given<'a>, name: &str) -> Result<&'a PathBuf> {
    files.files.get(name).ok_or_else(|| Error::adapter(files.reference, format!("`{name}` is not among its files")))
}

/// The config with the bytes that it was read from, which its digest is of.
fn config(files: &Given<'_>) -> Result<(Map<String, Value>, Vec<u8>)> {
    let path: &Path = path(files, CONFIG)?;
    read_json_object(path).map_err(|e| e.into_adapter(files.reference))
}

/// The bytes of a config, and of what the caller adds to it.
fn said(mut config: Vec<u8>, scale: Option<f64>) -> Vec<u8> {
    if let Some(scale) = scale {
        config.extend(format!("\nscale {scale:?}").into_bytes());
    }
    config
}
