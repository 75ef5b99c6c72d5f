//! Matrices of which adapters replace all or some rows: they are held whole, and other modules that are held in one with
//! them too.

use candle_core::{DType, Device, Tensor};
use half::{bf16, slice::HalfBitsSliceExt};
use llm_local_core::{Result, lora::Floats};

use super::{
    Making, Matrix,
    changes::{Changes, check_finite, floats},
};

impl<'a> Making<'a> {
    /// `weight` with what `parts` replace of it.
    pub(super) fn replaced(&mut self, weight: &Matrix, parts: &[(usize, &Changes<'a>)]) -> Result<Tensor> {
        let device = self.decoder.device();
        let (out, width) = self.ok("a matrix has no shape", weight.dims())?;
        let made = if let (Some(bits), true) = (whole(parts, out), device.is_cpu()) {
            // As it is stored, which costs half of the memory.
            let by = &parts[0].1.replaced[0];
            check_finite(by.adapter, &by.what.name, &floats(by.adapter, &by.what.name, &by.what.values)?.all())?;
            Tensor::from_vec(bits.reinterpret_cast::<bf16>().to_vec(), (out, width), device)
        } else {
            let mut all = self.ok("a matrix could not be read", widened(weight))?;
            for (start, changes) in parts {
                changes.replace(&mut all[start * width..(start + changes.rows()) * width])?;
            }
            // On the CPU exactly what was computed.
            let dtype = if device.is_cpu() { DType::F32 } else { self.decoder.dtype() };
            Tensor::from_vec(all, (out, width), device).and_then(|t| t.to_dtype(dtype))
        };
        let made = self.ok("a tensor could not be put on the device", made)?;
        self.bytes += (out * width * made.dtype().size_in_bytes()) as u64;
        Ok(made)
    }
}

/// The bits of the rows of one bf16 tensor that are all of the matrix from now on, if there is one.
fn whole<'f>(parts: &[(usize, &Changes<'f>)], out: usize) -> Option<&'f [u16]> {
    let by = parts.first()?.1.replaced.first()?;
    let (new, first) = (by.what, by.first);
    let mut rows = 0;
    for (start, changes) in parts {
        match (&changes.replaced[..], &changes.replaced_rows[..]) {
            ([by], [])
                if by.weight == 1.0 && std::ptr::eq(by.what, new) && (by.first, *start) == (first + rows, rows) =>
            {
                rows += changes.rows();
            }
            _ => return None,
        }
    }
    match &new.values {
        // Where queries, keys and values are held apart, one that is fused has the rows of others too.
        Floats::Bf16(bits) if rows == out => {
            let width = bits.len() / new.shape[0];
            Some(&bits[first * width..(first + rows) * width])
        }
        _ => None,
    }
}

/// All of a matrix in f32.
fn widened(weight: &Matrix) -> candle_core::Result<Vec<f32>> {
    let (out, width) = weight.dims()?;
    let mut all = Vec::with_capacity(out * width);
    on_cpu(weight)?.widened(0, out, &mut |rows| all.extend_from_slice(rows))?;
    Ok(all)
}

/// The matrix where its rows can be widened.
pub(super) fn on_cpu(weight: &Matrix) -> candle_core::Result<Matrix> {
    Ok(match weight {
        Matrix::Dense(w) if !w.device().is_cpu() => Matrix::Dense(w.to_device(&Device::Cpu)?),
        Matrix::Quantized { blocks, .. } if !blocks.device().is_cpu() => {
            Matrix::Dense(blocks.dequantize(&blocks.device())?.to_device(&Device::Cpu)?)
        }
        weight => weight.clone(),
    })
}
