//! The thread that owns a model and serves generations in fair steps.
//!
//! | module | what it holds |
//! |---|---|
//! | `model` | [`StepModel`], what a backend writes, and [`Built`] |
//! | `spawn` | [`spawn`]: the thread, and the load on it |
//! | `handle` | the `LoadedModel` that callers hold |
//! | `command` | what the handle asks of the thread |
//! | `run_loop` | whose turn it is |
//! | `task` | one participant: a generation or a request for logits |
//! | `generation`, `logits` | what each does in its turn |
//! | `sequence` | tokens and their KV cache |
//! | `prompt` | the tokens of an input, checked |
//! | `events` | the channel of a generation, and the stream its consumer reads |
//! | `shared` | counters and bytes in use, read without asking the thread |
//! | `caught` | panics turned into errors |
//! | `clock` | time, so that tests can set it |
//!
//! # Rules
//!
//! - A step is one prefill chunk or one decoded token. Participants take turns, one step each. A generation whose
//!   consumer has not read its last event is passed over: the thread never waits for a consumer while another
//!   participant could go on, and never without looking at commands.
//! - The last event of a generation has a place of its own, so it needs no consumer either.
//! - A prompt may fill the context exactly; then its generation ends at once, without a token, with
//!   `FinishReason::Length`. So does one with `max_tokens` 0. Nothing is computed for either.
//! - A token is computed only if another is to follow it.
//! - Dropping the last handle ends the thread once the generations that are still held have ended; `unload` cuts them.

mod caught;
mod clock;
mod command;
mod events;
mod generation;
mod handle;
mod logits;
mod model;
mod prompt;
mod run_loop;
mod sequence;
mod shared;
mod spawn;
mod task;

pub use model::{Built, StepModel};
pub use spawn::spawn;

#[cfg(test)]
mod tests;
