//! What a set of adapters changes of a model, module by module, as plain data: a backend puts it beside its matrices.
//!
//! | module | what it holds |
//! |---|---|
//! | `names` | the names of tensors, projections apart or fused, and the modules that these are |
//! | `plan` | what a set changes, module by module, checked against the model |
//! | `changes` | what adapters change of one module |
//! | `pieces`, `dora` | low-rank pairs beside a matrix, and DoRA's norms |
//! | `values` | floats in the type they are stored in |
//!
//! Everything is in the names and in the order of the Hugging Face layout, whatever the base's own layout is.

mod changes;
mod dora;
mod names;
mod pieces;
mod plan;
#[cfg(test)]
mod tests;
mod values;

pub use changes::{By, Changes, whole_bf16};
pub use dora::Dora;
pub use names::apart;
pub use pieces::{OnePair, Piece, Pieces};
pub use plan::{Plan, references};
pub use values::Values;
