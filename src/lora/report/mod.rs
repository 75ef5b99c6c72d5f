//! Whether an adapter fits a base, as a report: made from headers before any weight of the base is read, and made also where
//! the adapter does not fit.
//!
//! | file | what it holds |
//! |---|---|
//! | `compatibility` | the report as data |
//! | `identity` | whether the base is the one that the adapter was trained on |
//! | `effect` | how much the adapter changes, from the weights |
//! | `text` | the report as text |

mod compatibility;
mod effect;
mod identity;
mod text;

#[cfg(test)]
mod tests;

pub use compatibility::{CompatibilityReport, TargetReport, TensorReport, TensorState};
pub use effect::ModuleEffect;
pub use identity::{BaseFacts, BaseIdentity, IdentityCheck, IdentityVerdict};
