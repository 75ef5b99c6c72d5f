//! Tensors by name as what the decoder computes with.

use std::{cell::Cell, collections::HashMap};

use llm_local_backend_common::decoder::Loading;
use llm_local_core::{
    Error, FloatType, Result, TensorData, TensorEntry, TensorSource,
    model::{BaseTensor, ModuleRole},
};
use mlx_rs::{Array, ops::concatenate, transforms::eval};

use super::linear::{Linear, Matrix, Quantized};
use crate::{
    arrays::{from_data, from_f32, from_packed},
    errors::load_error,
    support::{Held, Supported},
};

/// Reads the tensors of a model. What it gives is computed, so that nothing keeps what it was made from.
pub(super) struct Weights<'a> {
    s: &'a Supported,
    source: &'a dyn TensorSource,
    loading: Loading,
    base: HashMap<(ModuleRole, usize, bool), BaseTensor>,
    /// Those held so far.
    bytes: Cell<u64>,
}

impl<'a> Weights<'a> {
    pub(super) fn new(s: &'a Supported, source: &'a dyn TensorSource, loading: Loading) -> Self {
        let base = s.decoder.base_tensors(s.layout).into_iter().map(|t| ((t.role, t.layer, t.bias), t)).collect();
        Self { s, source, loading, base, bytes: Cell::new(0) }
    }

