#![doc = include_str!("../README.md")]

pub mod adapters;
pub mod builtin;
pub mod engine;
pub mod export;
pub mod lock;
pub mod lora;
pub mod memory;
pub mod plan;
pub mod policy;
pub mod session;

mod blocking;
mod content;
mod new_folder;
mod tensor_file;

pub use adapters::Adapters;
pub use engine::{AdapterLimits, Engine, EngineBuilder, LoadStats, Model, ModelDigest};
pub use export::Exported;
pub use plan::{PinnedBy, Plan, PlannedArtifact};
pub use policy::Policy;
pub use session::{SavedCache, Session, Turn, TurnOptions};

pub use llm_local_core as core;
pub use llm_local_core::{
    AdapterPolicy, AdapterSet, AdapterSource, AdapterSpec, ArtifactRef, BackendPreference, Completion, ComputeDtype,
    ContextLength, DownloadProgress, Error, FileProgress, FinishReason, GenerateRequest, Generation, GenerationEvent,
    InferenceBackend, Input, KvCacheType, LogitsRequest, Message, ModelSource, ModelSpec, Plugin, ProgressEvent,
    ProgressHandler, Registry, Result, Role, Sampling, SpecLock, Usage, UsedAdapter,
    lora::{BareFormat, Combination},
};
pub use llm_local_source_common::{
    network::NetworkConfig,
    progress::DownloadStream,
    store::{self, Store},
    transfer::TransferConfig,
};
