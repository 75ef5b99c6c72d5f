//! Whether a model can be run, and as what.

use candle_core::{DType, Device, quantized::GgmlDType};
use llm_local_backend_common::decoder::{check_fields, check_same, described, first_matrix};
use llm_local_core::{
    ComputeDtype, DeviceInfo, DeviceKind, Encoding, FloatType, LoadOptions, ModelFormat, ModelInfo, TensorEntry,
    model::{DecoderConfig, Layout, ModuleRole, RowOrder},
};

use crate::{
    device::Devices,
    elements::candle_dtype,
    tensors::{self, ggml_dtype},
};

/// A model that can be run, and everything decided about how.
#[derive(Debug, Clone)]
pub(crate) struct Supported {
    /// The model's id, for messages.
    pub(crate) id: String,
    /// Its description.
    pub(crate) decoder: DecoderConfig,
    /// How its checkpoint names tensors.
    pub(crate) layout: Layout,
    /// What dense matrices are computed in, for the most part: those stored in another type may differ.
    pub(crate) dtype: FloatType,
    /// What activations and the KV cache are in.
    pub(crate) activations: DType,
    /// Where it will be.
    pub(crate) device: Device,
    /// The same, for people.
    pub(crate) device_info: DeviceInfo,
    /// The longest context, in tokens.
    pub(crate) max_context: usize,
    /// How dense matrices are held.
    dense: DenseRule,
    /// The compute dtype that was asked for.
    want: ComputeDtype,
}

/// How a matrix is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    /// As floats.
    Dense(FloatType),
    /// As the blocks it is stored in.
    Blocks(GgmlDType),
}

/// How dense matrices are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DenseRule {
    /// All in one type.
    All(FloatType),
    /// As stored where candle computes with it as it is, and else in f32.
    AsStored { f16: bool, bf16: bool },
}

impl DenseRule {
    fn held(self, stored: FloatType) -> FloatType {
        match (self, stored) {
            (Self::All(t), _) => t,
            (Self::AsStored { f16: true, .. }, FloatType::F16) => FloatType::F16,
            (Self::AsStored { bf16: true, .. }, FloatType::Bf16) => FloatType::Bf16,
            _ => FloatType::F32,
        }
    }
}

impl Supported {
    /// How the matrix `t` is held; `None` if candle does not read it.
    pub(crate) fn held(&self, t: &TensorEntry) -> Option<Held> {
        match t.encoding {
            Encoding::Float(stored) => Some(Held::Dense(self.dense.held(stored))),
            Encoding::Ggml(t) => ggml_dtype(t).map(Held::Blocks),
            _ => None,
        }
    }

    /// The order in which the checkpoint holds the rows of the module `role`, if it is another than the decoder's.
    pub(crate) fn row_order(&self, role: ModuleRole) -> Option<RowOrder> {
        (self.layout == Layout::Gguf).then(|| self.decoder.gguf_row_order(role)).flatten()
    }

    /// As [`Supported::held`] has it, the float types that dense matrices are held in, by those that they are stored in.
    pub(crate) fn held_in(&self) -> Vec<(FloatType, FloatType)> {
        let stored = [FloatType::F64, FloatType::F32, FloatType::F16, FloatType::Bf16];
        stored.map(|stored| (stored, self.dense.held(stored))).into()
    }

    /// The same for `info`, other tensors of this model; the error is what of it would be held otherwise.
    pub(crate) fn with_tensors(&self, info: &ModelInfo) -> Result<Self, String> {
        let other = decide(info, self.want, (&self.device_info, &self.device))?;
        check_same((&self.decoder, self.layout), (&other.decoder, other.layout))?;
        if (self.dense, self.activations) != (other.dense, other.activations) {
            return Err("matrices that are not replaced would be computed in another type".into());
        }
        Ok(other)
    }
}

/// Decides everything about running `info` as `options` says; the context length aside, which is clamped by the
/// engine and checked at load. The error is the first thing that cannot be run: its name, what it has, what could be
/// run.
pub(crate) fn check(info: &ModelInfo, options: &LoadOptions, devices: &Devices) -> Result<Supported, String> {
    let (device_info, device) = devices.find(options.device.as_deref())?;
    decide(info, options.dtype, (device_info, device))
}

fn decide(
    info: &ModelInfo,
    want: ComputeDtype,
    (device_info, device): (&DeviceInfo, &Device),
) -> Result<Supported, String> {
    let decoder = described(info)?;
    let layout = match &info.format {
        ModelFormat::Safetensors { .. } => Layout::HuggingFace,
        ModelFormat::Gguf { .. } => Layout::Gguf,
        _ => return Err("the checkpoint is neither safetensors nor GGUF, which is all that candle reads".into()),
    };
    check_fields(decoder, layout)?;
    tensors::check(decoder, layout, &info.tensors)?;
    let dense = dense_rule(info, decoder, layout, want, device_info.kind)?;
    let is_quantized = is_quantized(info, decoder, layout);
    let dtype = match (dense, first_matrix(info, decoder, layout)) {
        (DenseRule::All(t), _) => t,
        // Whatever of it was made floats, for adapters that may be swapped: what blocks are multiplied in.
        _ if is_quantized => FloatType::F32,
        (rule, Some(Encoding::Float(stored))) => rule.held(stored),
        _ => FloatType::F32,
    };
    // candle's products with blocks want f32, and so do its faster ones on the CPU.
    let widened = device_info.kind == DeviceKind::Cpu || is_quantized;
    Ok(Supported {
        id: info.id.clone(),
        decoder: decoder.clone(),
        layout,
        dtype,
        activations: if widened { DType::F32 } else { candle_dtype(dtype) },
        device: device.clone(),
        device_info: device_info.clone(),
        max_context: decoder.max_positions,
        dense,
        want,
    })
}

fn is_quantized(info: &ModelInfo, c: &DecoderConfig, layout: Layout) -> bool {
    let is_blocks = |name: &str| info.tensor(name).is_some_and(|t| matches!(t.encoding, Encoding::Ggml(_)));
    c.base_tensors(layout).iter().any(|t| is_blocks(&t.name))
}

fn dense_rule(
    info: &ModelInfo,
    c: &DecoderConfig,
    layout: Layout,
    want: ComputeDtype,
    device: DeviceKind,
) -> Result<DenseRule, String> {
    // The outputs of blocks that are normed afterwards grow beyond what f16 holds (Gemma).
    let f16 = !c.norms.after();
    Ok(match want {
        ComputeDtype::F32 => DenseRule::All(FloatType::F32),
        ComputeDtype::F16 => DenseRule::All(FloatType::F16),
        ComputeDtype::Bf16 => DenseRule::All(FloatType::Bf16),
        // candle has no product of bf16 on the CPU.
        ComputeDtype::Auto if device == DeviceKind::Cpu => DenseRule::AsStored { f16, bf16: false },
        ComputeDtype::Auto if is_quantized(info, c, layout) => DenseRule::AsStored { f16, bf16: true },
        // On a GPU, what most weights are stored in.
        ComputeDtype::Auto => DenseRule::All(match first_matrix(info, c, layout) {
            Some(Encoding::Float(FloatType::F16)) if f16 => FloatType::F16,
            Some(Encoding::Float(FloatType::Bf16)) => FloatType::Bf16,
            _ => FloatType::F32,
        }),
        other => {
            let name = format!("{other:?}").to_lowercase();
            return Err(format!("dtype is {name}; candle computes in f32, f16 or bf16"));
        }
    })
}

#[cfg(test)]
mod tests;
