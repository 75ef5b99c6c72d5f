//! A request that failed: the error, and whether trying again may help.

use std::{error::Error as _, fmt::Write as _, sync::Arc, time::Duration};

use llm_local_core::{Error, Refusal};
use reqwest::StatusCode;

use super::{rate::wait_asked, tls};

/// What may follow a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Retry {
    /// Trying again would end the same way.
    Never,
    /// Trying again after a while, each time longer.
    Backoff,
    /// Trying again, but not before this time has passed: the host asked for it.
    After(Duration),
    /// Trying again at once with a new request from the source: the URL has expired.
    Renew,
}

/// A request that failed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Failure {
    /// The error, if nothing follows.
    pub error: Error,
    /// What may follow.
    pub retry: Retry,
}

impl From<Error> for Failure {
    /// An error of a source: tried again if it says that this may help.
    fn from(error: Error) -> Self {
        let retry = match &error {
            Error::RateLimited { retry_after: Some(after), .. } => Retry::After(*after),
            Error::RateLimited { .. } | Error::DownloadFailed { retryable: true, .. } => Retry::Backoff,
            _ => Retry::Never,
        };
        Self { error, retry }
    }
}

impl Failure {
    /// A transfer of `what` that would fail the same way again.
    pub fn permanent(what: impl Into<String>, reason: impl Into<String>) -> Self {
        let error = Error::DownloadFailed { what: what.into(), reason: reason.into(), retryable: false, source: None };
        Self { error, retry: Retry::Never }
    }

    /// A transfer of `what` that may go through at another time.
    pub fn passing(what: impl Into<String>, reason: impl Into<String>) -> Self {
        let error = Error::DownloadFailed { what: what.into(), reason: reason.into(), retryable: true, source: None };
        Self { error, retry: Retry::Backoff }
    }

    /// A request to `address`, as [`shown`](super::shown) gives it, that ended without an answer. The URL is taken out of
    /// `error`: it may be signed. A host whose certificate is not trusted would end it the same way again.
    pub fn connection(address: impl Into<String>, error: reqwest::Error) -> Self {
        let (what, error) = (address.into(), error.without_url());
        let mut reason = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            // Most layers repeat what is below them.
            let text = inner.to_string();
            if !reason.contains(&text) {
                let _ = write!(reason, ": {text}");
            }
            cause = inner.source();
        }
        let hint = tls::permanent(&error);
        if let Some(hint) = hint {
            let _ = write!(reason, "; {hint}");
        }
        let retryable = !(error.is_builder() || error.is_redirect() || hint.is_some());
        let retry = if retryable { Retry::Backoff } else { Retry::Never };
        Self { error: Error::DownloadFailed { what, reason, retryable, source: Some(Arc::new(error)) }, retry }
    }

    /// An answer that refuses a request for `what`. `address` is who answered, as [`shown`](super::shown) gives it, and
    /// `named` whether the request named that host; one that was redirected to says by 400, 401 or 403 that the signed
    /// URL has expired. `wall` is the time of day.
    pub fn refusal(what: &str, refusal: &Refusal, address: &str, named: bool, wall: std::time::SystemTime) -> Self {
        let status = refusal.status;
        let name = StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("no known status");
        let answered = format!("{address} answered {status} {name}");
        let asked = wait_asked(refusal, wall);
        let retry = asked.map_or(Retry::Backoff, Retry::After);
        let (error, retry) = match status {
            429 => (Error::RateLimited { what: limited(what, address), retry_after: asked }, retry),
            403 if asked.is_some() => (Error::RateLimited { what: limited(what, address), retry_after: asked }, retry),
            400 | 401 | 403 if !named => {
                let reason = format!("{answered}: the signed URL was refused or has expired");
                return Self { retry: Retry::Renew, ..Self::passing(what, reason) };
            }
            401 | 403 => {
                let reason = format!("{answered}; give a token that may read it");
                (Error::Unauthorized { what: what.to_owned(), reason }, Retry::Never)
            }
            404 | 410 => {
                (Error::not_found(what, format!("{answered}; look at the name and the revision")), Retry::Never)
            }
            // `Network::get` follows them.
            301 | 302 | 303 | 307 | 308 => {
                let reason =
                    "it redirects to another host, port or scheme, which is not followed; name that one instead";
                return Self::permanent(what, format!("{answered}: {reason}"));
            }
            // It will not know the method or the version of HTTP at another time either.
            501 | 505 => return Self::permanent(what, answered),
            408 | 425 | 500..=599 => return Self { retry, ..Self::passing(what, answered) },
            _ => return Self::permanent(what, answered),
        };
        Self { error, retry }
    }

    /// Says of a failed transfer that it was one of `what`, and of which address if that is what it said before; and of a
    /// URL or a host that may not be asked that it is for `what`.
    pub fn about(mut self, what: &str) -> Self {
        match &mut self.error {
            Error::DownloadFailed { what: said, reason, .. } if said != what => {
                *reason = format!("{said}: {reason}");
                what.clone_into(said);
            }
            Error::NotAllowed { what: said, .. } if !said.ends_with(what) => *said = format!("{said} for {what}"),
            Error::InvalidSpec { field, .. } if !field.ends_with(what) => *field = format!("{field} of {what}"),
            _ => {}
        }
        self
    }
}

