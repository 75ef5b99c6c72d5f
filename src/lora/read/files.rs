//! The names of an adapter's files, and why they are none that can be read.

use std::{
    io::{ErrorKind, Read},
    path::Path,
};

use llm_local_core::{ArtifactRef, Error, Result};
use llm_local_weights::{is_gguf, is_pickle, is_safetensors};

use super::{CONFIG, WITHOUT_CONFIG};
use crate::lora::message::some_of;

/// The files of one adapter, by their names in its artifact, wherever they are.
#[derive(Debug, Clone)]
pub(super) struct AdapterFiles<'a> {
    pub(super) reference: &'a ArtifactRef,
    pub(super) names: Vec<&'a str>,
}

impl<'a> AdapterFiles<'a> {
    pub(super) fn error(&self, reason: impl Into<String>) -> Error {
        Error::adapter(self.reference, reason)
    }

    /// Names of the files, for messages.
    pub(super) fn listing(&self) -> String {
        if self.names.is_empty() { "no files".into() } else { some_of(&self.names) }
    }

    /// The file beside the config that holds the tensors: `own`, which the format itself writes, if it is there, for a
    /// renamed file is common, but which of several belongs to the config nothing says.
    pub(super) fn weights(&self, own: &str) -> Result<&'a str> {
        self.tensors(Some(own), Some(CONFIG))
    }

    /// The file of tensors that comes without a config: `own`, which their format itself writes, if somebody says the format
    /// and it is there, or one alone.
    pub(super) fn bare(&self, own: Option<&str>) -> Result<&'a str> {
        self.tensors(own, None)
    }

    /// The file of tensors that belongs to `config`, if that is there: `own`, or one alone.
    fn tensors(&self, own: Option<&str>, config: Option<&str>) -> Result<&'a str> {
        if let Some(name) = self.names.iter().find(|name| Some(**name) == own) {
            return Ok(name);
        }
        let beside = config.map(|config| format!(" beside {config}")).unwrap_or_default();
        match self.top(is_safetensors)[..] {
            [one] => Ok(one),
            [] => Err(self.pickle().unwrap_or_else(|| {
                let missing = own.unwrap_or("a safetensors file");
                self.error(format!("{missing} is missing{beside}; found {}", self.listing()))
            })),
            ref several => {
                let which = config.map_or("is meant".to_owned(), |config| format!("belongs to {config}"));
                let alone = own.map_or("one file alone".to_owned(), |own| format!("{own} or one file alone"));
                let fix = match (config, own) {
                    (Some(_), _) => "",
                    (None, Some(_)) => "; name it",
                    (None, None) => {
                        "; name it, or give its `format` (`--adapter-format` of the program), whose own file is taken then: \
                         adapter_model.safetensors of peft, adapters.safetensors of mlx-lm"
                    }
                };
                let found = some_of(several);
                Err(self.error(format!(
                    "which safetensors file {which} is not clear: expected {alone}; found {found}{fix}"
                )))
            }
        }
    }

    /// The one GGUF file by its name, if there is one; whether it is one its content says.
    pub(super) fn gguf(&self) -> Result<Option<&'a str>> {
        match self.top(is_gguf)[..] {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            ref several => Err(self.error(format!(
                "which GGUF file is meant is not clear: expected one alone, found {}; name it",
                some_of(several)
            ))),
        }
    }

    /// Files of a kind that lie in no folder.
    fn top(&self, is_kind: impl Fn(&str) -> bool) -> Vec<&'a str> {
        self.names.iter().copied().filter(|name| !name.contains('/') && is_kind(name)).collect()
    }

    /// Why files that no format recognizes cannot be used, though none of them is a config.
    pub(super) fn without_config(&self) -> Error {
        if let Some(inner) = self.names.iter().find(|name| name.ends_with(&format!("/{CONFIG}"))) {
            let folder = &inner[..inner.len() - CONFIG.len() - 1];
            return self.error(format!("{CONFIG} is not at its top but in the folder `{folder}`; name that folder"));
        }
        if let Some(name) = self.names.iter().find(|name| is_safetensors(name)) {
            return self.error(format!(
                "`{name}` comes without {CONFIG}, so its format and its scale are unknown; put the {CONFIG} that was \
                 saved with it beside it, or give both: {WITHOUT_CONFIG}"
            ));
        }
        if let Some(error) = self.pickle() {
            return error;
        }
        let numpy = |name: &&&str| name.ends_with(".npz");
        if let Some(name) = self.names.iter().find(numpy) {
            return self.error(format!(
                "`{name}` is of an mlx-lm that saved no safetensors; load and save its arrays with mx.save_safetensors"
            ));
        }
        self.error(format!("expected {CONFIG} and adapter_model.safetensors; found {}", self.listing()))
    }

    /// The refusal of weights that only a pickle holds, if there is one.
    pub(super) fn pickle(&self) -> Option<Error> {
        let name = self.names.iter().find(|name| is_pickle(name))?;
        Some(self.error(format!(
            "its weights are a pickle (`{name}`), and a pickle runs code when it is read; save them as \
             adapter_model.safetensors (PEFT: save_pretrained(..., safe_serialization=True))"
        )))
    }
}

/// Whether the file at `path` begins as GGUF files do.
pub(super) fn starts_as_gguf(path: &Path) -> Result<bool> {
    let mut start = [0; 4];
    let mut file = fs_err::File::open(path).map_err(|e| Error::io("open", path, e))?;
    match file.read_exact(&mut start) {
        Ok(()) => Ok(&start == b"GGUF"),
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(Error::io("read", path, e)),
    }
}
