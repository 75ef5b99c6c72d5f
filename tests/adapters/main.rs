//! Adapters of GitHub releases, of the Hub and of this machine, from the ref to tokens, against servers on the loopback.

#![cfg(all(feature = "candle", feature = "github", feature = "huggingface", feature = "local"))]

#[path = "../common/mod.rs"]
mod common;

mod assets;
mod attacks;
mod errors;
mod history;
mod holds;
mod locks;
mod locks_bytes;
mod meanwhile;
mod moving;
mod named;
mod paths;
mod policy;
mod policy_kept;
mod reports;
mod room;
mod together;
mod unnamed;
mod world;
