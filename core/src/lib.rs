//! The contract of llm-local: what a backend, a model source or an adapter source implements, and the plain data
//! that passes between them.
//!
//! A plugin author depends on this crate alone. It has no HTTP client, no async runtime and no tensor framework.
//!
//! | module | what it holds |
//! |---|---|
//! | [`spec`] | [`ModelSpec`]: what to run, as plain data; [`SpecLock`]: the bytes that it meant |
//! | [`artifact_ref`] | [`ArtifactRef`]: `scheme:locator[@revision][#fragment]` |
//! | [`manifest`] | [`Manifest`]: a ref pinned to an immutable revision, with its files, their [`Digest`]s, and what is [unpacked](Unpack) of them |
//! | [`source`] | [`ModelSource`] and [`AdapterSource`]: where artifacts are |
//! | [`tensor`] | [`TensorSource`]: tensors by name, in the encoding they are stored in or the float type asked for |
//! | [`model`] | [`ModelInfo`] and [`model::DecoderConfig`]: an architecture described as data |
//! | [`lora`] | [`LoraAdapter`]: the one internal form of every adapter format |
//! | [`backend`] | [`InferenceBackend`] and [`LoadedModel`]: code that runs models |
//! | [`generate`] | [`GenerateRequest`], [`Generation`] and its events |
//! | [`progress`] | [`ProgressHandler`] and its events |
//! | [`mod@plugin`] | [`Plugin`], the const descriptor, and [`submit!`] |
//! | [`registry`] | [`Registry`]: names to plugins, and which of them a spec gets |
//! | [`error`] | [`Error`] |
//!
//! # A plugin
//!
//! ```
//! use std::sync::Arc;
//! use llm_local_core::{Error, InferenceBackend, Plugin, PluginContext, Result};
//!
//! fn make(_: &PluginContext) -> Result<Arc<dyn InferenceBackend>> {
//!     Err(Error::backend_unavailable("abacus", "this machine has no beads"))
//! }
//!
//! pub const PLUGIN: Plugin = llm_local_core::plugin!("abacus").with_backend(-10, make);
//! llm_local_core::submit!(PLUGIN);
//! # fn main() {}
//! ```

pub mod artifact_ref;
pub mod backend;
mod decimal_bytes;
mod digest;
pub mod error;
pub mod generate;
mod keep_alive;
mod kv_cache;
mod lock;
pub mod lora;
pub mod manifest;
pub mod model;
pub mod plugin;
pub mod progress;
pub mod registry;
mod session;
pub mod source;
pub mod spec;
pub mod tensor;
mod unpack;

pub use artifact_ref::ArtifactRef;
pub use backend::{
    Capabilities, Counters, DeviceInfo, DeviceKind, DeviceMemory, InferenceBackend, LoadOptions, LoadedInfo,
    LoadedModel, LogitsRequest, MemoryEstimate, MemoryReport, ModelWeights, Support, TextFiles, TrimLevel,
};
pub use decimal_bytes::DecimalBytes;
pub use digest::Digest;
pub use error::{Cause, Error, Result};
pub use generate::{
    Completion, FinishReason, GenerateRequest, Generation, GenerationEvent, GenerationStats, Input, Message, Role,
    Sampling, SessionId, Usage, UsedAdapter,
};
pub use keep_alive::KeepAlive;
pub use kv_cache::KvCacheType;
pub use lock::{LockedArtifact, SpecLock};
pub use lora::{AdapterPolicy, AdapterSet, Allowance, LoraAdapter, LoraModule};
pub use manifest::{Manifest, ManifestFile, Want};
pub use model::{DecoderConfig, GgufMetadata, GgufValue, ModelFormat, ModelInfo};
pub use plugin::{Plugin, PluginContext};
pub use progress::{DownloadProgress, FileProgress, ProgressEvent, ProgressHandler};
pub use registry::{Registry, Resolution};
pub use session::{SessionState, SessionTensor};
pub use source::{
    AdapterSource, ArtifactSource, FetchContext, ModelSource, Opened, PlacedFile, Placement, Refusal, Request, Revision,
};
pub use spec::{AdapterSpec, BackendPreference, ComputeDtype, ContextLength, ModelSpec};
pub use tensor::{Encoding, FloatType, GgmlType, IntType, TensorData, TensorEntry, TensorSource};
pub use unpack::Unpack;

// Re-exported because their types are in the signatures above: an author needs no dependency of its own for them.
pub use async_trait::async_trait;
pub use bytes::Bytes;
pub use futures_core::Stream;
pub use serde_json;
pub use tokio_util::sync::CancellationToken;

#[doc(hidden)]
pub use inventory;
