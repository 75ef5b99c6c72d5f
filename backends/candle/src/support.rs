//! Whether a model can be run, and as what.

use candle_core::{DType, Device, quantized::GgmlDType};
use llm_local_backend_common::decoder::{check_fields, check_same, described, first_matrix};
use llm_local_core::{
    ComputeDtype, DeviceInfo, Encoding, FloatType, LoadOptions, ModelFormat, ModelInfo, TensorEntry,
    model::{DecoderConfig, Layout, ModuleRole, RowOrder},
};

use crate::{
    device::{Devices, Opened},
    dtype::{self, Choice, DenseRule, Floats, Stored},
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
    /// What it computes with.
    floats: Floats,
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
        let opened = Opened { info: self.device_info.clone(), device: self.device.clone(), floats: self.floats };
        let other = decide(info, self.want, &opened)?;
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
    decide(info, options.dtype, devices.find(options.device.as_deref())?)
}

fn decide(info: &ModelInfo, want: ComputeDtype, opened: &Opened) -> Result<Supported, String> {
    let decoder = described(info)?;
    let layout = match &info.format {
        ModelFormat::Safetensors { .. } => Layout::HuggingFace,
        ModelFormat::Gguf { .. } => Layout::Gguf,
        _ => return Err("the checkpoint is neither safetensors nor GGUF, which is all that candle reads".into()),
    };
    check_fields(decoder, layout)?;
    tensors::check(decoder, layout, &info.tensors)?;
    let stored = Stored {
        in_blocks: is_quantized(info, decoder, layout),
        most: first_matrix(info, decoder, layout),
        // The outputs of blocks that are normed afterwards grow beyond what f16 holds (Gemma).
        fits_f16: !decoder.norms.after(),
    };
    let Choice { dense, dtype, activations } = dtype::choose(want, opened.floats, &stored)?;
    Ok(Supported {
        id: info.id.clone(),
        decoder: decoder.clone(),
        layout,
        dtype,
        activations,
        device: opened.device.clone(),
        device_info: opened.info.clone(),
        floats: opened.floats,
        max_context: decoder.max_positions,
        dense,
        want,
    })
}

fn is_quantized(info: &ModelInfo, c: &DecoderConfig, layout: Layout) -> bool {
    let is_blocks = |name: &str| info.tensor(name).is_some_and(|t| matches!(t.encoding, Encoding::Ggml(_)));
    c.base_tensors(layout).iter().any(|t| is_blocks(&t.name))
}

#[cfg(test)]
mod tests;
