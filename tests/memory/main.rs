//! The memory policy, on a machine that is not there: contexts, decisions, pressure, failures, and random sequences of all of
//! them against a reference model.

#[path = "../common/mod.rs"]
mod common;

mod contexts;
mod contrary;
mod decisions;
mod executor;
mod monitoring;
mod operations;
mod out_of_memory;
mod random;
mod reference;
mod unloading;
mod world;
