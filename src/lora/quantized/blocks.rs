//! Blocks of ggml to f32, by candle.

use candle_core::{CpuStorage, quantized::GgmlDType};
use llm_local_core::GgmlType;

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

    /// Writes the elements from index `start` into `out`: those of each block that has some of them are computed, and no
    /// others.
    pub(in crate::lora) fn widen(self, start: usize, out: &mut [f32]) {
        let (elements, size) = (self.dtype.block_size(), self.dtype.type_size());
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

fn unknown(kind: GgmlType) -> String {
    format!(
        "is stored as {kind}, which candle cannot dequantize; it can Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1 and Q2_K to Q8_K"
    )
}

/// candle's name of a block format that it can dequantize.
pub(super) fn dtype(kind: GgmlType) -> Option<GgmlDType> {
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
