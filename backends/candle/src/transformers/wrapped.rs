//! A model of candle-transformers behind the worker's trait.

use std::{collections::HashMap, convert::Infallible};

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use llm_local_backend_common::{
    decoder::{Loading, check_step},
    worker::StepModel,
};
use llm_local_core::{Result, TensorSource, TrimLevel};

use super::{check::Supported, description::Forward};
use crate::{
    device,
    elements::read_f32,
    errors::{generation_error, load_error},
    heap,
};

/// A model of candle-transformers. Each keeps its KV cache inside, without a way to take it out: a sequence gets a
/// model of its own, over the same weights.
pub(crate) struct Wrapped {
    what: Supported,
    tensors: VarBuilder<'static>,
    context_length: usize,
    weight_bytes: u64,
}

/// The model of one sequence.
pub(crate) struct Sequence {
    model: Box<dyn Forward>,
    /// Tokens in its cache.
    tokens: usize,
}

impl Wrapped {
    /// Reads every tensor in f32, then builds a model once, so that nothing is left to fail at the first prompt.
    pub(crate) fn load(
        what: Supported,
        source: &dyn TensorSource,
        context_length: usize,
        loading: Loading,
    ) -> Result<Self> {
        let mut tensors = HashMap::new();
        let mut weight_bytes = 0;
        for (name, shape) in &what.description.tensors {
            loading.check()?;
            let made = Tensor::from_vec(read_f32(source, name)?, shape.as_slice(), &what.device);
            let tensor = made.map_err(|e| load_error(name, "it could not be put on the device", e))?;
            weight_bytes += (tensor.elem_count() * DType::F32.size_in_bytes()) as u64;
            tensors.insert(name.clone(), tensor);
            loading.tensor_done();
        }
        let tensors = VarBuilder::from_tensors(tensors, DType::F32, &what.device);
        let model = Self { what, tensors, context_length, weight_bytes };
        model.build()?;
        Ok(model)
    }

    fn build(&self) -> Result<Box<dyn Forward>> {
        let built = self.what.description.build(self.context_length, self.tensors.clone());
        built.map_err(|e| load_error(&self.what.id, "candle-transformers could not build the model", e))
    }

    fn step(&self, cache: &mut Sequence, tokens: &[u32]) -> Result<Vec<f32>> {
        let position = cache.tokens;
        let mut compute = || -> candle_core::Result<Vec<f32>> {
            let input = Tensor::new(tokens, &self.what.device)?.unsqueeze(0)?;
            cache.model.forward(&input, position)?.flatten_all()?.to_vec1()
        };
        let logits = compute().map_err(|e| {
            let what = format!("candle could not compute {} tokens at position {position}", tokens.len());
            generation_error(&what, e)
        })?;
        cache.tokens += tokens.len();
        Ok(logits)
    }
}

impl StepModel for Wrapped {
    type Cache = Sequence;
    type Adapters = Infallible;

    fn new_cache(&mut self, _: usize) -> Result<Sequence> {
        Ok(Sequence { model: self.build()?, tokens: 0 })
    }

    fn forward(
        &mut self,
        cache: &mut Sequence,
        tokens: &[u32],
        position: usize,
        _: Option<&Infallible>,
    ) -> Result<Vec<f32>> {
        let d = &self.what.description;
        check_step(tokens, position, cache.tokens, self.context_length, d.sizes.vocab)?;
        match tokens.split_last() {
            Some((last, before)) if position > 0 && !d.takes_chunks => {
                for token in before {
                    self.step(cache, &[*token])?;
                }
                self.step(cache, &[*last])
            }
            _ => self.step(cache, tokens),
        }
    }

    fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    fn cache_bytes(&self, _: &Sequence, positions: usize) -> u64 {
        self.what.description.kv_bytes_per_token() * positions as u64
    }

    /// What sessions held is free by now, but the allocator keeps it.
    fn trim(&mut self, _: TrimLevel) -> Result<u64> {
        device::release(&self.what.device);
        heap::trim_thread();
        Ok(0)
    }
}
