//! Progress of a plan, as events and as a stream.
//!
//! | file | what it holds |
//! |---|---|
//! | `meter` | [`Meter`] and [`FileMeter`], which workers count bytes into |
//! | `tally` | what is counted, and when that is worth an event |
//! | `speed` | bytes per second over the last seconds |
//! | `delivery` | the thread that calls a [`ProgressHandler`](llm_local_core::ProgressHandler), and its inbox |
//! | `stream` | [`DownloadStream`], for consumers that poll |
//!
//! Workers never wait for a handler: they leave events in an inbox, where a newer event of the same kind takes the
//! place of an older one that nobody has heard yet.

mod delivery;
mod meter;
mod speed;
mod stream;
mod tally;

#[cfg(test)]
mod tests;

pub use meter::{FileMeter, Meter};
pub use stream::{DownloadStream, download_stream};
