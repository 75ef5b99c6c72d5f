//! Matrices of which adapters replace all or some rows: they are held whole, and other modules that are held in one with
//! them too.

use candle_core::{DType, Device, Tensor};
use half::{bf16, slice::HalfBitsSliceExt};
use llm_local_backend_common::decoder::adapters::{Changes, whole_bf16};
use llm_local_core::Result;

use super::{Making, Matrix};

impl<'a> Making<'a> {
    /// `weight` with what `parts` replace of it.
    pub(super) fn replaced(&mut self, weight: &Matrix, parts: &[(usize, &Changes<'a>)]) -> Result<Tensor> {
        let device = self.decoder.device();
        let (out, width) = self.ok("a matrix has no shape", weight.dims())?;
        let made = if let (Some(bits), true) = (whole_bf16(parts, out), device.is_cpu()) {
            // As it is stored, which costs half of the memory.
            let by = &parts[0].1.replaced[0];
            by.check_finite(&by.what.name, &by.floats(&by.what.name, &by.what.values)?.all())?;
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
