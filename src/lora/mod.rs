//! LoRA adapters: any format is [read](read()) into one internal form ([`LoraAdapter`]), [checked](fit()) against a
//! base's headers, and merged while the base is read ([`MergedSource`]).
//!
//! | module | what it holds |
//! |---|---|
//! | `read` | files of any format into a [`LoraAdapter`] |
//! | `targets` | which modules of a base an adapter says it applies to |
//! | `fit` | whether adapters fit a base, decided before any weight of it is read |
//! | `outline` | an adapter without its values, for those that are not on this machine yet |
//! | `report` | the same as a report, also of adapters that do not fit, and how much they change |
//! | `combine` | several adapters into one, as PEFT combines them |
//! | `merge` | a [`TensorSource`](llm_local_core::TensorSource) that gives the sum of base and adapters |
//! | `quantized` | tensors that a base holds quantized, and what a merge makes of them |
//! | `write` | a [`LoraAdapter`] into files of any format that can express it |
//! | `beside` | adapters that a backend runs beside the weights |
//! | `rows` | rows of pairs in another order |
//! | `sound` | whether an adapter is whole |
//! | `floats` | stored floats to f32 and back |
//! | `message` | words that messages share |
//!
//! Whatever is wrong is an [`Error::AdapterMergeFailed`](llm_local_core::Error::AdapterMergeFailed): nothing about an
//! adapter is ignored, and no adapter applies in part.

mod beside;
mod combine;
mod fit;
mod floats;
mod merge;
mod message;
mod outline;
mod quantized;
mod read;
mod report;
mod rows;
mod sound;
mod targets;
#[cfg(test)]
mod testing;
mod write;

pub use combine::{combine, module_order};
pub use fit::{Defect, FitReport, FittedAdapter, TouchedTensor, fit, fit_allowing};
pub use llm_local_core::lora::{
    BareFormat, BaseHint, Combination, DeclaredTargets, Floats, LoraAdapter, LoraModule, MajoritySign, ModuleSelector,
};
pub use merge::MergedSource;
pub use read::{ReadOptions, read, read_with};
pub use report::{
    BaseFacts, BaseIdentity, CompatibilityReport, IdentityCheck, IdentityVerdict, ModuleEffect, TargetReport,
    TensorReport, TensorState,
};
pub(crate) use write::write_while_wanted;
pub use write::{WriteFormat, WrittenAdapter, write};

pub(crate) use beside::{for_backend, only_merged, without};
pub(crate) use combine::{check_order, combine_left, combined_outline};
pub(crate) use fit::{check_values, fit_outlines_allowing};
pub(crate) use merge::merge_peak;
pub(crate) use outline::AdapterOutline;
pub(crate) use quantized::{not_mergeable, not_requantizable};
pub(crate) use read::{CONFIG, check_readable, config_format, declare, declare_if_builtin, gguf_base};
