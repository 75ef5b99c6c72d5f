//! Small, deterministic implementations of the contract's traits. They are real: a fake backend reads the tensors it
//! is given, a fake model counts tokens and enforces its context. What they do not do they refuse.

mod backend;
mod echo;
mod gate;
mod generation;
mod machine;
mod memory_source;
mod model;
mod sessions;
mod tensors;

pub use backend::{Calls, FakeBackend};
pub use gate::Gate;
pub use machine::Happening;
pub use memory_source::MemorySource;
pub use model::FakeModel;
pub(crate) use tensors::decode;
pub use tensors::{CountingTensorSource, MemoryTensorSource, PanickingTensorSource};
