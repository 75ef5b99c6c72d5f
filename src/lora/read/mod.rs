//! Files into a [`LoraAdapter`]. Which format they are is decided by what they hold, never by the shape of a tensor.

mod peft;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, io::Read, path::PathBuf};

use llm_local_core::{ArtifactRef, Error, LoraAdapter, Result};
use llm_local_weights::{is_pickle, read_json_object};
use serde_json::{Map, Value};

use super::message::some_of;

/// The file that says what an adapter is, in PEFT's format and in mlx-lm's.
const CONFIG: &str = "adapter_config.json";

/// The files of one adapter, by their name in its artifact.
struct AdapterFiles<'a> {
    reference: &'a ArtifactRef,
    by_name: &'a BTreeMap<String, PathBuf>,
}

/// Reads the adapter `reference` from its `files`, given by name.
///
/// The format is told by content: an `adapter_config.json` with `peft_type` is PEFT's.
///
/// # Errors
/// [`Error::AdapterMergeFailed`] naming the file, field or tensor for whatever is broken, incomplete, not finite,
/// without effect, or not supported yet: mlx-lm's, mlx-vlm's and GGUF adapters, and tensors without a config.
pub fn read(reference: &ArtifactRef, files: &BTreeMap<String, PathBuf>) -> Result<LoraAdapter> {
    let files = AdapterFiles { reference, by_name: files };
    let Some(path) = files.by_name.get(CONFIG) else {
        return Err(files.without_config());
    };
    let (config, bytes) = read_json_object(path).map_err(|e| e.into_adapter(reference))?;
    match Format::of(&config) {
        Some(Format::Peft) => peft::read(&files, &bytes, &config),
        Some(Format::MlxLm) => Err(files.unsupported("mlx-lm's format (`fine_tune_type`, `lora_parameters`)")),
        Some(Format::MlxVlm) => Err(files.unsupported("mlx-vlm's format (top-level `rank` and `alpha`)")),
        None => Err(files.error(format!(
            "{CONFIG} does not say which format it is: expected `peft_type` (PEFT), or `fine_tune_type` or \
             `lora_parameters` (mlx-lm); found {}",
            if config.is_empty() { "no fields".into() } else { some_of(&config.keys().collect::<Vec<_>>()) }
        ))),
    }
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

impl AdapterFiles<'_> {
    fn error(&self, reason: impl Into<String>) -> Error {
        Error::adapter(self.reference, reason)
    }

    fn unsupported(&self, format: &str) -> Error {
        self.error(format!("it is in {format}, which is not supported yet; convert it to PEFT's format"))
    }

    /// Names of the files, for messages.
    fn listing(&self) -> String {
        if self.by_name.is_empty() { "no files".into() } else { some_of(&self.by_name.keys().collect::<Vec<_>>()) }
    }

    fn first_ending(&self, suffix: &str) -> Option<(&String, &PathBuf)> {
        self.by_name.iter().find(|(name, _)| name.to_ascii_lowercase().ends_with(suffix))
    }

    /// Why files without a config cannot be used.
    fn without_config(&self) -> Error {
        if let Some(inner) = self.by_name.keys().find(|name| name.ends_with(&format!("/{CONFIG}"))) {
            let folder = &inner[..inner.len() - CONFIG.len() - 1];
            return self.error(format!("{CONFIG} is not at its top but in the folder `{folder}`; name that folder"));
        }
        if let Some((name, path)) = self.first_ending(".gguf") {
            return match starts_with(path, b"GGUF") {
                Ok(true) => self.unsupported("the GGUF format"),
                Ok(false) => self.error(format!("`{name}` does not start with GGUF: it is damaged or something else")),
                Err(error) => error.into_adapter(self.reference),
            };
        }
        if let Some((name, _)) = self.first_ending(".safetensors") {
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
        let name = self.by_name.keys().find(|name| is_pickle(name))?;
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
