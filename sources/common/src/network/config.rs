//! How requests are made.

use std::time::Duration;

use super::Proxies;

/// How requests are made: limits on time, how often they are tried, and who this program says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetworkConfig {
    /// What `User-Agent` says.
    pub user_agent: String,
    /// How long connecting to a host may take: 10 s.
    pub connect_timeout: Duration,
    /// How long an answer may stay without a byte before its connection is given up and the request tried again: 30 s.
    pub stall: Duration,
    /// How often a request is tried in a row without a new byte: 5.
    pub attempts: u32,
    /// How long the first wait between two attempts is, to which jitter adds up to as much again; each next one is twice
    /// as long: 500 ms.
    pub first_delay: Duration,
    /// What the waits grow to, before jitter: 30 s.
    pub max_delay: Duration,
    /// The longest wait that a host may ask for (`Retry-After`); a longer one is an error at once: 120 s.
    pub longest_wait: Duration,
    /// Whether `http:` may be used with hosts other than this machine, so that anybody on the way can read and change
    /// what is sent, tokens too: no.
    pub insecure_http: bool,
    /// The hosts that may be asked, redirects too: `hub.example`, with a port to mean that one alone, or `*.hub.example` for
    /// all below it. Any, if it is not set.
    pub allowed_hosts: Option<Vec<String>>,
    /// The proxies that requests go by way of: those that the variables of this process name
    /// ([`Proxies::from_environment`]) when the first request is made.
    pub proxies: Option<Proxies>,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            user_agent: concat!("llm-local/", env!("CARGO_PKG_VERSION")).to_owned(),
            connect_timeout: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            attempts: 5,
            first_delay: Duration::from_millis(500),
            max_delay: Duration::from_secs(30),
            longest_wait: Duration::from_secs(120),
            insecure_http: false,
            allowed_hosts: None,
            proxies: None,
        }
    }
}

impl NetworkConfig {
    /// The defaults that each field names.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets what `User-Agent` says.
    pub fn with_user_agent(mut self, user_agent: impl Into<String>) -> Self {
        self.user_agent = user_agent.into();
        self
    }

    /// Sets how long connecting may take.
    pub fn with_connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// Sets how long an answer may stay without a byte.
    pub fn with_stall(mut self, limit: Duration) -> Self {
        self.stall = limit;
        self
    }

    /// Sets how often a request is tried in a row without a new byte; 0 counts as 1.
    pub fn with_attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// Sets the first wait between two attempts, and what the waits grow to.
    pub fn with_delays(mut self, first: Duration, max: Duration) -> Self {
        (self.first_delay, self.max_delay) = (first, max);
        self
    }

    /// Sets the longest wait that a host may ask for.
    pub fn with_longest_wait(mut self, limit: Duration) -> Self {
        self.longest_wait = limit;
        self
    }

    /// Sets whether `http:` may be used with hosts other than this machine.
    pub fn with_insecure_http(mut self, allowed: bool) -> Self {
        self.insecure_http = allowed;
        self
    }

    /// Sets the hosts that may be asked.
    pub fn with_allowed_hosts<T: Into<String>>(mut self, hosts: impl IntoIterator<Item = T>) -> Self {
        self.allowed_hosts = Some(hosts.into_iter().map(|host| host.into().to_ascii_lowercase()).collect());
        self
    }

    /// Sets the proxies that requests go by way of, in the place of those that the environment names.
    pub fn with_proxies(mut self, proxies: Proxies) -> Self {
        self.proxies = Some(proxies);
        self
    }
}
