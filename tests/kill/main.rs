//! Specs of downloads whose process is killed, at any point, and of two processes that want one model at once.
//!
//! | file | what it holds |
//! |---|---|
//! | `world` | a hub with a model, and the folders that it is fetched into |
//! | `process` | the process that fetches, and is killed |
//! | `disk` | what is published, and what is on its way |
//! | `received` | how many bytes a killed process had read |
//! | `anywhere`, `publishing`, `two` | the specs |

// Elsewhere the Hub's cache may have no links, and its files lie in other places.
#![cfg(all(unix, feature = "huggingface", feature = "candle"))]

#[cfg(target_os = "linux")]
mod anywhere;
#[path = "../common/mod.rs"]
mod common;
mod disk;
mod process;
mod publishing;
#[cfg(target_os = "linux")]
mod received;
mod two;
mod world;
