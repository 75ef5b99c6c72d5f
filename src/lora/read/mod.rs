//! Files into a [`LoraAdapter`]. Which format they are is decided by what they hold, never by the shape of a tensor.

mod peft;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, io::Read, path::PathBuf};

use llm_local_core::{ArtifactRef, Error, LoraAdapter, Result};
use llm_local_weights::{ADAPTER_CONFIG, is_pickle, parse_json_object, read_json_object};
use serde_json::{Map, Value};

use super::message::some_of;
pub(crate) use peft::Declared;

/// The file that says what an adapter is, in PEFT's format and in mlx-lm's.
pub(crate) const CONFIG: &str = ADAPTER_CONFIG;

/// The files of one adapter, by their names in its artifact, wherever they are.
struct AdapterFiles<'a> {
    reference: &'a ArtifactRef,
    names: Vec<&'a str>,
}

/// Reads the adapter `reference` from its `files`, given by name.
///
/// The format is told by content: an `adapter_config.json` with `peft_type` is PEFT's.
///
/// # Errors
/// [`Error::AdapterMergeFailed`] naming the file, field or tensor for whatever is broken, incomplete, not finite,
/// without effect, or not supported yet: mlx-lm's, mlx-vlm's and GGUF adapters, and tensors without a config.
pub fn read(reference: &ArtifactRef, files: &BTreeMap<String, PathBuf>) -> Result<LoraAdapter> {
    let listed = AdapterFiles { reference, names: files.keys().map(String::as_str).collect() };
    let Some(path) = files.get(CONFIG) else {
        return Err(listed.without_config(|name| starts_with(&files[name], b"GGUF")));
    };
    let (config, bytes) = read_json_object(path).map_err(|e| e.into_adapter(reference))?;
    let declared = listed.declared(&config)?;
    declared.read(&bytes, &files[declared.weights()])
}

/// What the adapter `reference`, with files called `names` that are elsewhere, says of itself: `config` is the content of
/// its [`CONFIG`], if it has one.
///
/// # Errors
/// As [`read`], as far as names and config tell.
pub(crate) fn declare<'a>(
    reference: &'a ArtifactRef,
    names: impl IntoIterator<Item = &'a str>,
    config: Option<&[u8]>,
) -> Result<Declared<'a>> {
    let files = AdapterFiles { reference, names: names.into_iter().collect() };
    // What is called GGUF is taken for it: it is refused either way.
    let Some(config) = config else { return Err(files.without_config(|_| Ok(true))) };
    let shown = format!("{CONFIG} of {reference}");
    let config = parse_json_object(config, &shown).map_err(|e| e.into_adapter(reference))?;
    files.declared(&config)
}

/// The formats that have an `adapter_config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Peft,
    MlxLm,
    MlxVlm,
}

impl Format {
    /// The first whose own fields are there, in the order in which the fields are unmistakable.
    fn of(config: &Map<String, Value>) -> Option<Self> {
        let has = |key| config.contains_key(key);
        if has("peft_type") {
            Some(Self::Peft)
        } else if has("fine_tune_type") || has("lora_parameters") {
            Some(Self::MlxLm)
        } else if has("rank") && has("alpha") {
            Some(Self::MlxVlm)
        } else {
            None
        }
    }
}

impl<'a> AdapterFiles<'a> {
    /// What the adapter with this config says of itself.
    fn declared(self, config: &Map<String, Value>) -> Result<Declared<'a>> {
        match Format::of(config) {
            Some(Format::Peft) => Declared::new(self, config),
            Some(Format::MlxLm) => Err(self.unsupported("mlx-lm's format (`fine_tune_type`, `lora_parameters`)")),
            Some(Format::MlxVlm) => Err(self.unsupported("mlx-vlm's format (top-level `rank` and `alpha`)")),
            None => Err(self.error(format!(
                "{CONFIG} does not say which format it is: expected `peft_type` (PEFT), or `fine_tune_type` or \
                 `lora_parameters` (mlx-lm); found {}",
                if config.is_empty() { "no fields".into() } else { some_of(&config.keys().collect::<Vec<_>>()) }
            ))),
        }
    }

    fn error(&self, reason: impl Into<String>) -> Error {
        Error::adapter(self.reference, reason)
    }

    fn unsupported(&self, format: &str) -> Error {
        self.error(format!("it is in {format}, which is not supported yet; convert it to PEFT's format"))
    }

    /// Names of the files, for messages.
    fn listing(&self) -> String {
        if self.names.is_empty() { "no files".into() } else { some_of(&self.names) }
    }

    fn first_ending(&self, suffix: &str) -> Option<&'a str> {
        self.names.iter().copied().find(|name| name.to_ascii_lowercase().ends_with(suffix))
    }

    /// Why files without a config cannot be used; `is_gguf` looks into the file of a name.
    fn without_config(&self, is_gguf: impl FnOnce(&str) -> Result<bool>) -> Error {
        if let Some(inner) = self.names.iter().find(|name| name.ends_with(&format!("/{CONFIG}"))) {
            let folder = &inner[..inner.len() - CONFIG.len() - 1];
            return self.error(format!("{CONFIG} is not at its top but in the folder `{folder}`; name that folder"));
        }
        if let Some(name) = self.first_ending(".gguf") {
            return match is_gguf(name) {
                Ok(true) => self.unsupported("the GGUF format"),
                Ok(false) => self.error(format!("`{name}` does not start with GGUF: it is damaged or something else")),
                Err(error) => error.into_adapter(self.reference),
            };
        }
        if let Some(name) = self.first_ending(".safetensors") {
            return self.error(format!(
                "`{name}` comes without {CONFIG}, so its format and its scale are unknown; put the {CONFIG} that was \
                 saved with it beside it"
            ));
        }
        if let Some(error) = self.pickle() {
            return error;
        }
        self.error(format!("expected {CONFIG} and adapter_model.safetensors; found {}", self.listing()))
    }

    /// The refusal of weights that only a pickle holds, if there is one.
    fn pickle(&self) -> Option<Error> {
        let name = self.names.iter().find(|name| is_pickle(name))?;
        Some(self.error(format!(
            "its weights are a pickle (`{name}`), and a pickle runs code when it is read; save them as \
             adapter_model.safetensors (PEFT: save_pretrained(..., safe_serialization=True))"
        )))
    }
}

fn starts_with(path: &PathBuf, magic: &[u8; 4]) -> Result<bool> {
    let mut start = [0; 4];
    let mut file = fs_err::File::open(path).map_err(|e| Error::io("open", path, e))?;
    match file.read_exact(&mut start) {
        Ok(()) => Ok(&start == magic),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(Error::io("read", path, e)),
    }
}
