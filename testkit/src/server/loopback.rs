//! What all servers on the loopback have: faults and records.

use std::{net::SocketAddr, sync::Arc};

use super::{Fault, Host, Listeners, Recorded, Site, listening::Server, signed::SignedUrls};

/// A server on the loopback that runs until it is dropped: what goes wrong with it, and what it saw.
#[derive(Debug)]
pub struct Loopback {
    server: Server,
    urls: Arc<SignedUrls>,
}

impl Loopback {
    /// Serves `site`, which signs its URLs by `urls`.
    pub(crate) fn start(listeners: Listeners, site: Arc<dyn Site>, urls: Arc<SignedUrls>) -> Self {
        Self { server: Server::start(listeners, site), urls }
    }

    /// Where `host` listens, which is one that it has.
    pub(crate) fn host_address(&self, host: Host) -> SocketAddr {
        self.server.address(host)
    }

    /// The URL of `host`, which is one that it has.
    pub(crate) fn host_endpoint(&self, host: Host) -> String {
        format!("http://{}", self.host_address(host))
    }
}

/// What goes wrong.
impl Loopback {
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
        self.urls.set_uses(uses);
    }

    /// Lets all URLs that were signed until now expire.
    pub fn expire_urls(&self) {
        self.urls.expire();
    }
}

/// What it saw.
impl Loopback {
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

    /// How many bytes of bodies were sent, on all hosts.
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

    /// How many requests are in progress, on all hosts.
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
