//! The thread that owns a model and serves generations in fair steps.
//!
//! | module | what it holds |
//! |---|---|
//! | `model` | [`StepModel`], what a backend writes, [`Built`] and [`NewTensors`] |
//! | `spawn` | [`spawn`] and [`spawn_on`]: a load on a thread of its own, or on one that models share |
//! | `shared_thread` | [`SharedThread`], and whose turn it is there |
//! | `load` | a worker, from the load to its end |
//! | `handle` | the `LoadedModel` that callers hold |
//! | `command` | what the handle asks of the thread |
//! | `run_loop` | whose turn it is |
//! | `task` | one participant: a generation, a request for logits, or a call about a session |
//! | `generation`, `logits`, `session_call` | what each does in its turn |
//! | `sequence` | tokens and their KV cache |
//! | `adapters` | sets of adapters, made ready once for all that use them |
//! | `sessions` | what sessions have computed, while no generation uses it |
//! | `claims` | who may have a session, in order |
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
//! - On a [`SharedThread`] the participants of each model take turns among themselves, and the models, the loads and the calls
//!   take turns there: a step, a tensor or a call each. Each load and each model ends for itself, and what it had is dropped on
//!   the thread.
//! - The last event of a generation has a place of its own, so it needs no consumer either.
//! - A prompt may fill the context exactly; then its generation ends at once, without a token, with
//!   `FinishReason::Length`. So does one with `max_tokens` 0. Nothing is computed for either.
//! - A token is computed only if another is to follow it.
//! - A session belongs to one request at a time: a generation, or a call such as `end_session`. Later ones wait in
//!   order, and are passed over like a generation without room. A generation that nobody reads keeps its session; what
//!   waits for that session waits on, and can be cancelled or dropped.
//! - A generation takes its session's cache when it computes its first token, keeps of it what its prompt begins with,
//!   and gives back all that is computed when it ends: finished, cancelled or dropped. After an error or a panic the
//!   cache is dropped. One that ends before that leaves the session as it was.
//! - A cache that does not hold the tokens that its sequence has come to ([`StepModel::holds`]) is dropped, and the
//!   sequence computed anew like a prompt: chunk by chunk, a turn for each, and counted. Before the first token of an
//!   answer nothing was cached then; behind it, what is computed anew counts with the tokens decoded.
//! - The last token of a prompt is always computed, because its logits choose the next one.
//! - A request computes with one set of adapters: the one it names, or else the model's own of the moment when it was
//!   made. `set_adapters` is obeyed in line with the requests, and leaves those before it as they are. A set is made
//!   ready in the first turn that computes with it, is there once however many use it, and is dropped behind the last.
//! - A session has a cache for each set of adapters, and none is used under another set. Those of the model's own set
//!   are forgotten when it is replaced: nothing says that it comes back.
//!   Of those of sets that requests name, a session keeps the [`NAMED_SETS`] used last.
//! - `replace_tensors` is obeyed in line too. Requests made before it with the model's own set keep the weights that they
//!   started with; one that names a set, and has not begun, begins with the new ones. The caches of all sessions are
//!   forgotten. While tensors are read nobody else has a turn, and of the commands only an unload is noticed.
//! - Trimming the sessions drops the caches of those that no generation is using; `unload` drops all.
//! - Dropping the last handle ends the thread once the generations that are still held have ended; `unload` cuts them.

mod adapters;
mod caught;
mod claims;
mod clock;
mod command;
mod events;
mod generation;
mod handle;
mod load;
mod logits;
mod model;
mod prompt;
mod run_loop;
mod sequence;
mod session_call;
mod sessions;
mod shared;
mod shared_thread;
mod spawn;
mod task;

pub use model::{Built, NewTensors, StepModel};
pub use sessions::NAMED_SETS;
pub use shared_thread::{SharedThread, yield_now};
pub use spawn::{spawn, spawn_on};

#[cfg(test)]
mod tests;
