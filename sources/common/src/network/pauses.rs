//! Hosts that asked for a pause: nobody asks them before it is over.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use reqwest::Url;

use super::{Network, Wait};

/// Until when each host, with its scheme and port, wants to be left alone, by [`Timer::now`](super::Timer::now).
#[derive(Default)]
pub(super) struct Pauses(Mutex<BTreeMap<String, Duration>>);

impl Pauses {
    fn begin(&self, url: &Url, until: Duration) {
        let mut pauses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let end = pauses.entry(url.origin().ascii_serialization()).or_default();
        *end = until.max(*end);
    }

    /// When the pause ends, if it has not.
    fn end(&self, url: &Url, now: Duration) -> Option<Duration> {
        let mut pauses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pauses.retain(|_, end| *end > now);
        pauses.get(&url.origin().ascii_serialization()).copied()
    }
}

impl Network {
    /// Notes that the host of `url` asked not to be asked for `wait`. [`Network::get`] does it by itself; this is for
    /// sources that make requests by [`Network::client`]. A wait longer than
    /// [`NetworkConfig::longest_wait`](super::NetworkConfig::longest_wait) is not noted, since nobody waits for that: who
    /// was told gives up.
    pub fn pause(&self, url: &str, wait: Duration) {
        if let Ok(url) = Url::parse(url) {
            self.pause_url(&url, wait);
        }
    }

    pub(super) fn pause_url(&self, url: &Url, wait: Duration) {
        if !wait.is_zero() && wait <= self.config().longest_wait {
            self.pauses().begin(url, self.timer().now() + wait);
        }
    }

    /// Ends once the host of `url` may be asked: at once, but for a pause that it asked any request of this network for.
    /// [`Network::get`] does it by itself; this is for sources that make requests by [`Network::client`], before each.
    pub async fn turn(&self, url: &str) {
        if let Ok(url) = Url::parse(url) {
            self.turn_of(&url).await;
        }
    }

    pub(super) async fn turn_of(&self, url: &Url) {
        let mut waited_until = Duration::ZERO;
        loop {
            let now = self.timer().now();
            // Another answer may have made it longer meanwhile.
            let Some(end) = self.pauses().end(url, now).filter(|end| *end > waited_until) else { return };
            tracing::debug!(host = url.host_str(), "waits, as the host asked for");
            self.timer().sleep(end - now, Wait::Pause).await;
            waited_until = end;
        }
    }
}
