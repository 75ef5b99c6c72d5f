//! The running hub.

use std::{net::SocketAddr, ops::Deref, sync::Arc};

use super::{Repo, routes::Site};
use crate::server::{Host, Listeners, Loopback, SignedUrls};

/// What a hub is started with.
#[derive(Debug, Clone)]
#[must_use = "a hub runs once it is started"]
pub struct HubBuilder {
    repos: Vec<Repo>,
    tokens: Vec<(String, bool)>,
    page_size: usize,
    resolve_cache: bool,
}

impl HubBuilder {
    /// Adds a repository.
    pub fn with_repo(mut self, repo: Repo) -> Self {
        self.repos.push(repo);
        self
    }

    /// Adds a token that has access to all repositories, gated and private ones too. A token that was not added is
    /// refused.
    pub fn with_token(mut self, token: impl Into<String>) -> Self {
        self.tokens.push((token.into(), true));
        self
    }

    /// Adds a token that is valid but has no access to gated and private repositories.
    pub fn with_token_without_access(mut self, token: impl Into<String>) -> Self {
        self.tokens.push((token.into(), false));
        self
    }

    /// Sets how many entries a page of a file tree has at most. The default is 1000, as the real Hub has it.
    ///
    /// # Panics
    /// If it is 0.
    pub fn with_page_size(mut self, entries: usize) -> Self {
        assert!(entries > 0, "a page has at least one entry");
        self.page_size = entries;
        self
    }

    /// Sets whether requests for plain files are redirected to `/api/resolve-cache/…` on the same host, as the real
    /// Hub does it for small files. It is off by default.
    pub fn with_resolve_cache(mut self, on: bool) -> Self {
        self.resolve_cache = on;
        self
    }

    /// Starts it, on two free ports of 127.0.0.1. The digests of all files are computed here.
    ///
    /// # Panics
    /// If no port can be bound, or a file on the disk that it is to serve cannot be read.
    pub fn start(self) -> Hub {
        let listeners = Listeners::bind(&[Host::Hub, Host::Cdn]);
        let urls = Arc::new(SignedUrls::default());
        let endpoints = [listeners.endpoint(Host::Hub), listeners.endpoint(Host::Cdn)];
        let site = Arc::new(Site::new(endpoints, self.tokens, self.page_size, self.resolve_cache, Arc::clone(&urls)));
        self.repos.into_iter().for_each(|repo| site.publish(repo));
        Hub { loopback: Loopback::start(listeners, Arc::clone(&site) as _, urls), site }
    }
}

/// A hub that runs until it is dropped. Faults and records are those of the [`Loopback`].
#[derive(Debug)]
pub struct Hub {
    loopback: Loopback,
    site: Arc<Site>,
}

impl Deref for Hub {
    type Target = Loopback;

    fn deref(&self) -> &Loopback {
        &self.loopback
    }
}

/// What it serves.
impl Hub {
    /// What a hub is started with: nothing yet.
    pub fn builder() -> HubBuilder {
        HubBuilder { repos: Vec::new(), tokens: Vec::new(), page_size: 1000, resolve_cache: false }
    }

    /// Starts one without repositories: see [`publish`](Self::publish).
    ///
    /// # Panics
    /// If no port can be bound.
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// The URL of the Hub, for `HF_ENDPOINT`: `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        self.loopback.host_endpoint(Host::Hub)
    }

    /// The URL of the second host.
    pub fn cdn_endpoint(&self) -> String {
        self.loopback.host_endpoint(Host::Cdn)
    }

    /// Where the Hub listens.
    pub fn address(&self) -> SocketAddr {
        self.loopback.host_address(Host::Hub)
    }

    /// Where the second host listens.
    pub fn cdn_address(&self) -> SocketAddr {
        self.loopback.host_address(Host::Cdn)
    }

    /// Adds a repository, or puts it in the place of the one with its id: `main` moves to the new one's commit.
    ///
    /// # Panics
    /// If a file on the disk that it is to serve cannot be read.
    pub fn publish(&self, repo: Repo) {
        self.site.publish(repo);
    }

    /// Takes a repository away.
    pub fn remove(&self, id: &str) {
        self.site.remove(id);
    }

    /// The commit that `revision` of a repository names, `None` if there is none.
    pub fn commit(&self, id: &str, revision: &str) -> Option<String> {
        self.site.commit(id, revision)
    }
}
