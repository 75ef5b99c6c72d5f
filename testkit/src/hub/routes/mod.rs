//! What the Hub answers: its API, its files, and those of the second host.

mod access;
mod info;
mod refusal;
mod resolve;
mod second_host;
mod site;
mod target;
mod tree;

pub(super) use site::Site;
