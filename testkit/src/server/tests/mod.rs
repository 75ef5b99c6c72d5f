//! A client of a few lines, which shows the bytes as they come, for the tests of all sites; and tests of the content.

pub(crate) mod client;
mod content;
