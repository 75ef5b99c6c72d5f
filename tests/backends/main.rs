//! Backends: which of them a spec gets, and that all give the same.

#![cfg(all(feature = "candle", feature = "local"))]

#[path = "../common/mod.rs"]
mod common;

mod fallback;
mod parity;
mod rows;
