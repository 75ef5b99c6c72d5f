//! Trying again: exponential backoff with jitter, the waits that hosts ask for, and an end to it.

use std::future::Future;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use llm_local_core::{Error, Result};

use super::{Failure, Network, Retry, Wait};

/// Calls `attempt` until it succeeds, fails for good, or has failed as often as [`NetworkConfig`](super::NetworkConfig)
/// allows; waits in between. `what` is what the attempts are for. Must run on the threads of `network`
/// ([`Network::run`]).
///
/// # Errors
/// The last failure's; [`Error::RateLimited`] at once if the host asks for a longer wait than allowed.
pub async fn retrying<T, A, F>(network: &Network, what: &str, mut attempt: A) -> Result<T>
where
    A: FnMut() -> F,
    F: Future<Output = Result<T, Failure>>,
{
    let mut attempts = Attempts::new(network);
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(failure) => {
                tracing::debug!(what, error = %failure.error, "an attempt failed");
                attempts.next(failure).await?;
            }
        }
    }
}

/// How often something failed in a row.
pub(crate) struct Attempts {
    network: Network,
    delays: ExponentialBackoff,
    failed: u32,
}

impl Attempts {
    pub(crate) fn new(network: &Network) -> Self {
        let config = network.config();
        let delays = ExponentialBuilder::new()
            .with_jitter()
            .with_min_delay(config.first_delay)
            .with_max_delay(config.max_delay)
            .without_max_times()
            .build();
        Self { network: network.clone(), delays, failed: 0 }
    }

    /// Something was gained: what failed before no longer counts.
    pub(crate) fn progressed(&mut self) {
        if self.failed > 0 {
            *self = Self::new(&self.network);
        }
    }

    /// Ends once the next attempt may be made.
    pub(crate) async fn next(&mut self, failure: Failure) -> Result<()> {
        self.failed += 1;
        let config = self.network.config();
        // An expired URL is common in a long download; only if a new one does not help either, time may.
        let wait = match failure.retry {
            Retry::Never => return Err(failure.error),
            Retry::Renew if self.failed == 1 => return Ok(()),
            Retry::After(asked) if asked > config.longest_wait => {
                let what = match failure.error {
                    limited @ Error::RateLimited { .. } => return Err(limited),
                    Error::DownloadFailed { what, .. } => what,
                    other => other.to_string(),
                };
                return Err(Error::RateLimited { what, retry_after: Some(asked) });
            }
            Retry::After(asked) if !asked.is_zero() => Some(asked),
            Retry::Renew | Retry::Backoff | Retry::After(_) => None,
        };
        if self.failed >= config.attempts {
            return Err(tired(failure.error, self.failed));
        }
        let backoff = self.delays.next().unwrap_or(config.max_delay);
        self.network.timer().sleep(wait.unwrap_or(backoff), Wait::Backoff).await;
        Ok(())
    }
}

/// `error`, after it came `attempts` times.
fn tired(mut error: Error, attempts: u32) -> Error {
    if let Error::DownloadFailed { reason, .. } = &mut error
        && attempts > 1
    {
        reason.push_str(&format!(" (after {attempts} attempts in a row)"));
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{NetworkConfig, testing::FakeTimer};
    use std::{
        sync::{Arc, Mutex},
        time::Duration,
    };

    /// What `retrying` makes of `failures` in turn, then success; and the sleeps.
    fn tried(failures: Vec<Failure>) -> (Result<usize>, Vec<Duration>) {
        let timer = FakeTimer::new();
        let network = Network::new(NetworkConfig::new()).with_timer(Arc::new(timer.clone()));
        let inner = network.clone();
        let left = Arc::new(Mutex::new((0, failures.into_iter())));
        let result = pollster::block_on(network.run(async move {
            let attempt = || async {
                let mut left = left.lock().unwrap();
                left.0 += 1;
                left.1.next().map_or(Ok(left.0), Err)
            };
            retrying(&inner, "x", attempt).await
        }));
        (result, timer.sleeps(Wait::Backoff))
    }

    fn after(seconds: u64) -> Failure {
        Failure { retry: Retry::After(Duration::from_secs(seconds)), ..Failure::passing("x", "busy") }
    }

    #[test]
    fn waits_grow_twofold_with_jitter_until_the_attempts_are_used_up() {
        let (result, sleeps) = tried(vec![Failure::passing("x", "reset"); 9]);
        let error = result.unwrap_err();
        assert!(error.is_retryable() && error.to_string().contains("reset (after 5 attempts"), "{error}");
        assert_eq!(sleeps.len(), 4);
        for (i, sleep) in sleeps.iter().enumerate() {
            let least = Duration::from_millis(500 << i);
            assert!((least..=2 * least).contains(sleep), "{sleeps:?}");
        }
    }

    #[test]
    fn a_permanent_failure_is_not_tried_again() {
        let (result, sleeps) = tried(vec![Failure::permanent("x", "gone")]);
        assert_eq!((result.unwrap_err().is_retryable(), sleeps), (false, vec![]));
    }

    #[test]
    fn the_wait_asked_for_is_kept_and_one_too_long_is_an_error_at_once() {
        let (result, sleeps) = tried(vec![after(17), after(120)]);
        assert_eq!((result.unwrap(), sleeps), (3, vec![Duration::from_secs(17), Duration::from_secs(120)]));
        let (result, sleeps) = tried(vec![after(121)]);
        let Err(Error::RateLimited { retry_after, .. }) = result else { panic!("{result:?}") };
        assert_eq!((retry_after, sleeps), (Some(Duration::from_secs(121)), vec![]));
    }

    #[test]
    fn an_expired_url_is_renewed_at_once_the_first_time() {
        let expired = Failure { retry: Retry::Renew, ..Failure::passing("x", "expired") };
        let (result, sleeps) = tried(vec![expired.clone(), expired]);
        assert_eq!((result.unwrap(), sleeps.len()), (3, 1));
    }
}
