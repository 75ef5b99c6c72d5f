//! What an adapter says of its base.

/// What an adapter says of the base it was trained on. All of it may be missing, or be a path of the trainer's disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BaseHint {
    /// A repository id or path.
    pub name: Option<String>,
    /// A revision.
    pub revision: Option<String>,
}

impl BaseHint {
    /// A hint of `name` at `revision`.
    pub fn new(name: Option<String>, revision: Option<String>) -> Self {
        Self { name, revision }
    }
}
