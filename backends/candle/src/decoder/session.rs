//! Caches that are cut, copied, saved and restored.

use std::collections::BTreeMap;

use candle_core::Tensor;
use llm_local_backend_common::decoder::window;
use llm_local_core::{Error, Result, SessionState, SessionTensor};

use super::{
    Decoder,
    cache::{Cache, LayerCache},
};
use crate::{
    elements::{candle_dtype, float_type, little_endian},
    errors::generation_error,
};

/// What is written: this backend's name and the version of the form.
const FORMAT: &str = "candle 1";

impl Cache {
    /// Forgets all but the first `tokens` tokens. `false`, with nothing changed, if a window has left behind what the
    /// next token sees.
    pub(super) fn truncate(&mut self, tokens: usize) -> bool {
        if tokens >= self.tokens {
            return tokens == self.tokens;
        }
        if !self.layers.iter().all(|layer| layer.reaches(tokens)) {
            return false;
        }
        self.layers.iter_mut().for_each(|layer| layer.truncate(tokens));
        self.tokens = tokens;
        self.expected = 0;
        true
    }

    /// One of its own with the same content.
    pub(super) fn copied(&self) -> candle_core::Result<Self> {
        Ok(Self {
            layers: self.layers.iter().map(LayerCache::copied).collect::<candle_core::Result<_>>()?,
            tokens: self.tokens,
            expected: self.expected,
            long: self.long,
        })
    }
}

impl Decoder {
    /// The rows of every layer that are worth saving, with what [`Decoder::import`] checks.
    pub(super) fn export(&self, cache: &Cache) -> Result<(BTreeMap<String, String>, Vec<SessionTensor>)> {
        let mut metadata = BTreeMap::from([
            ("format".to_owned(), FORMAT.to_owned()),
            ("tokens".to_owned(), cache.tokens.to_string()),
            ("long".to_owned(), cache.long.to_string()),
        ]);
        let mut tensors = Vec::new();
        for (i, layer) in cache.layers.iter().enumerate() {
            let failed = |e| generation_error("candle could not read a KV cache", e);
            let (first, rows) = layer.saved().map_err(failed)?;
            metadata.insert(format!("layers.{i}.first"), first.to_string());
            let Some((keys, values)) = rows else { continue };
            for (part, rows) in [("keys", keys), ("values", values)] {
                let data = little_endian(&rows).map_err(failed)?;
                let name = format!("layers.{i}.{part}");
                tensors.push(SessionTensor::new(name, float_type(rows.dtype()), rows.dims().to_vec(), data));
            }
        }
        Ok((metadata, tensors))
    }

    /// What [`Decoder::export`] gave, after everything in it was compared with what this model would have written.
    pub(super) fn import(&self, state: &SessionState) -> Result<Cache> {
        let tokens = state.tokens.len();
        expect(state, "format", FORMAT)?;
        expect(state, "tokens", &tokens.to_string())?;
        if tokens > self.dimensions.context_length {
            return Err(refused(
                "tokens",
                format!("{tokens} are more than the context of {} tokens", self.dimensions.context_length),
            ));
        }
        if let Some(id) = state.tokens.iter().find(|id| **id as usize >= self.vocab_size) {
            return Err(refused("tokens", format!("token {id} is not in the vocabulary of {}", self.vocab_size)));
        }
        let long = match entry(state, "long")? {
            "true" if self.rotary.changes() => true,
            "false" => false,
            other => return Err(refused("long", format!("it is {other:?}, which this model's sequences are not"))),
        };
        let mut left: BTreeMap<&str, &SessionTensor> = state.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
        if left.len() != state.tensors.len() {
            return Err(refused("tensors", "a name stands there twice".into()));
        }
        let mut layers = Vec::with_capacity(self.windows.len());
        for (i, size) in self.windows.iter().enumerate() {
            let name = format!("layers.{i}.first");
            let first = entry(state, &name)?;
            let fits = |first: &usize| *first <= window::oldest(*size, tokens);
            let first = first.parse().ok().filter(fits).ok_or_else(|| {
                let most = window::oldest(*size, tokens);
                refused(&name, format!("it is {first:?}; with {tokens} tokens it is at most {most} here"))
            })?;
            let rows = if first == tokens {
                None
            } else {
                let mut part = |part| self.rows(&mut left, &format!("layers.{i}.{part}"), tokens - first);
                Some((part("keys")?, part("values")?))
            };
            let restored = || -> candle_core::Result<_> {
                // A crafted state may have any number of rows.
                let from = first.max(window::saved_from(*size, tokens));
                let newest = |t: &Tensor| t.narrow(1, from - first, tokens - from);
                let rows = rows.as_ref().map(|(k, v)| candle_core::Result::Ok((newest(k)?, newest(v)?))).transpose()?;
                LayerCache::from_rows(*size, from, rows.as_ref())
            };
            let failed = |e| generation_error("candle could not restore a KV cache", e);
            layers.push(restored().map_err(failed)?);
        }
        if let Some(name) = left.into_keys().next() {
            return Err(refused(name, "this model has no such tensor".into()));
        }
        Ok(Cache { layers, tokens, expected: 0, long })
    }

    /// Takes the tensor `name` out of `left`, if it is one of `rows` positions of a layer.
    fn rows(&self, left: &mut BTreeMap<&str, &SessionTensor>, name: &str, rows: usize) -> Result<Tensor> {
        let tensor = left.remove(name).ok_or_else(|| refused(name, "it is missing".into()))?;
        let shape = [self.dimensions.kv_heads, rows, self.dimensions.head_dim];
        let dtype = float_type(self.dtype());
        let bytes = shape.iter().product::<usize>() * dtype.size();
        if tensor.shape != shape || tensor.dtype != dtype || tensor.data.len() != bytes {
            let found = tensor.data.len();
            return Err(refused(
                name,
                format!("it is {tensor:?} in {found} bytes; expected {dtype} {shape:?} in {bytes}"),
            ));
        }
        Tensor::from_raw_buffer(&tensor.data, candle_dtype(dtype), &shape, self.device())
            .map_err(|e| generation_error(&format!("candle could not restore {name}"), e))
    }
}

fn entry<'a>(state: &'a SessionState, key: &str) -> Result<&'a str> {
    state.metadata.get(key).map(String::as_str).ok_or_else(|| refused(key, "it is missing".into()))
}

fn expect(state: &SessionState, key: &str, expected: &str) -> Result<()> {
    match entry(state, key)? {
        found if found == expected => Ok(()),
        found => Err(refused(key, format!("it is {found:?}; expected {expected:?}"))),
    }
}

fn refused(field: &str, why: String) -> Error {
    Error::invalid_spec("session", format!("{field}: {why}"))
}
