//! Whether a model can be run, and as what.

use llm_local_backend_common::decoder::{Readable, check_fields, check_same, check_tensors, described, first_matrix};
use llm_local_core::{
    ComputeDtype, DeviceInfo, DeviceKind, Encoding, FloatType, KvCacheType, LoadOptions, ModelFormat, ModelInfo,
    TensorEntry,
    model::{DecoderConfig, Layout, MlxQuantization},
};
use mlx_rs::Dtype;

use crate::{
    NAME,
    arrays::mlx_dtype,
    decoder::{KvForm, kv_supported},
};

/// How MLX's checkpoints name tensors.
pub(crate) const LAYOUT: Layout = Layout::HuggingFace;

/// A model that can be run, and everything decided about how.
#[derive(Debug, Clone)]
pub(crate) struct Supported {
    /// The model's id, for messages.
    pub(crate) id: String,
    /// Its description.
    pub(crate) decoder: DecoderConfig,
    /// How its checkpoint names tensors.
    pub(crate) layout: Layout,
    /// What all floats are held in: dense weights, norms, biases, and scales of quantized weights.
    pub(crate) dtype: FloatType,
    /// The same, as MLX calls it: what activations are in.
    pub(crate) activations: Dtype,
    /// What keys and values are kept as.
    pub(crate) kv: KvForm,
    /// Where it will be.
    pub(crate) device: DeviceInfo,
    /// The longest context, in tokens.
    pub(crate) max_context: usize,
    /// What was asked for.
    want: (ComputeDtype, KvCacheType),
}

/// How a matrix is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    /// As floats.
    Dense(FloatType),
    /// As the integers that it is stored in, with scales and biases.
    Affine {
        /// Of one integer.
        bits: u8,
        /// Columns that share a scale and a bias.
        group_size: u32,
    },
}

impl Supported {
    /// How the matrix `t` is held; `None` if MLX does not read it.
    pub(crate) fn held(&self, t: &TensorEntry) -> Option<Held> {
        match t.encoding {
            Encoding::Float(_) => Some(Held::Dense(self.dtype)),
            Encoding::MlxAffine { bits, group_size } => Some(Held::Affine { bits, group_size }),
            _ => None,
        }
    }

    /// The float types that dense matrices are held in, by those that they are stored in.
    pub(crate) fn held_in(&self) -> Vec<(FloatType, FloatType)> {
        [FloatType::F64, FloatType::F32, FloatType::F16, FloatType::Bf16].map(|stored| (stored, self.dtype)).into()
    }

    /// The same for `info`, other tensors of this model; the error is what of it would be held otherwise.
    pub(crate) fn with_tensors(&self, info: &ModelInfo) -> Result<Self, String> {
        let other = decide(info, self.want, &self.device)?;
        check_same((&self.decoder, self.layout), (&other.decoder, other.layout))?;
        if self.dtype != other.dtype {
            let (now, then) = (self.dtype, other.dtype);
            return Err(format!("it computes in {now}, and with these tensors would in {then}"));
        }
        Ok(other)
    }
}

/// What MLX reads.
const READABLE: Readable = Readable {
    backend: NAME,
    reads: |_, encoding| match encoding {
        Encoding::Float(_) => true,
        Encoding::MlxAffine { bits, group_size } => {
            MlxQuantization::BITS.contains(&bits) && MlxQuantization::GROUP_SIZES.contains(&group_size)
        }
        _ => false,
    },
    said: |_| "floats and what MLX quantized (affine, 2 to 6 or 8 bits in groups of 32, 64 or 128) in safetensors",
};

/// Decides everything about running `info` as `options` says; the context length aside, which is clamped by the
/// engine and checked at load. The error is the first thing that cannot be run: its name, what it has, what could be
/// run.
pub(crate) fn check(info: &ModelInfo, options: &LoadOptions, device: &DeviceInfo) -> Result<Supported, String> {
    decide(info, (options.dtype, options.kv_cache), device)
}

fn decide(info: &ModelInfo, want: (ComputeDtype, KvCacheType), device: &DeviceInfo) -> Result<Supported, String> {
    let decoder = described(info)?;
    match &info.format {
        ModelFormat::Safetensors { .. } => {}
        ModelFormat::Gguf { .. } => {
            return Err(
                "the checkpoint is GGUF; mlx reads safetensors in the layout of Hugging Face, and candle runs \
                        GGUF"
                    .into(),
            );
        }
        _ => return Err("the checkpoint is not safetensors, which is all that mlx reads".into()),
    }
    check_fields(decoder, LAYOUT)?;
    check_tensors(decoder, LAYOUT, &info.tensors, &READABLE)?;
    let dtype = compute_in(device.kind, want.0, most_stored_in(info, decoder), decoder.norms.after())?;
    Ok(Supported {
        id: info.id.clone(),
        decoder: decoder.clone(),
        layout: LAYOUT,
        dtype,
        activations: mlx_dtype(dtype),
        kv: kv_supported(decoder.head_dim, want.1)?,
        device: device.clone(),
        max_context: decoder.max_positions,
        want,
    })
}

/// The float type that most of the model is stored in: that of the scales where weights are quantized, which a merge leaves as
/// it is, and else that of the matrices.
fn most_stored_in(info: &ModelInfo, c: &DecoderConfig) -> FloatType {
    let scales = c.base_tensors(LAYOUT).into_iter().find_map(|t| {
        let entry = info.tensor(&t.name)?;
        info.tensor(entry.parts.first()?).map(|scales| scales.encoding)
    });
    match scales.or_else(|| first_matrix(info, c, LAYOUT)) {
        Some(Encoding::Float(t)) => t,
        _ => FloatType::F32,
    }
}

/// What a model is computed in on a device of this kind, where most of it is stored in `stored`. `grows` says that the outputs
/// of blocks are normed afterwards, so that before that they grow beyond what f16 holds (Gemma).
fn compute_in(device: DeviceKind, want: ComputeDtype, stored: FloatType, grows: bool) -> Result<FloatType, String> {
    match want {
        ComputeDtype::F32 => Ok(FloatType::F32),
        ComputeDtype::Bf16 => Ok(FloatType::Bf16),
        ComputeDtype::F16 if grows => Err("dtype is f16, beyond which activations of this architecture grow, because \
                                           the outputs of its blocks are normed; mlx runs it in bf16 or f32"
            .into()),
        ComputeDtype::F16 => Ok(FloatType::F16),
        // The processor multiplies in f32: products of quantized weights with half precision take 10 to 60 times as long there.
        ComputeDtype::Auto if device == DeviceKind::Cpu => Ok(FloatType::F32),
        ComputeDtype::Auto => Ok(match stored {
            FloatType::F16 if !grows => FloatType::F16,
            FloatType::Bf16 => FloatType::Bf16,
            _ => FloatType::F32,
        }),
        other => {
            let name = format!("{other:?}").to_lowercase();
            Err(format!("dtype is {name}; mlx computes in f32, f16 or bf16"))
        }
    }
}

#[cfg(test)]
mod tests;
