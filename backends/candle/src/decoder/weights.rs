//! Tensors by name as what the decoder computes with.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
};

use candle_core::{
    Tensor,
    quantized::{GgmlDType, QStorage, QTensor},
};
use half::{bf16, f16};
use llm_local_backend_common::decoder::Loading;
use llm_local_core::{
    Error, FloatType, Result, TensorData, TensorSource,
    model::{BaseTensor, ModuleRole, RowOrder},
};

use super::linear::{Linear, Matrix};
use crate::{
    elements::{Float, append, stack},
    errors::load_error,
    support::{Held, Supported},
};

/// Reads the tensors of a model, in any number of threads.
pub(super) struct Weights<'a> {
    s: &'a Supported,
    source: &'a dyn TensorSource,
    loading: Loading,
    base: HashMap<(ModuleRole, usize, bool), BaseTensor>,
    /// Those held so far.
    bytes: AtomicU64,
}

impl<'a> Weights<'a> {
    pub(super) fn new(s: &'a Supported, source: &'a dyn TensorSource, loading: Loading) -> Self {
        let base = s.decoder.base_tensors(s.layout).into_iter().map(|t| ((t.role, t.layer, t.bias), t)).collect();
        Self { s, source, loading, base, bytes: AtomicU64::new(0) }
    }

