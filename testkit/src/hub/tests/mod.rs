//! Tests through a client of a few lines, which shows the bytes as they come.

mod faults;
mod protocol;
mod records;
mod refusals;

use crate::server::tests::client::{Reply, ask, get, head};
