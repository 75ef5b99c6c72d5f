//! The one internal form of an adapter. Readers of every format produce it; report, merge and conversion read only it.

mod adapter;
mod bare;
mod combination;
mod feature;
mod floats;
mod format;
mod hint;
mod module;
mod policy;
mod set;
mod targets;

pub use adapter::LoraAdapter;
pub use bare::BareFormat;
pub use combination::{Combination, MajoritySign};
pub use feature::AdapterFeature;
pub use floats::Floats;
pub use format::{AdapterFiles, AdapterFormat};
pub use hint::BaseHint;
pub use module::{LoraModule, ReplacedRows, ReplacementTensor};
pub use policy::{AdapterPolicy, Allowance};
pub use set::AdapterSet;
pub use targets::{DeclaredTargets, ModuleSelector};
