//! Files into a [`LoraAdapter`]. Which format they are is decided by what they hold, never by the shape of a tensor.
//!
//! | module | what it holds |
//! |---|---|
//! | `formats` | the built-in formats, in the order in which they are tried |
//! | `peft`, `mlx`, `gguf` | a reader each |
//! | `bare` | tensors without a config, of which the caller says format and scale |
//! | `declared` | what an adapter says of itself whose tensors are not on this machine yet |
//! | `plan` | what a file's header holds: what an outline and an adapter are both made of |
//! | `files`, `value`, `digest`, `options` | names of files, values of configs, what tells adapters apart, what a caller can add |

mod bare;
mod declared;
mod digest;
mod files;
mod formats;
mod gguf;
mod mlx;
mod options;
mod peft;
mod plan;
mod value;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use llm_local_core::{
    Allowance, ArtifactRef, Error, LoraAdapter, Result,
    lora::{AdapterFiles as Given, AdapterFormat, BareFormat},
};
use llm_local_weights::{ADAPTER_CONFIG, read_json_object};
use serde_json::{Map, Value};

use self::files::{AdapterFiles, starts_as_gguf};
use super::{message::some_of, sound};

pub(crate) use declared::{declare, declare_if_builtin};
pub(crate) use formats::config_format;
pub(crate) use gguf::gguf_base;
pub(super) use mlx::DECODER as MLX_DECODER;
pub use options::ReadOptions;
pub(super) use peft::{PREFIX as PEFT_PREFIX, in_order_of_registration};

/// The file that says what an adapter is, in PEFT's format and in mlx-lm's.
pub(crate) const CONFIG: &str = ADAPTER_CONFIG;

/// What to do about an adapter without a config.
const WITHOUT_CONFIG: &str =
    "`scale` and `format` of the adapter in a spec, `--scale` and `--adapter-format` of the program";

/// The names of the built-in formats.
const PEFT: &str = BareFormat::Peft.as_str();
const MLX_LM: &str = BareFormat::MlxLm.as_str();
const MLX_VLM: &str = "mlx-vlm";
const GGUF: &str = "gguf";

/// Reads the adapter `reference` from its `files`, given by name.
///
/// The format is told by content, and tried in this order: an `adapter_config.json` with `peft_type` is PEFT's, with
/// `fine_tune_type` or `lora_parameters` mlx-lm's, with `rank` and `alpha` mlx-vlm's; a GGUF file whose `general.type` is
/// `adapter` is one of llama.cpp.
///
/// # Errors
/// [`Error::AdapterMergeFailed`] naming the file, field or tensor for whatever is broken, incomplete, not finite, without
/// effect, or not supported; and for tensors without a config, of which nothing says format and scale ([`read_with`]).
pub fn read(reference: &ArtifactRef, files: &BTreeMap<String, PathBuf>) -> Result<LoraAdapter> {
    read_with(reference, files, ReadOptions::default(), &[])
}

/// As [`read`], with what `options` say of files that do not say it, and with the formats `extra` beside the built-in
/// ones ([`llm_local_core::Registry::adapter_formats`]). The digest of what one of these reads is taken of all its files.
///
/// # Errors
/// As [`read`]; those of the formats; and [`Error::AdapterMergeFailed`] for an adapter that two formats recognize, naming
/// both, and for options that the files themselves answer.
pub fn read_with(
    reference: &ArtifactRef,
    files: &BTreeMap<String, PathBuf>,
    options: ReadOptions,
    extra: &[Arc<dyn AdapterFormat>],
) -> Result<LoraAdapter> {
    read_any(reference, files, &options, extra).map_err(|e| e.into_adapter(reference))
}

