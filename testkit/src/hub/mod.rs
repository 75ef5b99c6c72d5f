//! A server on the loopback that speaks the protocol of the Hugging Face Hub, and fails as it is told: for authors
//! of sources.
//!
//! It has two hosts, as the real one has: the Hub itself, with the API and the plain files, and a second one that the
//! Hub redirects to with a signed URL for files kept in LFS. Both record each request they get. Plain threads serve
//! them, HTTP/1.1 only, without TLS.
//!
//! | item | what it is |
//! |---|---|
//! | [`Hub`], [`HubBuilder`] | the running server: endpoint, tokens, repositories |
//! | [`Loopback`] | what it derefs to: faults, requests recorded |
//! | [`Repo`], [`Gated`] | a repository: files, commits, branches and tags, licence, gating |
//! | [`Content`] | the bytes of a file: given, generated without being held in memory, or from the disk |
//! | [`Fault`] | what goes wrong, for which requests and how often |
//! | [`Recorded`], [`Outcome`], [`Host`] | a request as the server saw it |
//!
//! # A download that is cut off
//!
//! ```
//! use std::{io::{Read, Write}, net::TcpStream};
//!
//! use llm_local_testkit::hub::{Fault, Hub, Outcome, Repo};
//!
//! let hub = Hub::builder().with_repo(Repo::new("org/tiny").with_file("config.json", "{}")).start();
//! hub.fault(Fault::cut(1).path("config.json").once());
//!
//! let mut connection = TcpStream::connect(hub.address())?;
//! connection.write_all(b"GET /org/tiny/resolve/main/config.json HTTP/1.1\r\nHost: hub\r\n\r\n")?;
//! let mut answer = String::new();
//! connection.read_to_string(&mut answer)?;
//!
//! assert!(answer.ends_with("\r\n\r\n{"), "one byte of two");
//! let requests = hub.wait_until(|requests| requests.iter().all(|request| request.outcome.is_over()));
//! assert_eq!((requests[0].status, requests[0].outcome), (200, Outcome::Cut));
//! # Ok::<_, std::io::Error>(())
//! ```

mod repo;
mod routes;
mod running;
#[cfg(test)]
mod tests;

pub use repo::{Gated, Repo};
pub use running::{Hub, HubBuilder};

pub use crate::server::{Content, Fault, Host, Loopback, Outcome, Recorded};
