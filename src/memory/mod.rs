//! Memory: how much a model may take.
//!
//! | module | what it holds |
//! |---|---|
//! | `context` | how long a context is |

// What the engine asks of it comes with the budget.
#[cfg_attr(not(test), allow(dead_code))]
mod context;

pub use context::{ContextTier, ContextTiers};
