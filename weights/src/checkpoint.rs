//! A checkpoint: what the engine and the backends need of a model's files.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use llm_local_core::{Error, ModelFormat, ModelInfo, Result, TensorSource, TextFiles};

use crate::{
    GGUF_TEXT_FILES, GgufSource, MODEL_CONFIG, SafetensorsFiles, SafetensorsSource, gguf, is_adapter_file, is_gguf,
    is_pickle, mlx, read_json,
};

/// A model's description, tensors and text files. Headers are read, weights are not.
#[derive(Clone)]
#[non_exhaustive]
pub struct Checkpoint {
    /// The description.
    pub info: Arc<ModelInfo>,
    /// The tensors.
    pub tensors: Arc<dyn TensorSource>,
    /// Tokenizer, chat template and generation defaults: the other files of a Hugging Face folder, or the metadata of
    /// a GGUF file and the [`GGUF_TEXT_FILES`] that came with it.
    pub text: TextFiles,
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint").field("id", &self.info.id).finish_non_exhaustive()
    }
}

impl Checkpoint {
    /// Opens the model `id` from `files`: paths of its manifest (`config.json`, `model.safetensors`, `x.gguf`, ...),
    /// `/`-separated, with where each is on disk.
    ///
    /// Safetensors and `config.json` make a Hugging Face checkpoint, see [`SafetensorsFiles`] for which of several
    /// count, and the weights that MLX quantized have their logical shape. Without safetensors, the one GGUF file is the model, with the [`GGUF_TEXT_FILES`] that are there.
    ///
    /// # Errors
    /// [`Error::LoadFailed`] for missing or broken files, [`Error::UnsupportedModelFormat`] for pickles, adapters and
    /// split GGUF files. An architecture that is not understood is no error here; see [`ModelInfo::decoder`].
    pub fn open(id: &str, files: &BTreeMap<String, PathBuf>) -> Result<Self> {
        if let Some(weights) = SafetensorsFiles::choose(files)? {
            return Self::open_folder(id, files, &weights);
        }
        let name = the_gguf(id, files.keys().map(String::as_str))?;
        Self::open_gguf(id, &files[name], files)
    }

    fn open_folder(id: &str, files: &BTreeMap<String, PathBuf>, weights: &SafetensorsFiles) -> Result<Self> {
        let config = config(id, files)?;
        let mut tensors: SafetensorsSource = weights.open(files)?;
        mlx::unpack(id, &config, tensors.entries_mut())?;
        let text = files
            .iter()
            .filter(|(name, _)| !name.ends_with(".safetensors") && !is_gguf(name) && !is_pickle(name))
            .map(|(name, path)| (name.clone(), path.clone()));
        let text = TextFiles::from_files(text.collect());
        let info = ModelInfo::new(id, ModelFormat::Safetensors { config: Arc::new(config) }, tensors.entries());
        Ok(Self { info: Arc::new(info), tensors: Arc::new(tensors), text })
    }

    fn open_gguf(id: &str, path: &Path, files: &BTreeMap<String, PathBuf>) -> Result<Self> {
        let tensors = GgufSource::open(path)?;
        if tensors.is_adapter() {
            return Err(gguf::adapter(path));
        }
        let metadata = tensors.metadata().clone();
        let mut text = TextFiles::from_gguf(metadata.clone());
        for name in GGUF_TEXT_FILES {
            if let Some(path) = files.get(name) {
                text.files.insert(name.to_owned(), path.clone());
            }
        }
        let info = ModelInfo::new(id, ModelFormat::Gguf { metadata }, tensors.entries());
        Ok(Self { info: Arc::new(info), tensors: Arc::new(tensors), text })
    }
}

/// The content of the `config.json` beside safetensors weights.
fn config(id: &str, files: &BTreeMap<String, PathBuf>) -> Result<serde_json::Value> {
    read_json(files.get(MODEL_CONFIG).ok_or_else(|| without_config(id))?)
}

/// The error for safetensors weights alone.
pub(crate) fn without_config(id: &str) -> Error {
    Error::load(id, "it has safetensors weights but no config.json, which says what model they are of; add it")
}

/// The one GGUF file of those called `names`.
pub(crate) fn the_gguf<'a>(id: &str, names: impl IntoIterator<Item = &'a str>) -> Result<&'a str> {
    let names: Vec<_> = names.into_iter().collect();
    let ggufs: Vec<_> = names.iter().copied().filter(|name| is_gguf(name)).collect();
    match ggufs.as_slice() {
        [name] => Ok(name),
        [] => Err(no_weights(id, &names)),
        several => {
            Err(Error::load(id, format!("it has several GGUF files ({}); give one of them", several.join(", "))))
        }
    }
}

/// Says what there is instead of weights.
fn no_weights(id: &str, names: &[&str]) -> Error {
    let named = |is: fn(&str) -> bool| names.iter().find(|n| is(n));
    if let Some(name) = named(is_pickle) {
        return Error::unsupported_format(
            id,
            format!(
                "its weights are a pickle (`{name}`), which can run code and is never read; convert it to safetensors"
            ),
        );
    }
    if let Some(name) = named(is_adapter_file) {
        return Error::unsupported_format(
            id,
            format!("it is an adapter (`{name}`), not a model; pass it as adapter, with its base as model"),
        );
    }
    Error::load(id, format!("it has no weights; expected .safetensors or .gguf, found: {}", names.join(", ")))
}

#[cfg(test)]
mod tests;
