//! The description of a merged base.

use std::sync::Arc;

use llm_local_core::{ModelFormat, ModelInfo, model::GgufValue};
use serde_json::json;

use super::FitReport;
use crate::lora::quantized::{Given, merged_entries};

impl FitReport {
    /// The description of the base with the adapters merged in: that of the base, unless its embedding and its head are
    /// untied, its vocabulary grows, or a quantized tensor changes, which then is of floats. For the first two
    /// config.json, or the metadata of a GGUF file, says so too.
    pub fn merged_info(&self, info: &Arc<ModelInfo>) -> Arc<ModelInfo> {
        self.merged_info_as(info, Given::Dequantized)
    }

    /// As [`FitReport::merged_info`], with every tensor in the base's own encoding.
    pub(crate) fn requantized_info(&self, info: &Arc<ModelInfo>) -> Arc<ModelInfo> {
        self.merged_info_as(info, Given::Requantized)
    }

    /// [`Self::merged_info`], with touched tensors as `given` says.
    pub(in crate::lora) fn merged_info_as(&self, info: &Arc<ModelInfo>, given: Given) -> Arc<ModelInfo> {
        let tensors = merged_entries(&info.tensors, &self.touched, given);
        if !self.unties_embeddings && self.vocab_size.is_none() && tensors.is_none() {
            return info.clone();
        }
        let tensors = tensors.unwrap_or_else(|| info.tensors.to_vec());
        Arc::new(ModelInfo::new(info.id.clone(), self.format(info), tensors))
    }

    fn format(&self, info: &ModelInfo) -> ModelFormat {
        match &info.format {
            ModelFormat::Safetensors { config } => {
                let mut config = (**config).clone();
                if let Some(fields) = config.as_object_mut() {
                    if self.unties_embeddings {
                        fields.insert("tie_word_embeddings".into(), json!(false));
                    }
                    if let Some(rows) = self.vocab_size {
                        fields.insert("vocab_size".into(), json!(rows));
                    }
                }
                ModelFormat::Safetensors { config: Arc::new(config) }
            }
            ModelFormat::Gguf { metadata } => {
                let mut metadata = (**metadata).clone();
                let key = metadata.string("general.architecture").map(|name| format!("{name}.vocab_size"));
                // Whether the head is tied is told by its tensor alone.
                if let (Some(key), Some(rows)) = (key, self.vocab_size)
                    && metadata.get(&key).is_some()
                {
                    metadata.insert(key, GgufValue::Int(rows as i128));
                }
                ModelFormat::Gguf { metadata: Arc::new(metadata) }
            }
            other => other.clone(),
        }
    }
}
