//! What an adapter says of its base.

use crate::model::Architecture;

/// What an adapter says of the base it was trained on. All of it may be missing, or be a path of the trainer's disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BaseHint {
    /// A repository id or path.
    pub name: Option<String>,
    /// A revision.
    pub revision: Option<String>,
    /// The architecture that its tensors are named for, where its format says that (GGUF): one with the same
    /// [name in GGUF files](Architecture::gguf_name).
    pub architecture: Option<Architecture>,
}

impl BaseHint {
    /// A hint of `name` at `revision`.
    pub fn new(name: Option<String>, revision: Option<String>) -> Self {
        Self { name, revision, architecture: None }
    }

    /// Sets the architecture.
    pub fn with_architecture(mut self, architecture: Architecture) -> Self {
        self.architecture = Some(architecture);
        self
    }
}
