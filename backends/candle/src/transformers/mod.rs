//! Architectures that [`DecoderConfig`](llm_local_core::model::DecoderConfig) does not describe, through
//! candle-transformers: safetensors alone, in f32 alone, without sessions.
//!
//! Phi computes a whole prompt in one step, whatever its length: candle-transformers' mask of it is as wide as a step's
//! own tokens. A generation that is cancelled or dropped, and whatever else the worker is asked for, waits for that
//! step to end. The others compute a prompt in steps, between which the worker looks.
//!
//! | module | what it holds |
//! |---|---|
//! | `fields` | config.json, of which no field is overlooked |
//! | `description` | what an architecture's config comes to: its sizes, its tensors, its model |
//! | `families` | the architectures, each with what candle-transformers computes of it |
//! | `check` | whether a model is one of them, and can be run |
//! | `estimate` | how much memory it takes |
//! | `load` | from weights to a worker |
//! | `wrapped` | the model behind the worker's trait |

mod check;
mod description;
mod estimate;
mod families;
mod fields;
mod load;
#[cfg(test)]
mod tests;
mod wrapped;

pub(crate) use {
    check::{Supported, check},
    estimate::estimate,
    load::load,
    wrapped::Wrapped,
};