fn read_any(
    reference: &ArtifactRef,
    files: &BTreeMap<String, PathBuf>,
    options: &ReadOptions,
    extra: &[Arc<dyn AdapterFormat>],
) -> Result<LoraAdapter> {
    let config = files.get(CONFIG).map(|path| read_json_object(path)).transpose()?.map(|(config, _)| config);
    let given = Given::new(reference, files, config.as_ref()).with_allow(&options.allow);
    let listed = AdapterFiles::of(&given);
    let builtin = formats::builtin(options);
    let mut recognizing: Vec<(&dyn AdapterFormat, bool)> = Vec::new();
    for format in &builtin {
        if format.recognizes(&given)? {
            recognizing.push((&**format, true));
            break;
        }
    }
    for format in extra {
        if format.recognizes(&given)? {
            recognizing.push((&**format, false));
        }
    }
    match recognizing[..] {
        [(format, is_builtin)] => {
            refuse_needless(&listed, format.name(), options)?;
            let mut adapter = format.read(&given)?;
            if !is_builtin {
                sound::check(&adapter).map_err(|reason| Error::adapter(reference, reason))?;
                // Loaded models are told apart by it, and the application by the other.
                adapter.digest = digest::of_files(format.name(), files)?;
                adapter.format = format.name().to_owned();
            }
            Ok(adapter)
        }
        [] if config.is_none() && options.is_of_bare() => {
            let declared = bare::Declared::new(listed, options)?;
            declared.read(&files[declared.weights()])
        }
        [] => Err(unrecognized(&listed, config.as_ref(), files, &options.allow)?),
        [(one, _), (other, _), ..] => Err(listed.error(format!(
            "the formats `{}` and `{}` both recognize it, so which of them it is is not clear; leave one of them out",
            one.name(),
            other.name()
        ))),
    }
}

/// Refuses options that the files answer themselves.
fn refuse_needless(files: &AdapterFiles<'_>, format: &str, options: &ReadOptions) -> Result<()> {
    if let Some(other) = options.format
        && other.as_str() != format
    {
        let other = other.as_str();
        return Err(files.error(format!("its format was given as {other}, but its files say that it is {format}")));
    }
    match options.scale {
        Some(scale) if !scale.is_finite() || scale == 0.0 => {
            Err(files.error(format!("its scale is given as {scale}; expected a finite number other than 0")))
        }
        Some(scale) if format != MLX_LM && format != MLX_VLM => {
            Err(files
                .error(format!("its scale was given as {scale}, but an adapter in the format {format} has its own")))
        }
        _ => Ok(()),
    }
}

/// Why files that no format recognizes cannot be used.
fn unrecognized(
    listed: &AdapterFiles<'_>,
    config: Option<&Map<String, Value>>,
    files: &BTreeMap<String, PathBuf>,
    allow: &BTreeSet<Allowance>,
) -> Result<Error> {
    if let Some(name) = listed.gguf()? {
        if !starts_as_gguf(&files[name])? {
            return Ok(listed.error(format!("`{name}` does not start with GGUF: it is damaged or something else")));
        }
        // It is no adapter, or its header is broken: its reader says which.
        let read = gguf::Declared::new(listed.clone(), name, allow).read(&files[name]);
        return Ok(match read {
            Err(error) => error,
            Ok(_) => listed.error(format!("`{name}` changed while it was read")),
        });
    }
    Ok(match config {
        Some(config) => unknown_config(listed, config),
        None => listed.without_config(),
    })
}

/// Whether `files` are an adapter that can be read, with whatever a spec may say of them.
///
/// # Errors
/// As [`read_with`], of an adapter that no spec can make usable.
pub(crate) fn check_readable(
    reference: &ArtifactRef,
    files: &BTreeMap<String, PathBuf>,
    extra: &[Arc<dyn AdapterFormat>],
) -> Result<()> {
    let read = |options: ReadOptions| read_with(reference, files, options.lenient(), extra).map(drop);
    let scaled = || ReadOptions::new().with_scale(1.0);
    let Err(error) = read(ReadOptions::new()) else { return Ok(()) };
    let others = [scaled(), scaled().with_format(BareFormat::Peft), scaled().with_format(BareFormat::MlxLm)];
    if others.into_iter().any(|options| read(options).is_ok()) { Ok(()) } else { Err(error) }
}

/// Why a config that no format recognizes cannot be used.
fn unknown_config(files: &AdapterFiles<'_>, config: &Map<String, Value>) -> Error {
    files.error(format!(
        "{CONFIG} does not say which format it is: expected `peft_type` (PEFT), `fine_tune_type` or \
         `lora_parameters` (mlx-lm), or `rank` and `alpha` (mlx-vlm); found {}",
        if config.is_empty() { "no fields".into() } else { some_of(&config.keys().collect::<Vec<_>>()) }
    ))
}
