//! A [`LoraAdapter`] into files of any format that can express it.
//!
//! | module | what it holds |
//! |---|---|
//! | `order` | the base, and rows of queries and keys, from GGUF's order to that of the Hugging Face layout |
//! | `names` | what the base calls its modules |
//! | `peft`, `mlx`, `gguf` | what a format says, and what it cannot say |
//! | `scale` | scales that differ, where the format has one for all |
//! | `gather` | values multiplied |
//! | `files` | tensors and metadata, as bytes of a file |
//! | `folder` | a new folder, or file, that is there whole or not at all |

mod files;
mod folder;
mod gather;
mod gguf;
mod mlx;
mod names;
mod order;
mod peft;
mod scale;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use llm_local_core::{Error, LoraAdapter, ModelInfo, Result};

use crate::blocking::Wanted;

/// A format that adapters are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WriteFormat {
    /// PEFT's: `adapter_config.json` and `adapter_model.safetensors`.
    Peft,
    /// mlx-lm's: `adapter_config.json` and `adapters.safetensors`.
    MlxLm,
    /// llama.cpp's: one GGUF file.
    Gguf,
}

impl WriteFormat {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Peft, Self::MlxLm, Self::Gguf];

    /// Its name, as [`LoraAdapter::format`] has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Peft => "peft",
            Self::MlxLm => "mlx-lm",
            Self::Gguf => "gguf",
        }
    }
}

impl fmt::Display for WriteFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What [`write`](write()) wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WrittenAdapter {
    /// The files, the config first.
    pub files: Vec<PathBuf>,
    /// What the format says otherwise, or not at all, though the adapter computes the same.
    pub notes: Vec<String>,
}

/// Writes `adapter` in `format` into the new folder `into`; for [`WriteFormat::Gguf`] it may be a path that ends in
/// `.gguf`, which becomes the file. Blocks.
///
/// What is read back adds the same to the base. Values keep the float type they have, with two exceptions: where the
/// format has one scale for all modules (mlx-lm), or one alpha (GGUF), a module with another gets the ratio multiplied
/// into its B, which stays in its type where that is exact, as by powers of two, and becomes f32 else, each value rounded
/// once; and alpha is an f32 in GGUF, so that a scale is exact to f32 rounding there. Pairs of lower rank than others are
/// padded with zeros where the format has one rank (mlx-lm).
///
/// `base` is the model that the adapter is for. GGUF needs it, for the names of tensors and the order of the rows of
/// queries and keys; so does an adapter that comes from GGUF. With it, mlx-lm's keys are relative to the layers, as
/// mlx-swift-lm wants them; and modules get the names that it has for them (`language_model.` before those of a decoder
/// that is a part of a model), in PEFT's format unless the adapter comes from there.
///
/// The files are made in a temporary folder beside `into`, and get their names at the end, in one step: nothing half
/// written is left. Missing folders above `into` are made.
///
/// # Errors
/// [`Error::AdapterMergeFailed`] that names the adapter, and the module and feature that `format` cannot express, or why
/// `base` is needed, or what `base` does not have; [`Error::Io`] for what cannot be written, and for an `into` that is there and not an empty folder.
pub fn write(
    adapter: &LoraAdapter,
    format: WriteFormat,
    base: Option<&ModelInfo>,
    into: &Path,
) -> Result<WrittenAdapter> {
    write_while_wanted(adapter, format, base, into, &Wanted::new())
}

/// As [`write`](write()), unless nobody waits for it any more: then nothing is at `into`.
///
/// # Errors
/// As [`write`](write()); [`Error::Cancelled`].
pub(crate) fn write_while_wanted(
    adapter: &LoraAdapter,
    format: WriteFormat,
    base: Option<&ModelInfo>,
    into: &Path,
    wanted: &Wanted,
) -> Result<WrittenAdapter> {
    folder::check_free(into)?;
    let refused = |reason| Error::adapter(&adapter.reference, reason);
    if adapter.modules.is_empty() && adapter.replacements.is_empty() && adapter.rows.is_empty() {
        return Err(refused("it holds no pairs and no tensors, so there is nothing to write".into()));
    }
    super::sound::check(adapter).map_err(refused)?;
    let names = base.and_then(names::Names::of);
    let base = base.map(order::Described::of);
    order::check(adapter, &base).map_err(refused)?;
    let ordered = order::as_hugging_face(adapter, &base).map_err(refused)?;
    let written = |reason| refused(format!("cannot be written as {format}: {reason}"));
    let (ordered, note) = match format {
        WriteFormat::MlxLm => mlx::stacked(ordered, names.as_ref()).map_err(written)?,
        _ => (ordered, None),
    };
    let as_it_is = format == WriteFormat::Peft && adapter.format == WriteFormat::Peft.as_str();
    let ordered = match &names {
        Some(names) if format != WriteFormat::Gguf && !as_it_is => names.given_to(ordered, format).map_err(written)?,
        _ => ordered,
    };
    let files = match format {
        WriteFormat::Peft => peft::files(&ordered),
        WriteFormat::MlxLm => mlx::files(&ordered, &base),
        WriteFormat::Gguf => gguf::files(&ordered, &base),
    };
    let mut files = files.map_err(written)?;
    files.notes.extend(note);
    let is_file = format == WriteFormat::Gguf && into.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    let publish = if is_file { folder::publish_file } else { folder::publish };
    publish(&files, into, wanted).map(|written| WrittenAdapter { files: written, notes: files.notes })
}
