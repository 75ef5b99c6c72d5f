//! What decoders of backends share: the checks of a model before a weight is read, what a load tells and asks, and the
//! arithmetic of positions. Nothing here knows what tensors are computed with.
//!
//! | module | what it holds |
//! |---|---|
//! | `described`, `fields`, `tensors` | the description, its values and the tensor headers: what is not run is refused by name |
//! | `text_bytes` | what tokenizer and chat template take |
//! | `loading` | progress and cancel of a load, and whose error it is |
//! | `open_text` | the text side, opened beside the weights |
//! | [`adapters`] | what a set of adapters changes, module by module |
//! | `tied` | heads stored beside their embedding |
//! | `modules` | modules that lie in one matrix or in no layer, and those that tensors are of |
//! | `step` | what every step is checked against |
//! | `rotary` | rotary frequencies of short and long sequences |
//! | `session` | KV caches as data, checked against what the model would have written |
//! | [`window`] | which positions a layer sees, holds and saves |

pub mod adapters;
mod described;
mod fields;
mod loading;
mod modules;
mod open_text;
mod rotary;
mod session;
mod step;
mod tensors;
mod text_bytes;
mod tied;
pub mod window;

pub use described::{check_same, described, first_matrix, refuse_replacement};
pub use fields::check_fields;
pub use loading::{Loading, of_model};
pub use modules::{AROUND, STACKED, touched};
pub use open_text::{TextOpening, open_text, open_text_beside, open_text_while};
pub use rotary::Rotary;
pub use session::{SavedCache, SavedLayer, SavedRows, SessionForm};
pub use step::check_step;
pub use tensors::{Readable, check_count, check_not_packed, check_tensors};
pub use text_bytes::text_bytes;
pub use tied::{TIED_HEAD, check_tied};

#[cfg(test)]
mod tests;
