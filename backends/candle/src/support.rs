//! Whether a model can be run, and as what.

use candle_core::{DType, Device};
use llm_local_core::{
    ComputeDtype, DeviceInfo, DeviceKind, Encoding, Error, FloatType, LoadOptions, ModelFormat, ModelInfo,
    model::{DecoderConfig, Layout},
};

use crate::{device::Devices, fields, tensors};

/// The length of `quantized_llama`'s rotary table, which cannot be changed.
const GGUF_MAX_CONTEXT: usize = candle_transformers::models::quantized_llama::MAX_SEQ_LEN;

/// A model that can be run, and everything decided about how.
#[derive(Debug, Clone)]
pub(crate) struct Supported {
    /// The model's id, for messages.
    pub(crate) id: String,
    /// Its description.
    pub(crate) decoder: DecoderConfig,
    /// Which of candle's two models it is, by its checkpoint.
    pub(crate) layout: Layout,
    /// What is computed in.
    pub(crate) dtype: FloatType,
    /// Where it will be.
    pub(crate) device: Device,
    /// The same, for people.
    pub(crate) device_info: DeviceInfo,
    /// The longest context, in tokens.
    pub(crate) max_context: usize,
}

impl Supported {
    /// candle's name of [`Supported::dtype`].
    pub(crate) fn candle_dtype(&self) -> DType {
        match self.dtype {
            FloatType::F16 => DType::F16,
            FloatType::Bf16 => DType::BF16,
            _ => DType::F32,
        }
    }
}

/// Decides everything about running `info` as `options` says; the context length aside, which is clamped by the
/// engine and checked at load. The error is the first thing that cannot be run: its name, what it has, what could be run.
pub(crate) fn check(info: &ModelInfo, options: &LoadOptions, devices: &Devices) -> Result<Supported, String> {
    let (device_info, device) = devices.find(options.device.as_deref())?;
    let decoder = info.decoder.as_ref().map_err(|error| match error {
        // Without the model's id: whoever passes this on says which model it is about.
        Error::UnsupportedModelFormat { reason, .. } => reason.clone(),
        error => error.to_string(),
    })?;
    let layout = match &info.format {
        ModelFormat::Safetensors { .. } => Layout::HuggingFace,
        ModelFormat::Gguf { .. } => Layout::Gguf,
        _ => return Err("the checkpoint is neither safetensors nor GGUF, which is all that candle reads".into()),
    };
    fields::check(decoder, layout, device_info.kind)?;
    tensors::check(decoder, layout, &info.tensors)?;
    Ok(Supported {
        id: info.id.clone(),
        decoder: decoder.clone(),
        layout,
        dtype: dtype(info, options.dtype, layout, device_info.kind)?,
        device: device.clone(),
        device_info: device_info.clone(),
        max_context: match layout {
            Layout::Gguf => decoder.max_positions.min(GGUF_MAX_CONTEXT),
            _ => decoder.max_positions,
        },
    })
}

fn dtype(info: &ModelInfo, want: ComputeDtype, layout: Layout, device: DeviceKind) -> Result<FloatType, String> {
    match (layout, want) {
        (Layout::Gguf, ComputeDtype::Auto | ComputeDtype::F32) | (_, ComputeDtype::F32) => Ok(FloatType::F32),
        (Layout::Gguf, other) => {
            Err(format!("dtype is {}; candle computes GGUF models in f32: ask for f32 or auto", name(other)))
        }
        (_, ComputeDtype::F16) => Ok(FloatType::F16),
        (_, ComputeDtype::Bf16) => Ok(FloatType::Bf16),
        (_, ComputeDtype::Auto) if device == DeviceKind::Cpu => Ok(FloatType::F32),
        // On a GPU, what most weights are stored in.
        (_, ComputeDtype::Auto) => {
            Ok(match info.tensor("model.layers.0.self_attn.q_proj.weight").map(|t| t.encoding) {
                Some(Encoding::Float(t @ (FloatType::F16 | FloatType::Bf16))) => t,
                _ => FloatType::F32,
            })
        }
        (_, other) => Err(format!("dtype is {}; candle computes in f32, f16 or bf16", name(other))),
    }
}

fn name(dtype: ComputeDtype) -> String {
    format!("{dtype:?}").to_lowercase()
}

#[cfg(test)]
mod tests;
