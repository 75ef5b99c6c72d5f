//! A base tensor as it is stored, to f32.

use llm_local_core::{Encoding, Error, FloatType, Result, TensorData, TensorEntry, TensorSource};
use llm_local_weights::{widen_f16, widen_f16_bytes};
use pulp::Arch;

use crate::lora::{
    floats::widen_bf16,
    message::shape_text,
    quantized::{Affine, Blocks, Packing},
};

/// A base tensor that was read as it is stored.
pub(super) struct ReadTensor<'a> {
    pub(super) entry: &'a TensorEntry,
    pub(super) elements: usize,
    bytes: usize,
    data: TensorData<'a>,
    /// The values of its parts.
    parts: Vec<Vec<f32>>,
}

impl<'a> ReadTensor<'a> {
    /// Reads the tensor `name` of `base`.
    ///
    /// # Errors
    /// [`Error::LoadFailed`] if there is none, or if its shape does not go with its encoding; those of reading it.
    pub(super) fn new(base: &'a dyn TensorSource, name: &str) -> Result<Self> {
        let error = |reason: String| Error::load(format!("tensor `{name}`"), reason);
        let entry = base.entry(name).ok_or_else(|| error("the base does not have it".into()))?;
        let (Some(elements), Some(bytes)) = (entry.elements(), entry.stored_bytes()) else {
            let shape = shape_text(&entry.shape);
            return Err(error(format!("has the shape {shape}, whose rows are not whole blocks of {}", entry.encoding)));
        };
        let parts = entry.parts.iter().map(|part| values(base, part)).collect::<Result<_>>()?;
        Ok(Self { entry, elements, bytes, data: base.read(name, None)?, parts })
    }

    /// Its values.
    ///
    /// # Errors
    /// [`Error::LoadFailed`] if what was read is not what its entry says.
    pub(super) fn stored(&self) -> Result<Stored<'_>> {
        let stored = match (self.entry.encoding, &self.parts[..]) {
            (Encoding::MlxAffine { bits, group_size }, [scales, biases]) => self
                .packed()
                .and_then(|bytes| Affine::new(Packing::new(bits, group_size)?, bytes, scales, biases))
                .map(Stored::Affine),
            (encoding, _) => Stored::new(&self.data, encoding, self.bytes),
        };
        stored.map_err(|reason| Error::load(format!("tensor `{}`", self.entry.name), reason))
    }

    fn packed(&self) -> Result<&[u8], String> {
        match &self.data {
            TensorData::Borrowed(bytes) if bytes.len() == self.bytes => Ok(bytes),
            TensorData::Bytes(bytes) if bytes.len() == self.bytes => Ok(bytes),
            data => Err(format!("has {} bytes; expected {} as they are packed", data.byte_len(), self.bytes)),
        }
    }
}

/// The values of the tensor `name` of floats.
fn values(base: &dyn TensorSource, name: &str) -> Result<Vec<f32>> {
    let error = |reason: String| Error::load(format!("tensor `{name}`"), reason);
    let entry = base.entry(name).ok_or_else(|| error("the base does not have it".into()))?;
    let count = entry.elements().ok_or_else(|| error(format!("has the shape {}", shape_text(&entry.shape))))?;
    let data = base.read(name, Some(FloatType::F32))?;
    let stored = Stored::new(&data, Encoding::Float(FloatType::F32), 4 * count).map_err(error)?;
    let mut values = vec![0.0; count];
    stored.widen(0, &mut values);
    Ok(values)
}

/// The base tensor as it is stored.
#[derive(Clone, Copy)]
pub(super) enum Stored<'a> {
    /// Little-endian, maybe unaligned.
    Bytes(FloatType, &'a [u8]),
    F32(&'a [f32]),
    /// Bits of f16 or bf16.
    Half(FloatType, &'a [u16]),
    /// Quantized: what is asked for is dequantized then, so that there is never more of it than a tile's rows.
    Blocks(Blocks<'a>),
    /// The same, as MLX packs it.
    Affine(Affine<'a>),
}

impl<'a> Stored<'a> {
    /// Looks at `data` as the tensor of `expected` bytes that is stored as `stored`. The error continues a sentence that
    /// starts with its name.
    pub(super) fn new(data: &'a TensorData<'_>, stored: Encoding, expected: usize) -> Result<Self, String> {
        if data.byte_len() != expected {
            return Err(format!("has {} bytes; expected {expected}", data.byte_len()));
        }
        let stored = match (data, stored) {
            (TensorData::Borrowed(bytes), Encoding::Ggml(kind)) => return Blocks::new(kind, bytes).map(Self::Blocks),
            (TensorData::Bytes(bytes), Encoding::Ggml(kind)) => return Blocks::new(kind, bytes).map(Self::Blocks),
            (_, Encoding::Float(stored)) => stored,
            _ => return Err(format!("was read in another way than {stored}, in which it is stored")),
        };
        match (data, stored) {
            (TensorData::Borrowed(bytes), _) => Ok(Self::Bytes(stored, bytes)),
            (TensorData::Bytes(bytes), _) => Ok(Self::Bytes(stored, bytes)),
            (TensorData::F32(values), FloatType::F32) => Ok(Self::F32(values)),
            (TensorData::Half(bits), FloatType::F16 | FloatType::Bf16) => Ok(Self::Half(stored, bits)),
            _ => Err(format!("was read in another type than {stored}, in which it is stored")),
        }
    }

    /// Elements that are stored together.
    pub(super) fn unit(self) -> usize {
        match self {
            Self::Blocks(blocks) => blocks.block().0,
            Self::Affine(affine) => affine.group(),
            _ => 1,
        }
    }

    /// Writes the floats from index `start` into `out`.
    pub(super) fn widen(self, start: usize, out: &mut [f32]) {
        let end = start + out.len();
        match self {
            Self::Blocks(blocks) => blocks.widen(start, out),
            Self::Affine(affine) => affine.widen(start, out),
            Self::F32(values) => out.copy_from_slice(&values[start..end]),
            Self::Half(FloatType::Bf16, bits) => fill(out, bits[start..end].iter().map(|b| widen_bf16(*b))),
            Self::Half(_, bits) => widen_f16(&bits[start..end], out),
            Self::Bytes(stored, bytes) => {
                let bytes = &bytes[start * stored.size()..end * stored.size()];
                match stored {
                    FloatType::F64 => fill(out, bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32)),
                    FloatType::F32 => fill(out, bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
                    FloatType::Bf16 => {
                        fill(out, bytes.as_chunks().0.iter().map(|b| widen_bf16(u16::from_le_bytes(*b))))
                    }
                    _ => widen_f16_bytes(bytes.as_chunks().0, out),
                }
            }
        }
    }
}

/// Writes as many values as there are of both.
pub(super) fn fill<T>(out: &mut [T], values: impl Iterator<Item = T>) {
    // The loop with the widest vectors that the processor has, as the products have them: the crate is built for old ones.
    Arch::new().dispatch(|| {
        for (out, value) in out.iter_mut().zip(values) {
            *out = value;
        }
    });
}

/// Whether all of `values` are; without a branch, so that it is vectorized.
pub(super) fn all<T: Copy>(values: &[T], is: impl Fn(T) -> bool) -> bool {
    Arch::new().dispatch(|| values.iter().fold(true, |all, value| all & is(*value)))
}
