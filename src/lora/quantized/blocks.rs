//! Blocks of ggml to f32 and back, by candle.

use candle_core::{
    CpuStorage, Device, Tensor,
    quantized::{GgmlDType, QTensor},
};
use llm_local_core::GgmlType;

use super::unknown;

/// What candle's blocks have to be aligned to, at most: their largest field is an f32.
const ALIGN: usize = 4;

/// A tensor in blocks.
#[derive(Clone, Copy)]
pub(in crate::lora) struct Blocks<'a> {
    dtype: GgmlDType,
    bytes: &'a [u8],
}

impl<'a> Blocks<'a> {
    /// Looks at `bytes`, maybe unaligned, as blocks. The error is that of [`check`], or that they are not whole.
    pub(in crate::lora) fn new(kind: GgmlType, bytes: &'a [u8]) -> Result<Self, String> {
        let dtype = dtype(kind).ok_or_else(|| unknown(kind))?;
        if !bytes.len().is_multiple_of(dtype.type_size()) {
            return Err(format!("has {} bytes, which are not whole blocks of {kind}", bytes.len()));
        }
        Ok(Self { dtype, bytes })
    }

    /// Elements of a block, and the bytes that they take.
    pub(in crate::lora) fn block(self) -> (usize, usize) {
        (self.dtype.block_size(), self.dtype.type_size())
    }

    /// The blocks of `count` elements from index `start` on, which are whole blocks.
    pub(in crate::lora) fn bytes(self, start: usize, count: usize) -> &'a [u8] {
        let (elements, size) = self.block();
        &self.bytes[start / elements * size..(start + count) / elements * size]
    }

    /// Writes the elements from index `start` into `out`: those of each block that has some of them are computed, and no
    /// others.
    pub(in crate::lora) fn widen(self, start: usize, out: &mut [f32]) {
        let (elements, size) = self.block();
        let (first, last) = (start / elements, (start + out.len()).div_ceil(elements));
        let bytes = &self.bytes[first * size..last * size];
        let mut copy = Vec::new();
        let blocks = self.dtype.from_data(aligned(bytes, &mut copy).into());
        let Ok(CpuStorage::F32(values)) = blocks.dequantize((last - first) * elements) else {
            unreachable!("blocks on the CPU become f32")
        };
        let skipped = start - first * elements;
        out.copy_from_slice(&values[skipped..skipped + out.len()]);
    }
}

/// From f32 to blocks of one format.
#[derive(Debug, Clone, Copy)]
pub(in crate::lora) struct Quantizer {
    kind: GgmlType,
    dtype: GgmlDType,
}

impl Quantizer {
    /// The error is that of [`check`].
    pub(in crate::lora) fn new(kind: GgmlType) -> Result<Self, String> {
        dtype(kind).map(|dtype| Self { kind, dtype }).ok_or_else(|| unknown(kind))
    }

    /// The format.
    pub(in crate::lora) fn kind(&self) -> GgmlType {
        self.kind
    }

    /// Writes the blocks of `values`, which are whole blocks, as candle rounds them: each block by itself, without a matrix
    /// of importance.
    pub(in crate::lora) fn quantize(&self, values: &[f32], out: &mut [u8]) {
        let values = Tensor::from_slice(values, values.len(), &Device::Cpu);
        let Ok(quantized) = values.and_then(|values| QTensor::quantize(&values, self.dtype)) else {
            unreachable!("whole blocks on the CPU are quantized")
        };
        let Ok(blocks) = quantized.data() else { unreachable!("blocks on the CPU are bytes") };
        out.copy_from_slice(&blocks);
    }

    /// Writes what `blocks` stand for.
    pub(in crate::lora) fn dequantize(&self, blocks: &[u8], out: &mut [f32]) {
        Blocks { dtype: self.dtype, bytes: blocks }.widen(0, out);
    }
}

/// `bytes`, or a copy of them if they are not aligned.
fn aligned<'a>(bytes: &'a [u8], copy: &'a mut Vec<u8>) -> &'a [u8] {
    if bytes.as_ptr().align_offset(ALIGN) == 0 {
        return bytes;
    }
    copy.reserve_exact(bytes.len() + ALIGN);
    let start = copy.as_ptr().align_offset(ALIGN);
    copy.resize(start, 0);
    copy.extend_from_slice(bytes);
    &copy[start..]
}

/// Checks that blocks of this format can be dequantized. The error continues a sentence that starts with a tensor's name.
pub(super) fn check(kind: GgmlType) -> Result<(), String> {
    dtype(kind).map(drop).ok_or_else(|| unknown(kind))
}

/// candle's name of a block format that it can dequantize.
pub(in crate::lora) fn dtype(kind: GgmlType) -> Option<GgmlDType> {
    Some(match kind {
        GgmlType::Q4_0 => GgmlDType::Q4_0,
        GgmlType::Q4_1 => GgmlDType::Q4_1,
        GgmlType::Q5_0 => GgmlDType::Q5_0,
        GgmlType::Q5_1 => GgmlDType::Q5_1,
        GgmlType::Q8_0 => GgmlDType::Q8_0,
        GgmlType::Q8_1 => GgmlDType::Q8_1,
        GgmlType::Q2_K => GgmlDType::Q2K,
        GgmlType::Q3_K => GgmlDType::Q3K,
        GgmlType::Q4_K => GgmlDType::Q4K,
        GgmlType::Q5_K => GgmlDType::Q5K,
        GgmlType::Q6_K => GgmlDType::Q6K,
        GgmlType::Q8_K => GgmlDType::Q8K,
        _ => return None,
    })
}
