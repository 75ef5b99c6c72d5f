//! The two clients: one that follows redirects as an API's client does, one that leaves them to the caller.

use llm_local_core::{Error, Result};
use reqwest::{
    Client, ClientBuilder,
    header::{ACCEPT_ENCODING, HeaderMap, HeaderValue},
    redirect::Policy,
};

use super::{MAX_REDIRECTS, NetworkConfig, address};

/// For bytes: it follows no redirect, and has no limit on time but for connecting.
pub(super) fn plain(config: &NetworkConfig) -> Result<Client> {
    build(base(config).redirect(Policy::none()))
}

/// For API calls: it follows redirects, without credentials to another host (reqwest sees to that), and gives up on an
/// answer that stalls.
pub(super) fn following(config: &NetworkConfig) -> Result<Client> {
    let insecure_http = config.insecure_http;
    let policy = Policy::custom(move |attempt| {
        let was_secure = attempt.previous().iter().any(|url| url.scheme() == "https");
        if attempt.previous().len() > MAX_REDIRECTS {
            attempt.error("too many redirects")
        } else if was_secure && attempt.url().scheme() != "https" {
            attempt.error("a redirect from `https` to another scheme")
        } else if let Some(reason) = address::refused(attempt.url(), insecure_http) {
            attempt.error(reason)
        } else {
            attempt.follow()
        }
    });
    build(base(config).redirect(policy).read_timeout(config.stall))
}

fn base(config: &NetworkConfig) -> ClientBuilder {
    let mut headers = HeaderMap::new();
    // Sizes and digests are those of the bytes as they are.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    Client::builder()
        .user_agent(config.user_agent.as_str())
        .connect_timeout(config.connect_timeout)
        .default_headers(headers)
        // A referer would carry the path of one host to another.
        .referer(false)
        .http1_only()
}

fn build(builder: ClientBuilder) -> Result<Client> {
    builder.build().map_err(|e| {
        let reason = super::Failure::connection("", e).error;
        Error::unsupported("network access", format!("no HTTP client could be made: {reason}"))
    })
}
