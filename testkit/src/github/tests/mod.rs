//! Tests through a client of a few lines, which shows the bytes as they come.

mod changes;
mod downloads;
mod limits;
mod refusals;
mod releases;

use super::{Access, GitHub, Release, Repository};
use crate::server::tests::client::{self, Reply};

const REPOSITORY: &str = "Owner/lora";
const READER: &str = "ghp_reader";
const PUSHER: &str = "ghp_pusher";
const OUTSIDER: &str = "ghp_outsider";

/// A server with one repository, which has these releases, and a token of each kind.
fn github(releases: impl IntoIterator<Item = Release>) -> GitHub {
    let repository = releases.into_iter().fold(Repository::new(REPOSITORY), Repository::with_release);
    GitHub::builder()
        .with_token(READER, Access::Read)
        .with_token(PUSHER, Access::Push)
        .with_token(OUTSIDER, Access::Public)
        .with_repository(repository)
        .start()
}

/// The target of an asset in the API.
fn asset(github: &GitHub, tag: &str, name: &str) -> String {
    format!("/repos/{REPOSITORY}/releases/assets/{}", github.asset_id(REPOSITORY, tag, name))
}

/// The answer of the API to a `GET` with a `User-Agent`.
fn api(github: &GitHub, target: &str, headers: &[(&str, &str)]) -> Reply {
    let headers: Vec<(&str, &str)> = [("User-Agent", "tests")].iter().chain(headers).copied().collect();
    client::get(github.api_address(), target, &headers)
}

/// The answer of the API to a `GET` with a token.
fn api_as(github: &GitHub, token: &str, target: &str) -> Reply {
    api(github, target, &[("Authorization", &format!("Bearer {token}"))])
}

/// The answer of the API where bytes are asked for.
fn bytes(github: &GitHub, target: &str) -> Reply {
    api(github, target, &[("Accept", "application/octet-stream")])
}

/// What a redirect to the object store leads to.
fn follow(redirect: &Reply, headers: &[(&str, &str)]) -> Reply {
    assert_eq!(redirect.status, 302);
    let (host, target) = redirect.location();
    client::get(host, target, headers)
}

/// What comes of a target of the web host.
fn web(github: &GitHub, target: &str) -> Reply {
    client::get(github.web_address(), target, &[])
}
