//! What an adapter says of itself whose tensors are not on this machine yet.

use llm_local_core::{ArtifactRef, Error, Result, TensorEntry};
use llm_local_weights::{Head, parse_json_object};
use serde_json::{Map, Value};

use super::{
    CONFIG, GGUF, bare, files::AdapterFiles, formats::Configured, gguf, mlx, options::ReadOptions, peft,
    refuse_needless, unknown_config,
};
use crate::lora::outline::AdapterOutline;

/// What an adapter says of itself, as far as that can be told from names and config.
pub(crate) enum Declared<'a> {
    /// PEFT's.
    Peft(peft::Declared<'a>),
    /// mlx-lm's, or mlx-vlm's.
    Mlx(mlx::Declared<'a>),
    /// llama.cpp's, which says all of it in its file.
    Gguf(gguf::Declared<'a>),
    /// Tensors of which the caller says what they are.
    Bare(bare::Declared<'a>),
}

/// What the adapter `reference`, with files called `names` that are elsewhere, says of itself: `config` is the content of
/// its [`CONFIG`], if it has one. `options` are what the caller says of it.
///
/// # Errors
/// As [`super::read`], as far as names and config tell.
pub(crate) fn declare<'a>(
    reference: &'a ArtifactRef,
    names: impl IntoIterator<Item = &'a str>,
    config: Option<&[u8]>,
    options: &ReadOptions,
) -> Result<Declared<'a>> {
    let files = AdapterFiles { reference, names: names.into_iter().collect() };
    if let Some(declared) = recognized(&files, config, options)? {
        return Ok(declared);
    }
    files.gguf()?;
    if config.is_none() && options.is_of_bare() {
        return bare::Declared::new(files, options).map(Declared::Bare);
    }
    Err(match parsed(reference, config)? {
        Some(config) => unknown_config(&files, &config),
        None => files.without_config(),
    })
}

/// As [`declare`], where there are formats of plugins, which tell by content that is elsewhere: `None` for what no built-in
/// format recognizes.
///
/// # Errors
/// As [`declare`], for what a built-in format recognizes.
pub(crate) fn declare_if_builtin<'a>(
    reference: &'a ArtifactRef,
    names: impl IntoIterator<Item = &'a str>,
    config: Option<&[u8]>,
    options: &ReadOptions,
) -> Result<Option<Declared<'a>>> {
    recognized(&AdapterFiles { reference, names: names.into_iter().collect() }, config, options)
}

fn recognized<'a>(
    files: &AdapterFiles<'a>,
    config: Option<&[u8]>,
    options: &ReadOptions,
) -> Result<Option<Declared<'a>>> {
    let parsed = parsed(files.reference, config)?;
    if let (Some(config), Some(bytes)) = (&parsed, config)
        && let Some(format) = Configured::of(config)
    {
        refuse_needless(files, format.name(), options)?;
        let files = files.clone();
        let declared = match format {
            Configured::Peft => peft::Declared::new(files, config, bytes, &options.allow).map(Declared::Peft),
            Configured::MlxLm => mlx::Declared::mlx_lm(files, config, options).map(Declared::Mlx),
            Configured::MlxVlm => mlx::Declared::mlx_vlm(files, config, options).map(Declared::Mlx),
        };
        return declared.map(Some);
    }
    // Which of several is meant is for who finds that no format has them.
    let Some(name) = files.gguf().ok().flatten() else { return Ok(None) };
    refuse_needless(files, GGUF, options)?;
    Ok(Some(Declared::Gguf(gguf::Declared::new(files.clone(), name, &options.allow))))
}

fn parsed(reference: &ArtifactRef, config: Option<&[u8]>) -> Result<Option<Map<String, Value>>> {
    let shown = format!("{CONFIG} of {reference}");
    let parse = |bytes| parse_json_object(bytes, &shown).map_err(|e| e.into_adapter(reference));
    config.map(parse).transpose()
}

impl<'a> Declared<'a> {
    /// The name of the file that has its tensors.
    pub(crate) fn weights(&self) -> &'a str {
        match self {
            Self::Peft(declared) => declared.weights(),
            Self::Mlx(declared) => declared.weights(),
            Self::Gguf(declared) => declared.weights(),
            Self::Bare(declared) => declared.weights(),
        }
    }

    /// The adapter without its values, by the tensors that the header of its safetensors file lists.
    ///
    /// # Errors
    /// As [`super::read`], as far as the header tells. Of a GGUF file more than the tensors is needed:
    /// [`Declared::outline_by_head`].
    pub(crate) fn outline(&self, entries: &[TensorEntry]) -> Result<AdapterOutline> {
        match self {
            Self::Peft(declared) => declared.outline(entries),
            Self::Mlx(declared) => declared.outline(entries),
            Self::Gguf(declared) => declared.outline(&Default::default(), entries),
            Self::Bare(declared) => declared.outline(entries),
        }
    }

    /// Whether the head of its weights is one of this format, as far as names and config could not tell: a GGUF file may be
    /// much else, or none.
    pub(crate) fn is_recognized_by(&self, head: &Result<Head>) -> bool {
        match (self, head) {
            (Self::Gguf(_), Ok(head)) => {
                let metadata = head.gguf_metadata().ok().flatten().unwrap_or_default();
                gguf::is_adapter(&metadata)
            }
            (Self::Gguf(_), Err(Error::LoadFailed { .. } | Error::UnsupportedModelFormat { .. })) => false,
            _ => true,
        }
    }

    /// The adapter without its values, by the head of its weights.
    ///
    /// # Errors
    /// As [`super::read`], as far as the header tells, and those of [`Head::entries`].
    pub(crate) fn outline_by_head(&self, head: &Head) -> Result<AdapterOutline> {
        match self {
            Self::Gguf(declared) => {
                let metadata = head.gguf_metadata()?.unwrap_or_default();
                declared.outline(&metadata, &head.entries()?)
            }
            _ => self.outline(&head.entries()?),
        }
    }
}
