//! Tests through a client of a few lines, which shows the bytes as they come.

mod client;
mod content;
mod faults;
mod protocol;
mod records;
mod refusals;

use client::{Reply, ask, body_of, get, head};