    /// Bytes of all that was read, as they are held.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn add_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
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
        match self.held(roles[0], layer)? {
            Held::Blocks(dtype) => self.blocks(roles, layer, dtype),
            Held::Dense(FloatType::F16) => self.floats::<f16>(roles, layer, false).map(Matrix::Dense),
            Held::Dense(FloatType::Bf16) => self.floats::<bf16>(roles, layer, false).map(Matrix::Dense),
            Held::Dense(_) => self.floats::<f32>(roles, layer, false).map(Matrix::Dense),
        }
    }

    /// The weight of a norm, with the description's offset, in the type of the activations.
    pub(super) fn norm(&self, role: ModuleRole, layer: usize) -> Result<Tensor> {
        let weight = self.floats::<f32>(&[role], layer, false)?;
        let offset = self.s.decoder.norm_offset;
        let weight = if offset == 0.0 { Ok(weight) } else { weight + offset };
        self.activated(weight)
    }

    /// The bias of a linear layer, in the type of the activations, if the description gives it one.
    fn bias(&self, roles: &[ModuleRole], layer: usize) -> Result<Option<Tensor>> {
        if !self.base.contains_key(&(roles[0], layer, true)) {
            return Ok(None);
        }
        let bias = self.floats::<f32>(roles, layer, true)?;
        self.activated(Ok(bias)).map(Some)
    }

    fn activated(&self, t: candle_core::Result<Tensor>) -> Result<Tensor> {
        t.and_then(|t| t.to_dtype(self.s.activations))
            .map_err(|e| load_error(&self.s.id, "a norm or bias could not be put on the device", e))
    }

    fn base(&self, role: ModuleRole, layer: usize, bias: bool) -> Result<BaseTensor> {
        self.base.get(&(role, layer, bias)).cloned().ok_or_else(|| {
            Error::load(&self.s.id, format!("its description has no {role:?} in layer {layer} (bias: {bias})"))
        })
    }

    fn held(&self, role: ModuleRole, layer: usize) -> Result<Held> {
        let name = self.base(role, layer, false)?.name;
        let entry = self.source.entry(&name);
        entry
            .and_then(|entry| self.s.held(entry))
            .ok_or_else(|| Error::load(&name, "it is missing, or stored as candle does not read it"))
    }

    /// The tensors of `roles` one below another, as floats.
    fn floats<T: Float>(&self, roles: &[ModuleRole], layer: usize, bias: bool) -> Result<Tensor> {
        let parts = roles.iter().map(|role| self.base(*role, layer, bias)).collect::<Result<Vec<_>>>()?;
        let shape = stacked_shape(&parts);
        let elements: usize = shape.iter().product();
        let counts: Vec<usize> = parts.iter().map(|part| part.shape.iter().product()).collect();
        let all = if parts.len() > 1 && parts.iter().all(|part| self.order(part.role).is_none()) {
            stack::<T>(&counts, |i, rows| self.read_into(&parts[i].name, Some(T::FLOAT), rows))?
        } else {
            let mut all = Vec::new();
            if parts.len() > 1 {
                all.reserve_exact(elements);
            }
            for (part, count) in parts.iter().zip(counts) {
                let data = self.read(&part.name, Some(T::FLOAT), count * T::FLOAT.size())?;
                let row = part.shape[1..].iter().product();
                append::<T>(&mut all, &part.name, data, row, self.order(part.role))?;
                self.loading.tensor_done();
            }
            all
        };
        self.add_bytes((elements * T::FLOAT.size()) as u64);
        Tensor::from_vec(all, shape, &self.s.device)
            .map_err(|e| load_error(&parts[0].name, "it could not be put on the device", e))
    }

    /// The blocks of `roles` one below another: rows are whole blocks.
    fn blocks(&self, roles: &[ModuleRole], layer: usize, dtype: GgmlDType) -> Result<Matrix> {
        let parts = roles.iter().map(|role| self.base(*role, layer, false)).collect::<Result<Vec<_>>>()?;
        let shape = stacked_shape(&parts);
        let size = |elements: usize| elements / dtype.block_size() * dtype.type_size();
        let made = |bytes: &[u8]| {
            QStorage::from_data(bytes.into(), &self.s.device, dtype)
                .and_then(|storage| QTensor::new(storage, &shape[..]))
                .map_err(|e| load_error(&parts[0].name, "it could not be put on the device", e))
        };
        // Blocks have fields of up to 4 bytes, and candle wants them aligned.
        const ALIGN: usize = 8;
        let mut all: Vec<u8> = Vec::new();
        let mut start = 0;
        let mut whole = None;
        for part in &parts {
            let data = self.read(&part.name, None, size(part.shape.iter().product()))?;
            let order = self.order(part.role);
            match &data {
                TensorData::Borrowed(bytes)
                    if parts.len() == 1 && order.is_none() && bytes.as_ptr().align_offset(ALIGN) == 0 =>
                {
                    whole = Some(made(bytes)?);
                }
                _ => {
                    if all.is_empty() {
                        all.reserve_exact(size(shape.iter().product()) + ALIGN);
                        start = all.as_ptr().align_offset(ALIGN);
                        all.resize(start, 0);
                    }
                    append::<u8>(&mut all, &part.name, data, size(part.shape[1]), order)?;
                }
            }
            self.loading.tensor_done();
        }
        let matrix = match whole {
            Some(whole) => whole,
            None => made(&all[start..])?,
        };
        self.add_bytes(matrix.storage_size_in_bytes() as u64);
        Matrix::quantized(matrix).map_err(|e| load_error(&parts[0].name, "it is no matrix", e))
    }

    /// Writes a tensor to its place.
    fn read_into(&self, name: &str, want: Option<FloatType>, out: &mut [u8]) -> Result<()> {
        self.loading.check()?;
        self.source.read_into(name, want, out)?;
        self.loading.tensor_done();
        Ok(())
    }

    fn read(&self, name: &str, want: Option<FloatType>, expected: usize) -> Result<TensorData<'a>> {
        self.loading.check()?;
        let data = self.source.read(name, want)?;
        data.check_len(name, expected)?;
        Ok(data)
    }

    fn order(&self, role: ModuleRole) -> Option<RowOrder> {
        self.s.row_order(role)
    }
}

/// The shape of tensors one below another.
fn stacked_shape(parts: &[BaseTensor]) -> Vec<usize> {
    let mut shape = parts[0].shape.clone();
    shape[0] = parts.iter().map(|t| t.shape[0]).sum();
    shape
}
