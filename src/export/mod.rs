//! A model as a Hugging Face folder, which transformers and whatever reads such folders loads
//! ([`Engine::export`](crate::Engine::export)).
//!
//! | module | what it holds |
//! |---|---|
//! | `config` | config.json, with what a merge changes |
//! | `text` | the files beside config and weights, and what is missing of them |
//! | `weights` | tensors in files of safetensors, and their index |

mod config;
#[cfg(test)]
mod tests;
mod text;
mod weights;

use std::path::{Path, PathBuf};

use llm_local_core::{ComputeDtype, Error, ModelFormat, ModelInfo, Result, TensorSource, TextFiles};
use llm_local_source_common::disk::check_space;
use llm_local_weights::MODEL_CONFIG;

use crate::{
    blocking::Wanted,
    new_folder::{self, NewFolder},
    tensor_file,
};
use weights::Layout;

/// What is done, in messages.
const DOING: &str = "export to";

/// The most bytes of tensors in one file, as `save_pretrained` has it, unless a single one has more.
const LARGEST_FILE: u64 = 5_000_000_000;

/// What [`Engine::export`](crate::Engine::export) wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exported {
    /// The folder.
    pub folder: PathBuf,
    /// The names of its files, config.json first and the weights last.
    pub files: Vec<String>,
    /// How many tensors there are.
    pub tensors: usize,
    /// How many of these are others than the base's.
    pub merged_tensors: usize,
    /// Bytes of all tensors together.
    pub weight_bytes: u64,
    /// What the folder lacks, because the base's source does not list it: a tokenizer, or code that the config names.
    pub notes: Vec<String>,
}

/// A model that is to be written.
pub(crate) struct Export<'a> {
    pub(crate) info: &'a ModelInfo,
    pub(crate) tensors: &'a dyn TensorSource,
    pub(crate) text: &'a TextFiles,
    /// What floats become; [`ComputeDtype::Auto`] leaves each as it is.
    pub(crate) dtype: ComputeDtype,
    pub(crate) merged_tensors: usize,
}

/// Who waits for an export.
pub(crate) struct Watch<'a> {
    pub(crate) wanted: &'a Wanted,
    /// Hears how many of how many tensors are written.
    pub(crate) told: &'a dyn Fn(usize, usize),
    /// Has the last word, once all tensors were read, and before there is anything to be seen.
    pub(crate) last: &'a dyn Fn() -> Result<()>,
}

/// Checks that an export can become `into`.
///
/// # Errors
/// [`Error::Io`] that says what to name instead.
pub(crate) fn check_free(into: &Path) -> Result<()> {
    new_folder::check_free(DOING, into)
}

/// Refuses a model that cannot be written as a Hugging Face folder, by its description alone.
///
/// # Errors
/// [`Error::Unsupported`] that says what could be exported instead.
pub(crate) fn check(info: &ModelInfo) -> Result<()> {
    config_of(info).map(drop)
}

/// The error for the model `id`, whose base is a GGUF file.
pub(crate) fn of_gguf(id: &str) -> Error {
    let reason = "its base is a GGUF file, whose tensors have other names and orders than those of a Hugging Face folder; \
                  give the folder or repository that it was made of as the base";
    Error::unsupported(format!("the export of {id}"), reason)
}

/// The config of `info`, if it can be written.
fn config_of(info: &ModelInfo) -> Result<&serde_json::Value> {
    let refused = |reason: String| Err(Error::unsupported(format!("the export of {}", info.id), reason));
    let config = match &info.format {
        ModelFormat::Safetensors { config } => config,
        ModelFormat::Gguf { .. } => return Err(of_gguf(&info.id)),
        _ => return refused("it has no files; give a base that has".into()),
    };
    let is_set = |key: &&&str| config.get(**key).is_some_and(|value| !value.is_null());
    if let Some(key) = config::QUANTIZATION.iter().find(is_set) {
        let reason = format!(
            "its config.json has `{key}`, and quantized weights cannot be exported; give the base in f32, f16 or bf16"
        );
        return refused(reason);
    }
    if let Some(entry) = info.tensors.iter().find(|entry| tensor_file::dtype(entry.encoding).is_none()) {
        let reason =
            format!("the tensor `{}` is stored as {}, and only floats and integers can be", entry.name, entry.encoding);
        return refused(format!("{reason}; give the base in f32, f16 or bf16"));
    }
    Ok(config)
}

/// Writes `model` into the new folder `into`, one tensor after another, as long as it is wanted. Blocks.
///
/// # Errors
/// Those of [`check`], [`check_free`] and [`Watch`]; [`Error::InsufficientStorage`]; [`Error::Io`]; what reading a tensor gave. Nothing is left then.
pub(crate) fn write(model: &Export<'_>, into: &Path, watch: &Watch<'_>) -> Result<Exported> {
    write_in_files_of(LARGEST_FILE, model, into, watch)
}

fn write_in_files_of(most: u64, model: &Export<'_>, into: &Path, watch: &Watch<'_>) -> Result<Exported> {
    let config = config_of(model.info)?;
    let float = tensor_file::float(model.dtype);
    let layout = Layout::new(model.tensors.entries(), float, most)?;
    check_free(into)?;
    check_space(&[(new_folder::parent(into).to_owned(), layout.bytes())])?;
    let mut folder = NewFolder::beside(DOING, into)?;
    let names = text::names(model.text);
    let notes = text::lacking(config, &names);
    let config = config::text(config, float, model.tensors.entries());
    folder.write(MODEL_CONFIG, config.as_bytes())?;
    for name in names {
        if let Some(path) = model.text.files.get(name) {
            folder.copy(name, path)?;
        }
    }
    layout.write(model.tensors, &mut folder, watch)?;
    (watch.last)()?;
    let (files, tensors) = (folder.publish(into, watch.wanted)?, model.tensors.entries().len());
    let (merged_tensors, weight_bytes) = (model.merged_tensors, layout.bytes());
    Ok(Exported { folder: into.to_owned(), files, tensors, merged_tensors, weight_bytes, notes })
}
