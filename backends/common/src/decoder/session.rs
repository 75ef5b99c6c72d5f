//! KV caches as data: what a session's state has, and the check of one that may come from a file.

use std::collections::BTreeMap;

use llm_local_core::{Error, FloatType, Result, SessionState, SessionTensor};

use super::window;

/// What a model writes of a KV cache, and takes back.
#[derive(Debug, Clone, Copy)]
pub struct SessionForm<'a> {
    /// The backend's name and the version of the form: "candle 1".
    pub format: &'a str,
    /// The window of each layer.
    pub windows: &'a [Option<usize>],
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Numbers of a head.
    pub head_dim: usize,
    /// The type of keys and values.
    pub dtype: FloatType,
    /// The longest context, in tokens.
    pub context_length: usize,
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Whether rotary frequencies change with the length of the sequence.
    pub changes: bool,
}

/// The rows of one layer that are worth saving.
#[derive(Debug)]
pub struct SavedRows {
    /// The position of the first.
    pub first: usize,
    /// How many there are.
    pub rows: usize,
    /// Keys and values, each of shape (kv_heads, rows, head_dim), row-major, little-endian; `None` without rows.
    pub data: Option<[Vec<u8>; 2]>,
}

/// A saved KV cache that fits the model.
#[derive(Debug)]
pub struct SavedCache<'s> {
    /// Tokens computed.
    pub tokens: usize,
    /// Whether it was computed with the rotary frequencies of long sequences.
    pub long: bool,
    /// The layers, in order.
    pub layers: Vec<SavedLayer<'s>>,
}

/// One layer of a [`SavedCache`].
#[derive(Debug)]
pub struct SavedLayer<'s> {
    /// The position of the first row of its tensors.
    pub first: usize,
    /// The position of the first row that is to be restored, `first` or behind it: a crafted state may have any number.
    pub from: usize,
    /// Keys and values, each of shape (kv_heads, tokens - first, head_dim); `None` without rows.
    pub tensors: Option<[&'s SessionTensor; 2]>,
}

/// The parts of a layer, as they are named.
const PARTS: [&str; 2] = ["keys", "values"];

impl SessionForm<'_> {
    /// Metadata and tensors of a cache that has computed `tokens` tokens, from the rows of its layers in order.
    ///
    /// # Errors
    /// What `layers` gave.
    pub fn write(
        &self,
        tokens: usize,
        long: bool,
        layers: impl IntoIterator<Item = Result<SavedRows>>,
    ) -> Result<(BTreeMap<String, String>, Vec<SessionTensor>)> {
        let mut metadata = BTreeMap::from([
            ("format".to_owned(), self.format.to_owned()),
            ("tokens".to_owned(), tokens.to_string()),
            ("long".to_owned(), long.to_string()),
        ]);
        let mut tensors = Vec::new();
        for (i, layer) in layers.into_iter().enumerate() {
            let SavedRows { first, rows, data } = layer?;
            metadata.insert(format!("layers.{i}.first"), first.to_string());
            for (part, data) in PARTS.into_iter().zip(data.into_iter().flatten()) {
                let shape = vec![self.kv_heads, rows, self.head_dim];
                tensors.push(SessionTensor::new(format!("layers.{i}.{part}"), self.dtype, shape, data));
            }
        }
        Ok((metadata, tensors))
    }

    /// What [`SessionForm::write`] gave, after everything in it was compared with what this model would have written.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] that says what does not fit.
    pub fn check<'s>(&self, state: &'s SessionState) -> Result<SavedCache<'s>> {
        let tokens = state.tokens.len();
        expect(state, "format", self.format)?;
        expect(state, "tokens", &tokens.to_string())?;
        if tokens > self.context_length {
            let why = format!("{tokens} are more than the context of {} tokens", self.context_length);
            return Err(refused("tokens", why));
        }
        if let Some(id) = state.tokens.iter().find(|id| **id as usize >= self.vocab_size) {
            return Err(refused("tokens", format!("token {id} is not in the vocabulary of {}", self.vocab_size)));
        }
        let long = match entry(state, "long")? {
            "true" if self.changes => true,
            "false" => false,
            other => return Err(refused("long", format!("it is {other:?}, which this model's sequences are not"))),
        };
        let mut left: BTreeMap<&str, &SessionTensor> = state.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
        if left.len() != state.tensors.len() {
            return Err(refused("tensors", "a name stands there twice".into()));
        }
        let mut layers = Vec::with_capacity(self.windows.len());
        for (i, window) in self.windows.iter().enumerate() {
            let name = format!("layers.{i}.first");
            let (first, most) = (entry(state, &name)?, window::oldest(*window, tokens));
            let first = first.parse().ok().filter(|first| *first <= most).ok_or_else(|| {
                refused(&name, format!("it is {first:?}; with {tokens} tokens it is at most {most} here"))
            })?;
            let mut part = |part| self.rows(&mut left, &format!("layers.{i}.{part}"), tokens - first);
            let tensors = if first == tokens { None } else { Some([part(PARTS[0])?, part(PARTS[1])?]) };
            layers.push(SavedLayer { first, from: first.max(window::saved_from(*window, tokens)), tensors });
        }
        match left.into_keys().next() {
            Some(name) => Err(refused(name, "this model has no such tensor".into())),
            None => Ok(SavedCache { tokens, long, layers }),
        }
    }

    /// Takes the tensor `name` out of `left`, if it is one of `rows` positions of a layer.
    fn rows<'s>(
        &self,
        left: &mut BTreeMap<&str, &'s SessionTensor>,
        name: &str,
        rows: usize,
    ) -> Result<&'s SessionTensor> {
        let tensor = left.remove(name).ok_or_else(|| refused(name, "it is missing".into()))?;
        let (shape, dtype) = ([self.kv_heads, rows, self.head_dim], self.dtype);
        let bytes = shape.iter().product::<usize>() * dtype.size();
        if tensor.shape != shape || tensor.dtype != dtype || tensor.data.len() != bytes {
            let found = tensor.data.len();
            return Err(refused(
                name,
                format!("it is {tensor:?} in {found} bytes; expected {dtype} {shape:?} in {bytes}"),
            ));
        }
        Ok(tensor)
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
