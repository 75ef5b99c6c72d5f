//! A server on the loopback that speaks the API of GitHub's releases, and fails as it is told: for authors of sources.
//!
//! It has three hosts, as the real one has: the API (`api.github.com`), the web pages with the browser's download URLs
//! (`github.com`), and the object store that both redirect to with a signed URL for the bytes of an asset. All of them
//! record each request they get. The web host answers the API too, under `/api/v3`, as a GitHub Enterprise Server does.
//! Plain threads serve them, HTTP/1.1 only, without TLS.
//!
//! | item | what it is |
//! |---|---|
//! | [`GitHub`], [`GitHubBuilder`] | the running server: URLs, tokens, rate limits, and what changes while it runs |
//! | [`Loopback`] | what it derefs to: faults, requests recorded |
//! | [`Repository`], [`Release`], [`Asset`] | what it serves |
//! | [`Access`], [`MakeLatest`] | what a token may see; which release is the latest |
//! | [`Content`] | the bytes of an asset: given, generated without being held in memory, or from the disk |
//! | [`Fault`], [`secondary_rate_limit`] | what goes wrong, for which requests and how often |
//! | [`Recorded`], [`Outcome`], [`Host`] | a request as the server saw it |
//!
//! # What it answers
//!
//! | request | answer |
//! |---|---|
//! | `GET /repos/{owner}/{repo}` | the repository, with its licence |
//! | `GET …/releases?per_page=&page=` | releases, the newest first, with a `Link`; drafts for tokens that may push |
//! | `GET …/releases/latest`, `…/releases/tags/{tag}`, `…/releases/{id}` | a release |
//! | `GET …/releases/{id}/assets?per_page=&page=` | its assets |
//! | `GET …/releases/assets/{id}` | an asset; with `Accept: application/octet-stream` a redirect to its bytes |
//! | `GET …/git/ref/tags/{tag}`, `…/git/tags/{sha}`, `…/commits/{ref}` | the commit of a tag |
//! | `GET /rate_limit` | what is left of the rate limit |
//! | `GET /{owner}/{repo}/releases/download/{tag}/{asset}` on the web host | a redirect to the bytes, if public |
//! | `GET /{owner}/{repo}/releases/latest/download/{asset}` on the web host | a redirect to the one above |
//!
//! Everything of a repository is there under `/repositories/{id}` too, which is where a former name leads and what
//! links to further pages name. A tag is taken with its `/` encoded or not. Answers of the API have weak ETags that
//! depend on the token, as the real ones do; `304` does not count against the rate limit of a token, but does against
//! that of those who have none. The object store refuses requests with an `Authorization` header.
//!
//! An expired URL is answered in XML, as stores do it; for one that answers with a web page, use
//! `Fault::answer(403, "text/html", …).on(Host::Cdn)`. [`Fault::path`] names an asset on all hosts: by its name, with
//! its tag (`v1/adapter.gguf`), or with its repository before these. An upload that has not ended has the state
//! `starter`; the API redirects for it all the same, and the object store answers 404.
//!
//! What it does not have: `If-Modified-Since`, source archives, the GraphQL API, and anything that writes: tests change
//! what it serves by the methods of [`GitHub`]. It has no clock either: times are minutes after the first of January
//! 2024, one for each change.
//!
//! # A release and its asset
//!
//! ```
//! use std::{io::{Read, Write}, net::TcpStream};
//!
//! use llm_local_testkit::github::{Fault, GitHub, Host, Release, Repository};
//!
//! let release = Release::new("v1").with_file("adapter.gguf", "GGUF");
//! let github = GitHub::builder().with_repository(Repository::new("owner/lora").with_release(release)).start();
//! github.fault(Fault::cut(1).path("v1/adapter.gguf").on(Host::Cdn).once());
//!
//! let mut connection = TcpStream::connect(github.web_address())?;
//! let target = "/owner/lora/releases/download/v1/adapter.gguf";
//! write!(connection, "GET {target} HTTP/1.1\r\nHost: github\r\nConnection: close\r\n\r\n")?;
//! let mut answer = String::new();
//! connection.read_to_string(&mut answer)?;
//!
//! assert!(answer.starts_with("HTTP/1.1 302"));
//! let requests = github.wait_until_idle();
//! assert_eq!((requests[0].host, requests[0].tag.as_deref()), (Host::Web, Some("v1")));
//! # Ok::<_, std::io::Error>(())
//! ```

mod asset;
mod builder;
mod faults;
mod published;
mod release;
mod repository;
mod routes;
mod running;
mod state;
#[cfg(test)]
mod tests;

pub use asset::Asset;
pub use builder::GitHubBuilder;
pub use faults::secondary_rate_limit;
pub use release::{MakeLatest, Release};
pub use repository::{Access, Repository};
pub use running::GitHub;

pub use crate::server::{Content, Fault, Host, Loopback, Outcome, Recorded};