    /// Bytes of all that was read, as they are held.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    fn add_bytes(&self, bytes: u64) {
        self.bytes.set(self.bytes.get() + bytes);
    }

    /// The linear layer of one module.
    pub(super) fn linear(&self, role: ModuleRole, layer: usize) -> Result<Linear> {
        let weight = self.matrix(&[role], layer)?;
        Ok(Linear::new(weight, self.bias(&[role], layer)?))
    }

    /// One linear layer with the rows of several modules in this order; `None` if they are not held alike.
    pub(super) fn stacked(&self, roles: &[ModuleRole], layer: usize) -> Result<Option<Linear>> {
        let held = roles.iter().map(|role| self.held(*role, layer)).collect::<Result<Vec<_>>>()?;
        if held.windows(2).any(|pair| pair[0] != pair[1]) {
            return Ok(None);
        }
        let weight = self.matrix(roles, layer)?;
        Ok(Some(Linear::new(weight, self.bias(roles, layer)?)))
    }

    /// The matrix of one module, or of several that are held alike, with their rows in this order.
    pub(super) fn matrix(&self, roles: &[ModuleRole], layer: usize) -> Result<Matrix> {
        let parts = roles.iter().map(|role| self.part(*role, layer)).collect::<Result<Vec<_>>>()?;
        let name = self.base(roles[0], layer, false)?.name;
        let matrix = Matrix::concatenated(&parts).and_then(|matrix| {
            match &matrix {
                Matrix::Dense(w) => w.eval()?,
                Matrix::Quantized(Quantized { weight, scales, biases, .. }) => eval([weight, scales, biases])?,
            }
            Ok(matrix)
        });
        let matrix = matrix.map_err(|e| load_error(&name, "it could not be put on the device", e))?;
        self.add_bytes(matrix.bytes());
        Ok(matrix)
    }

    /// The matrix of one module.
    fn part(&self, role: ModuleRole, layer: usize) -> Result<Matrix> {
        let BaseTensor { name, shape, .. } = self.base(role, layer, false)?;
        let matrix = match self.held(role, layer)? {
            Held::Dense(float) => Matrix::Dense(self.floats(&name, &shape, float)?),
            Held::Affine { bits, group_size } => Matrix::Quantized(self.packed(&name, &shape, bits, group_size)?),
        };
        self.loading.tensor_done();
        Ok(matrix)
    }

    /// Packed integers with their scales and biases. Of these, products want the type of the activations.
    fn packed(&self, name: &str, shape: &[usize], bits: u8, group_size: u32) -> Result<Quantized> {
        let [rows, columns] = shape else {
            return Err(Error::load(name, format!("it is quantized, and no matrix but of the shape {shape:?}")));
        };
        let Some([scales, biases]) = self.source.entry(name).map(|entry| &*entry.parts) else {
            return Err(Error::load(name, "it is quantized, and has no scales and biases"));
        };
        let groups = [*rows, columns / group_size as usize];
        let words = [*rows, columns * usize::from(bits) / 32];
        Ok(Quantized {
            weight: from_packed(name, self.read(name, None)?, &words)?,
            scales: self.floats(scales, &groups, self.s.dtype)?,
            biases: self.floats(biases, &groups, self.s.dtype)?,
            bits: bits.into(),
            group_size: group_size as i32,
        })
    }

    /// The weight of a norm, with the description's offset, in the type of the activations.
    pub(super) fn norm(&self, role: ModuleRole, layer: usize) -> Result<Array> {
        let BaseTensor { name, shape, .. } = self.base(role, layer, false)?;
        let mut weight = self.read_f32(&name)?;
        let offset = self.s.decoder.norm_offset as f32;
        weight.iter_mut().for_each(|w| *w += offset);
        self.activated(&name, &[(weight, shape)])
    }

    /// The bias of a linear layer, in the type of the activations, if the description gives it one.
    fn bias(&self, roles: &[ModuleRole], layer: usize) -> Result<Option<Array>> {
        if !self.base.contains_key(&(roles[0], layer, true)) {
            return Ok(None);
        }
        let parts = roles.iter().map(|role| self.base(*role, layer, true)).collect::<Result<Vec<_>>>()?;
        let read = |part: &BaseTensor| self.read_f32(&part.name).map(|values| (values, part.shape.clone()));
        let values = parts.iter().map(read).collect::<Result<Vec<_>>>()?;
        self.activated(&parts[0].name, &values).map(Some)
    }

    /// Vectors one behind another, in the type of the activations.
    fn activated(&self, name: &str, vectors: &[(Vec<f32>, Vec<usize>)]) -> Result<Array> {
        let vectors = vectors.iter().map(|(values, shape)| from_f32(values, shape)).collect::<Result<Vec<_>, _>>();
        let made = vectors.and_then(|vectors| concatenate(&vectors, 0)).and_then(|all| {
            let all = all.as_dtype(self.s.activations)?;
            all.eval()?;
            Ok(all)
        });
        let made = made.map_err(|e| load_error(name, "it could not be put on the device", e))?;
        self.add_bytes(made.nbytes() as u64);
        Ok(made)
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        self.loading.check()?;
        let values = read_f32(self.source, name)?;
        self.loading.tensor_done();
        Ok(values)
    }

    fn floats(&self, name: &str, shape: &[usize], float: FloatType) -> Result<Array> {
        from_data(name, self.read(name, Some(float))?, shape, float)
    }

    fn read(&self, name: &str, want: Option<FloatType>) -> Result<TensorData<'a>> {
        self.loading.check()?;
        self.source.read(name, want)
    }

    fn base(&self, role: ModuleRole, layer: usize, bias: bool) -> Result<BaseTensor> {
        self.base.get(&(role, layer, bias)).cloned().ok_or_else(|| {
            Error::load(&self.s.id, format!("its description has no {role:?} in layer {layer} (bias: {bias})"))
        })
    }

    fn held(&self, role: ModuleRole, layer: usize) -> Result<Held> {
        let name = self.base(role, layer, false)?.name;
        let held = self.source.entry(&name).and_then(|entry: &TensorEntry| self.s.held(entry));
        held.ok_or_else(|| Error::load(&name, "it is missing, or stored as mlx does not read it"))
    }
}

/// The values of the tensor `name`, in order.
pub(super) fn read_f32(source: &dyn TensorSource, name: &str) -> Result<Vec<f32>> {
    let data = source.read(name, Some(FloatType::F32))?;
    if let TensorData::F32(values) = data {
        return Ok(values);
    }
    let mut bytes = vec![0; data.byte_len()];
    data.copy_to(&mut bytes);
    let (values, rest) = bytes.as_chunks();
    if !rest.is_empty() {
        return Err(Error::load(name, format!("its {} bytes are no whole 32-bit floats", bytes.len())));
    }
    Ok(values.iter().map(|v| f32::from_le_bytes(*v)).collect())
}
