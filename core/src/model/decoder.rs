//! A decoder-only transformer, described as data.

use serde_json::Value;

use super::GgufMetadata;
use crate::{Error, Result, TensorEntry};

/// A decoder-only transformer, described as data.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DecoderConfig {
    /// The longest context the model was made for, in tokens.
    pub max_positions: usize,
}

impl DecoderConfig {
    /// Reads `config.json` of a Hugging Face folder.
    pub fn from_config(id: &str, _config: &Value) -> Result<Self> {
        Err(Error::unsupported_format(id, "no reader yet"))
    }

    /// Reads the metadata of a GGUF file.
    pub fn from_gguf(id: &str, _metadata: &GgufMetadata, _tensors: &[TensorEntry]) -> Result<Self> {
        Err(Error::unsupported_format(id, "no reader yet"))
    }
}
