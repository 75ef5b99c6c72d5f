//! Requests: the runtime they run on, redirects, retries, and time.
//!
//! [`Network`] owns the threads that requests run on, so that the engine works on any executor. [`Network::get`] is how
//! bytes are asked for; [`Network::client`] is for the API calls of sources; [`retrying`] tries again; [`next_page`] goes on
//! with a list.

mod address;
mod clients;
mod config;
mod failure;
mod pages;
mod pauses;
mod proxies;
mod rate;
mod request;
mod retry;
mod runtime;
#[doc(hidden)]
pub mod testing;
mod timer;
mod tls;

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::pin,
    sync::{Arc, OnceLock},
    task::Poll,
};

use llm_local_core::{Error, Result};
use reqwest::Client;
use tokio_util::task::AbortOnDropHandle;

pub use address::{is_same_origin, shown};
pub use config::NetworkConfig;
pub use failure::{Failure, Retry};
pub use pages::next_page;
pub use proxies::Proxies;
pub use request::Response;
pub(crate) use retry::Attempts;
pub use retry::retrying;
pub use timer::{Timer, TokioTimer, Wait};

/// How many redirects are followed.
const MAX_REDIRECTS: usize = 10;

/// Makes requests, on threads of its own that start with the first of them. Cheap to clone; the threads end with the
/// last clone. Requests go by way of the proxies that the usual variables name ([`Proxies`]), but those to this machine.
#[derive(Clone)]
pub struct Network(Arc<Inner>);

struct Inner {
    config: NetworkConfig,
    timer: Arc<dyn Timer>,
    pauses: pauses::Pauses,
    // Made with the first request: a program that never makes one pays nothing. An error is kept, since the machine
    // would give the same again.
    threads: OnceLock<Result<runtime::Threads>>,
    plain: OnceLock<Result<Client>>,
    following: OnceLock<Result<Client>>,
}

impl Network {
    /// A network by `config` and the machine's clocks.
    pub fn new(config: NetworkConfig) -> Self {
        Self::with(config, Arc::new(TokioTimer))
    }

    fn with(config: NetworkConfig, timer: Arc<dyn Timer>) -> Self {
        let (pauses, threads, plain, following) = Default::default();
        Self(Arc::new(Inner { config, timer, pauses, threads, plain, following }))
    }

    /// A network of the same configuration, with threads of its own, to which `timer` tells the time.
    pub fn with_timer(self, timer: Arc<dyn Timer>) -> Self {
        Self::with(self.0.config.clone(), timer)
    }

    /// How requests are made.
    pub fn config(&self) -> &NetworkConfig {
        &self.0.config
    }

    /// What tells the time.
    pub fn timer(&self) -> &Arc<dyn Timer> {
        &self.0.timer
    }

    /// Runs `future` on the threads of this network, once it is polled. Dropping what is returned ends it.
    ///
    /// # Errors
    /// What `future` gives; [`Error::Io`] if no thread can be started.
    ///
    /// # Panics
    /// If `future` does.
    pub fn run<T, F>(&self, future: F) -> impl Future<Output = Result<T>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let network = self.clone();
        async move {
            let threads = network.0.threads.get_or_init(runtime::Threads::start).as_ref().map_err(Error::clone)?;
            match AbortOnDropHandle::new(threads.handle().spawn(future)).await {
                Ok(result) => result,
                Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
                Err(_) => Err(Error::Cancelled),
            }
        }
    }

    /// A client for API calls: it follows redirects as long as they stay on one host, port and scheme, and gives up on
    /// answers that stall. A redirect to anywhere else is its answer: any header of a request may be a secret. URLs that
    /// are not of its own making pass [`Network::check_url`] first. Its requests run within [`Network::run`].
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the machine has no certificates to trust, or a proxy that cannot be used.
    pub fn client(&self) -> Result<Client> {
        self.0.following.get_or_init(|| clients::following(&self.0.config)).clone()
    }

    /// Checks that `url` may be asked: `https:`, or `http:` to this machine or where
    /// [`NetworkConfig::insecure_http`] allows it; of a host that [`NetworkConfig::allowed_hosts`] lists.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`]; [`Error::NotAllowed`] for another host.
    pub fn check_url(&self, url: &str) -> Result<()> {
        address::permitted(url, &self.0.config).map(drop)
    }

    fn pauses(&self) -> &pauses::Pauses {
        &self.0.pauses
    }

    fn plain_client(&self) -> Result<Client> {
        self.0.plain.get_or_init(|| clients::plain(&self.0.config)).clone()
    }

    /// What `future` gives, or `None` if it takes longer than an answer may stay without a byte.
    pub(crate) async fn within_stall<F: Future>(&self, future: F) -> Option<F::Output> {
        let (mut future, mut limit) = (pin!(future), None);
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            // Most of the time the next bytes are there already, and no timer is needed.
            let limit = limit.get_or_insert_with(|| self.0.timer.sleep(self.0.config.stall, Wait::Stall));
            limit.as_mut().poll(cx).map(|()| None)
        })
        .await
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("config", &self.0.config).finish_non_exhaustive()
    }
}
