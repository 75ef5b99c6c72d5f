//! The two clients: one that follows redirects as an API's client does, one that leaves them to the caller.

use llm_local_core::{Error, Result};
use reqwest::{
    Client, ClientBuilder,
    header::{ACCEPT_ENCODING, HeaderMap, HeaderValue},
    redirect::Policy,
};

use super::{MAX_REDIRECTS, NetworkConfig, Proxies, address};

/// For bytes: it follows no redirect, and has no limit on time but for connecting.
pub(super) fn plain(config: &NetworkConfig) -> Result<Client> {
    build(base(config)?.redirect(Policy::none()))
}

/// For API calls: it follows redirects within an origin, and gives up on an answer that stalls. A redirect to another host,
/// port or scheme is the answer: reqwest would drop `Authorization` and `Cookie` on the way there, but carry on any other
/// header, and does not tell a policy which there are.
pub(super) fn following(config: &NetworkConfig) -> Result<Client> {
    let policy = Policy::custom(|attempt| {
        if attempt.previous().len() > MAX_REDIRECTS {
            attempt.error("too many redirects")
        } else if attempt.previous().last().is_some_and(|url| address::same_origin(url, attempt.url())) {
            attempt.follow()
        } else {
            attempt.stop()
        }
    });
    build(base(config)?.redirect(policy).read_timeout(config.stall))
}

fn base(config: &NetworkConfig) -> Result<ClientBuilder> {
    let mut headers = HeaderMap::new();
    // Sizes and digests are those of the bytes as they are.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let proxies = config.proxies.clone().unwrap_or_else(Proxies::from_environment);
    let client = Client::builder()
        // reqwest's own reading of the environment would have a proxy asked for hosts of this machine.
        .no_proxy()
        .user_agent(config.user_agent.as_str())
        .connect_timeout(config.connect_timeout)
        .default_headers(headers)
        // A referer would carry the path of one host to another.
        .referer(false)
        .http1_only();
    Ok(proxies.rules(config.insecure_http)?.into_iter().fold(client, ClientBuilder::proxy))
}

fn build(builder: ClientBuilder) -> Result<Client> {
    builder.build().map_err(|e| {
        let reason = super::Failure::connection("", e).error;
        Error::unsupported("network access", format!("no HTTP client could be made: {reason}"))
    })
}
