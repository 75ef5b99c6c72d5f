//! Matrices of which adapters replace all or some rows: they are held whole, and other modules that are held in one with
//! them too.

use llm_local_backend_common::decoder::adapters::{Changes, whole_bf16};
use llm_local_core::{FloatType, Result, TensorData};
use mlx_rs::{Array, Dtype};

use super::{Making, Matrix, to_f32};
use crate::arrays::from_data;

impl<'a> Making<'a> {
    /// `weight` with what `parts` replace of it, in the type of the activations.
    pub(super) fn replaced(&mut self, weight: &Matrix, parts: &[(usize, &Changes<'a>)]) -> Result<Array> {
        let (out, width) = weight.dims();
        if let (Some(bits), Dtype::Bfloat16) = (whole_bf16(parts, out), self.decoder.dimensions.activations) {
            // As it is stored: not by way of f32, which is twice as large.
            let by = &parts[0].1.replaced[0];
            by.check_finite(&by.what.name, &by.floats(&by.what.name, &by.what.values)?.all())?;
            let made = from_data(&by.what.name, TensorData::Half(bits.to_vec()), &[out, width], FloatType::Bf16)?;
            self.bytes += made.nbytes() as u64;
            return Ok(made);
        }
        let mut all = self.ok("a matrix could not be read", weight.widened(0..out).and_then(|wide| to_f32(&wide)))?;
        for (start, changes) in parts {
            changes.replace(&mut all[start * width..(start + changes.rows()) * width])?;
        }
        self.held(&all, &[out, width])
    }
}
