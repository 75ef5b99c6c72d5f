//! What GitHub answers: its API, its download URLs, and the object store.

mod access;
mod api;
mod json;
mod object_store;
mod pages;
mod rate_limits;
mod refusal;
mod site;
mod target;
mod wanted;
mod web;

pub(super) use site::{Options, Site};
