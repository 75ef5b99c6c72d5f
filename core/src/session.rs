//! Sessions as data: what a backend gives out and takes back, so that a chat can go on after a restart.

use std::{collections::BTreeMap, fmt};

use crate::FloatType;

/// The computed part of a session: its tokens and their KV cache.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct SessionState {
    /// The tokens that are computed.
    pub tokens: Vec<u32>,
    /// What the backend needs beside the tensors to take it back. `format` names the backend and the version of what it
    /// writes; a backend refuses what it does not know.
    pub metadata: BTreeMap<String, String>,
    /// The KV cache, in the backend's order.
    pub tensors: Vec<SessionTensor>,
}

impl SessionState {
    /// The state of a session that has computed `tokens`.
    pub fn new(tokens: Vec<u32>, metadata: BTreeMap<String, String>, tensors: Vec<SessionTensor>) -> Self {
        Self { tokens, metadata, tensors }
    }
}

impl fmt::Debug for SessionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionState")
            .field("tokens", &self.tokens.len())
            .field("metadata", &self.metadata)
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

/// One tensor of a [`SessionState`].
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct SessionTensor {
    /// Its name: `layers.0.keys`.
    pub name: String,
    /// Its type.
    pub dtype: FloatType,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its data, row-major, little-endian.
    pub data: Vec<u8>,
}

impl SessionTensor {
    /// A tensor `name` of `shape`.
    pub fn new(name: impl Into<String>, dtype: FloatType, shape: Vec<usize>, data: Vec<u8>) -> Self {
        Self { name: name.into(), dtype, shape, data }
    }
}

impl fmt::Debug for SessionTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?}", self.name, self.dtype, self.shape)
    }
}
