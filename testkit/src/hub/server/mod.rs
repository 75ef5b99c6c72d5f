//! A small HTTP/1.1 server for two hosts on the loopback, which knows nothing of what it serves: a [`Site`] answers.
//! Ranges, conditions, faults and records are added here, the same for every site.

mod conditions;
mod connection;
mod delivery;
mod faults;
mod listening;
mod request;
mod response;

pub(super) use listening::{Listeners, Server, Site};
pub(super) use request::Request;
pub(super) use response::Response;
