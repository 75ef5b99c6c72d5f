//! What a model is, as data: read from its config and tensor headers before any weight is.

mod config_fields;
mod config_json;
mod decoder;
mod family;
mod frequencies;
mod gguf;
mod gguf_config;
mod harmless;
mod json_fields;
mod layers_json;
mod mlx_quantization;
mod names;
mod rope;
mod rope_json;
mod row_order;
#[cfg(test)]
mod tests;

pub use config_fields::ConfigFields;
pub use decoder::{Activation, Architecture, AttentionBias, DecoderConfig, NormPlacement, QkNorm, SlidingWindow};
pub use frequencies::{ResolvedRope, RopeFrequencies};
pub use gguf::{GgufMetadata, GgufValue};
pub use mlx_quantization::MlxQuantization;
pub use names::{BaseTensor, Layout, ModuleRole, rename};
pub use rope::{Rope, RopeScaling};
pub use row_order::RowOrder;

use std::sync::Arc;

use serde_json::Value;

use crate::{Error, Result, TensorEntry};

/// A model's description: enough for `supports` and `estimate`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ModelInfo {
    /// The model's id, for messages.
    pub id: String,
    /// Which kind of files it is in.
    pub format: ModelFormat,
    /// The tensors, without their data.
    pub tensors: Arc<[TensorEntry]>,
    /// Its description as a decoder; the error says which field or architecture is not understood.
    pub decoder: Result<DecoderConfig>,
}

impl ModelInfo {
    /// Describes a model from its metadata and its tensors' headers.
    pub fn new(id: impl Into<String>, format: ModelFormat, tensors: impl Into<Arc<[TensorEntry]>>) -> Self {
        let (id, tensors) = (id.into(), tensors.into());
        let decoder = match &format {
            ModelFormat::Safetensors { config } => DecoderConfig::from_config(&id, config),
            ModelFormat::Gguf { metadata } => DecoderConfig::from_gguf(&id, metadata, &tensors),
            ModelFormat::Remote => Err(Error::unsupported_format(&id, "it has no files here that describe it")),
        };
        Self { id, format, tensors, decoder }
    }

    /// The header of the tensor `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorEntry> {
        self.tensors.iter().find(|t| t.name == name)
    }
}

/// Which kind of files a model is in, with the metadata of that kind.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ModelFormat {
    /// A Hugging Face folder: safetensors and `config.json`.
    Safetensors {
        /// The content of `config.json`.
        config: Arc<Value>,
    },
    /// A GGUF file.
    Gguf {
        /// Its metadata.
        metadata: Arc<GgufMetadata>,
    },
    /// No files: an engine elsewhere has the model.
    Remote,
}
