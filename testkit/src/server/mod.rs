//! A small HTTP/1.1 server for some hosts on the loopback, which knows nothing of what it serves: a [`Site`] answers.
//! Ranges, conditions, faults and records are added here, the same for every site. Plain threads, no TLS.

pub(crate) mod conditions;
mod connection;
mod content;
mod delivery;
pub(crate) mod digest;
mod fault;
mod faults;
mod gzip;
mod listening;
mod loopback;
mod pattern;
pub(crate) mod percent;
mod record;
mod request;
mod response;
pub(crate) mod signed;
#[cfg(test)]
pub(crate) mod tests;

pub use content::Content;
pub use fault::Fault;
pub use loopback::Loopback;
pub use record::{Host, Outcome, Recorded};

pub(crate) use listening::{Listeners, Site};
pub(crate) use record::Subject;
pub(crate) use request::Request;
pub(crate) use response::{Response, reason};
pub(crate) use signed::SignedUrls;
