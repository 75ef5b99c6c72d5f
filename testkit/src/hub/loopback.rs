//! The running hub.

use std::{net::SocketAddr, sync::Arc};

use super::{
    Fault, Host, Recorded, Repo,
    routes::Site,
    server::{Listeners, Server},
};

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
        let listeners = Listeners::bind().unwrap_or_else(|error| panic!("binding a port of 127.0.0.1: {error}"));
        let addresses = [listeners.address(Host::Hub), listeners.address(Host::Cdn)];
        let site = Arc::new(Site::new(addresses, self.tokens, self.page_size, self.resolve_cache));
        self.repos.into_iter().for_each(|repo| site.publish(repo));
        let server = Server::start(listeners, Arc::clone(&site) as _);
        Hub { server, site, addresses }
    }
}

/// A hub that runs until it is dropped.
#[derive(Debug)]
pub struct Hub {
    server: Server,
    site: Arc<Site>,
    addresses: [SocketAddr; 2],
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
        format!("http://{}", self.addresses[0])
    }

    /// The URL of the second host.
    pub fn cdn_endpoint(&self) -> String {
        format!("http://{}", self.addresses[1])
    }

    /// Where the Hub listens.
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// Where the second host listens.
    pub fn cdn_address(&self) -> SocketAddr {
        self.addresses[1]
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

/// What goes wrong.
impl Hub {
    /// Sets a fault, after those that are set.
    pub fn fault(&self, fault: Fault) {
        self.server.faults().set(fault);
    }

    /// Takes all faults away. What is stalled stays so until it is released.
    pub fn clear_faults(&self) {
        self.server.faults().clear();
    }

    /// Lets the requests in progress go on where they are stalled, or would be later. Those that come after are not
    /// concerned.
    pub fn release(&self) {
        self.server.release();
    }

    /// Sets for how many requests each URL that is signed from now on is good, `None` for any number. The second host
    /// answers 403 after that. No URL expires by the clock.
    pub fn set_url_uses(&self, uses: Option<usize>) {
        self.site.set_url_uses(uses);
    }

    /// Lets all URLs that were signed until now expire.
    pub fn expire_urls(&self) {
        self.site.expire_urls();
    }
}

/// What it saw.
impl Hub {
    /// All requests since the start or the last [`clear`](Self::clear), in the order in which they came.
    pub fn requests(&self) -> Vec<Recorded> {
        self.server.log().requests()
    }

    /// Those of them that `pattern` describes: see [`Recorded::is_for`].
    pub fn requests_for(&self, pattern: &str) -> Vec<Recorded> {
        let mut requests = self.requests();
        requests.retain(|request| request.is_for(pattern));
        requests
    }

    /// How many bytes of bodies were sent, on both hosts.
    pub fn bytes_served(&self) -> u64 {
        self.bytes_served_for("*")
    }

    /// How many bytes of bodies were sent for what `pattern` describes: see [`Recorded::is_for`]. A redirect has a
    /// short body too; to count a file's own bytes, count those of answers with status 200 and 206.
    pub fn bytes_served_for(&self, pattern: &str) -> u64 {
        self.requests_for(pattern).iter().map(|request| request.body_bytes_sent).sum()
    }

    /// Forgets the requests so far. Those in progress go on.
    pub fn clear(&self) {
        self.server.log().clear();
    }

    /// How many requests are in progress, on both hosts.
    pub fn open_requests(&self) -> usize {
        self.server.log().open()
    }

    /// Waits until `done` holds for the requests recorded, and returns them. It is asked whenever something changes.
    ///
    /// # Panics
    /// If it does not hold within a minute; the message lists the requests.
    pub fn wait_until(&self, done: impl Fn(&[Recorded]) -> bool) -> Vec<Recorded> {
        self.server.log().wait_until(|requests, _| done(requests))
    }

    /// Waits until no request is in progress, and returns those recorded.
    ///
    /// # Panics
    /// If one still is after a minute; the message lists the requests.
    pub fn wait_until_idle(&self) -> Vec<Recorded> {
        self.server.log().wait_until(|_, open| open == 0)
    }
}
