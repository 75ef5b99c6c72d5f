//! Against the server of the testkit that speaks GitHub's API.

mod downloads;
mod hops;
mod limits;
mod missing;
mod moved;
mod names;
mod pinned;
mod releases;
mod requests;
mod sums;
mod warned;

use std::sync::Arc;

use llm_local_core::{ArtifactSource, Error, FetchContext, Manifest, Opened, Request, Result, Want};
use llm_local_source_common::network::{Network, NetworkConfig, testing::FakeTimer};
use llm_local_testkit::github::{Access, GitHub as Server, GitHubBuilder as ServerBuilder, Release, Repository};
use pollster::block_on;
use tempfile::TempDir;

use super::*;

/// A token that may read private repositories.
const TOKEN: &str = "ghp_s3cretT0ken";

/// A server, a source for it, and the folder of kept answers.
struct Setup {
    server: Server,
    source: GitHub,
    answers: TempDir,
    timer: FakeTimer,
}

/// One release, `v1`, with an archive.
fn one() -> Repository {
    Repository::new("acme/lora").with_license("MIT").with_release(Release::new("v1").with_file("pirate.zip", "PK"))
}

fn server() -> ServerBuilder {
    Server::builder().with_token(TOKEN, Access::Read)
}

fn setup(server: ServerBuilder, token: &str) -> Setup {
    warned::hear();
    let (server, answers, timer) = (server.start(), tempfile::tempdir().unwrap(), FakeTimer::new());
    let network = Network::new(NetworkConfig::new()).with_timer(Arc::new(timer.clone()));
    let source = GitHub::builder().token(token).api(server.api_url()).answers(answers.path()).network(network);
    Setup { server, source: source.build().unwrap(), answers, timer }
}

impl Setup {
    fn resolve(&self, reference: &str) -> Result<Manifest> {
        block_on(self.source.resolve(&reference.parse()?, Want::Adapter, &FetchContext::new()))
    }

    fn request(&self, manifest: &Manifest, path: &str) -> Request {
        let file = manifest.file(path).unwrap();
        match block_on(self.source.open(manifest, file, 0..file.size, &FetchContext::new())).unwrap() {
            Opened::Request(request) => request,
            other => panic!("{other:?}"),
        }
    }

    fn tags(&self, reference: &str) -> Vec<String> {
        let revisions = block_on(self.source.revisions(&reference.parse().unwrap(), &FetchContext::new())).unwrap();
        revisions.into_iter().map(|revision| revision.name).collect()
    }

    /// Paths of the requests so far, which are then forgotten.
    fn asked(&self) -> Vec<String> {
        let asked = self.server.wait_until_idle().into_iter().map(|request| request.path).collect();
        self.server.clear();
        asked
    }
}

/// Asserts that `result` is an error of this kind that says all of these.
#[track_caller]
fn said<T: std::fmt::Debug>(result: Result<T>, code: &str, parts: &[&str]) -> Error {
    let error = result.unwrap_err();
    assert_eq!(error.code(), code, "{error}");
    for part in parts {
        assert!(error.to_string().contains(part), "`{part}` is not in: {error}");
    }
    assert!(!format!("{error:?}{error}").contains("s3cret"), "{error:?}");
    error
}