fn limited(what: &str, address: &str) -> String {
    let host = address.split('/').next().unwrap_or(address);
    format!("{what} (by {host})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{SystemTime, UNIX_EPOCH};

    fn failure(status: u16, headers: &[(&str, &str)], named: bool) -> Failure {
        let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let wall: SystemTime = UNIX_EPOCH + Duration::from_secs(1000);
        Failure::refusal("a.bin of test:x", &Refusal::new(status, headers), "host.test/a.bin", named, wall)
    }

    #[test]
    fn each_status_has_its_error_and_what_may_follow() {
        for (status, code, retry) in [
            (400, "download_failed", Retry::Never),
            (401, "unauthorized", Retry::Never),
            (403, "unauthorized", Retry::Never),
            (404, "not_found", Retry::Never),
            (408, "download_failed", Retry::Backoff),
            (409, "download_failed", Retry::Never),
            (410, "not_found", Retry::Never),
            (418, "download_failed", Retry::Never),
            (429, "rate_limited", Retry::Backoff),
            (500, "download_failed", Retry::Backoff),
            (501, "download_failed", Retry::Never),
            (502, "download_failed", Retry::Backoff),
            (503, "download_failed", Retry::Backoff),
            (504, "download_failed", Retry::Backoff),
            (505, "download_failed", Retry::Never),
            (304, "download_failed", Retry::Never),
        ] {
            let failure = failure(status, &[], true);
            assert_eq!((failure.error.code(), failure.retry), (code, retry), "{status}");
            let text = failure.error.to_string();
            assert!(
                text.contains("a.bin of test:x") && (text.contains(&status.to_string()) || status == 429),
                "{text}"
            );
            assert_eq!(failure.error.is_retryable(), retry != Retry::Never, "{status}");
        }
    }

    #[test]
    fn a_later_host_that_refuses_has_let_the_url_expire() {
        for status in [400, 401, 403] {
            assert_eq!(failure(status, &[], false).retry, Retry::Renew);
        }
        assert_eq!(failure(404, &[], false).retry, Retry::Never);
        assert_eq!(failure(503, &[], false).retry, Retry::Backoff);
    }

    #[test]
    fn the_wait_that_a_host_asks_for_is_kept() {
        let after = Retry::After(Duration::from_secs(7));
        for status in [429, 403, 503] {
            assert_eq!(failure(status, &[("retry-after", "7")], true).retry, after, "{status}");
        }
        let github = [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1007")];
        let limited = failure(403, &github, true);
        assert_eq!((limited.error.code(), limited.retry), ("rate_limited", after));
        let left = [("x-ratelimit-remaining", "5"), ("x-ratelimit-reset", "1007")];
        assert_eq!(failure(403, &left, true).error.code(), "unauthorized");
    }

    #[test]
    fn an_error_of_a_source_is_tried_again_if_it_says_so() {
        assert_eq!(Failure::from(Failure::passing("x", "y").error).retry, Retry::Backoff);
        assert_eq!(Failure::from(Failure::permanent("x", "y").error).retry, Retry::Never);
        assert_eq!(Failure::from(Error::Cancelled).retry, Retry::Never);
        let limited = Error::RateLimited { what: "x".into(), retry_after: Some(Duration::from_secs(3)) };
        assert_eq!(Failure::from(limited).retry, Retry::After(Duration::from_secs(3)));
    }
}
