//! URLs: which may be asked, which belong together, and how one is shown without the secrets in it.

use llm_local_core::{Error, Result};
use reqwest::Url;

use super::NetworkConfig;

/// `url` as messages show it: host, port and path. The query of a signed URL is a secret, and so is what stands before
/// the host.
pub fn shown(url: &str) -> String {
    Url::parse(url).map_or_else(|_| "a URL that cannot be read".to_owned(), |url| shown_url(&url))
}

pub(super) fn shown_url(url: &Url) -> String {
    let port = url.port().map(|p| format!(":{p}")).unwrap_or_default();
    format!("{}{port}{}", url.host_str().unwrap_or_default(), url.path())
}

/// Reads `url` if it may be asked: `https:`, or `http:` where that is to this machine or `insecure_http`; of a host that
/// is allowed.
pub(super) fn permitted(url: &str, config: &NetworkConfig) -> Result<Url> {
    let url =
        Url::parse(url).map_err(|e| Error::invalid_spec("URL", format!("its source gave one that is none: {e}")))?;
    match refused(&url, config.insecure_http) {
        Some(reason) => Err(Error::invalid_spec(format!("URL {}", shown_url(&url)), reason)),
        None => allowed(&url, config).map(|()| url),
    }
}

/// Checks that the host of `url` is one that [`NetworkConfig::allowed_hosts`] lists.
pub(super) fn allowed(url: &Url, config: &NetworkConfig) -> Result<()> {
    let Some(hosts) = &config.allowed_hosts else { return Ok(()) };
    let host = url.host_str().unwrap_or_default().to_ascii_lowercase();
    let with_port = format!("{host}:{}", url.port_or_known_default().unwrap_or_default());
    let matches = |rule: &String| match rule.strip_prefix('*') {
        Some(below) => below.starts_with('.') && host.ends_with(below),
        None => *rule == host || *rule == with_port,
    };
    if hosts.iter().any(matches) {
        return Ok(());
    }
    let listed = if hosts.is_empty() { "none".to_owned() } else { hosts.join(", ") };
    Err(Error::not_allowed(
        format!("a request to {}", shown_url(url)),
        format!("the allowed hosts are {listed}; allow it by Policy::allow_hosts or NetworkConfig::with_allowed_hosts"),
    ))
}

/// Why `url` may not be asked, if so.
pub(super) fn refused(url: &Url, insecure_http: bool) -> Option<&'static str> {
    match url.scheme() {
        "https" => None,
        "http" if insecure_http || is_loopback(url) => None,
        "http" => Some(
            "`http` is not encrypted and is used with this machine only; give an `https` URL, or allow it by \
             NetworkConfig::with_insecure_http",
        ),
        _ => Some("its scheme is neither `https` nor `http`"),
    }
}

/// This machine's hosts, as `NO_PROXY` would have them: those of [`is_loopback`], and other ways to write them.
pub(super) const LOOPBACK: &str = "localhost,localhost.,127.0.0.0/8,::1,::ffff:127.0.0.0/104";

fn is_loopback(url: &Url) -> bool {
    let Some(host) = url.host_str() else { return false };
    // An IPv6 address stands in brackets.
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether credentials meant for `a` may go to `b`: scheme, host and port are the same.
pub(super) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme() && a.host_str() == b.host_str() && a.port_or_known_default() == b.port_or_known_default()
}

/// Whether `a` and `b` are URLs of the same scheme, host and port, so that what is a secret of the one may go to the other.
pub fn is_same_origin(a: &str, b: &str) -> bool {
    matches!((Url::parse(a), Url::parse(b)), (Ok(a), Ok(b)) if same_origin(&a, &b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permitted(url: &str, insecure_http: bool) -> Result<Url> {
        super::permitted(url, &NetworkConfig::new().with_insecure_http(insecure_http))
    }

    #[test]
    fn only_hosts_that_are_allowed_are_asked() {
        let config = NetworkConfig::new().with_allowed_hosts(["Hub.test", "*.cdn.test", "127.0.0.1:8080"]);
        let check = |url| super::permitted(url, &config);
        for url in ["https://hub.test/a", "https://HUB.test:444/a", "https://a.b.cdn.test/", "http://127.0.0.1:8080/"] {
            assert!(check(url).is_ok(), "{url}");
        }
        for url in ["https://x.hub.test/", "https://cdn.test/", "https://xcdn.test/", "http://127.0.0.1:8081/"] {
            let error = check(url).unwrap_err();
            assert_eq!(error.code(), "not_allowed", "{url}");
            assert!(error.to_string().contains("hub.test, *.cdn.test, 127.0.0.1:8080"), "{error}");
        }
        assert!(super::permitted("https://a/", &NetworkConfig::new().with_allowed_hosts::<&str>([])).is_err());
    }

    #[test]
    fn what_is_shown_of_a_url_is_no_secret() {
        assert_eq!(shown("https://user:pw@cdn.test:8443/a/b?X-Signature=abc#frag"), "cdn.test:8443/a/b");
        let error = permitted("http://user:pw@cdn.test/a?sig=abc", false).unwrap_err().to_string();
        assert!(!error.contains("pw") && !error.contains("abc") && error.contains("cdn.test/a"), "{error}");
        let error = permitted("http//x?sig=abc", false).unwrap_err().to_string();
        assert!(!error.contains("abc"), "{error}");
    }

    #[test]
    fn http_is_for_this_machine_unless_allowed() {
        for url in
            ["http://localhost:1/a", "http://127.0.0.1/a", "http://127.9.9.9/a", "http://[::1]:80/a", "https://x/a"]
        {
            assert!(permitted(url, false).is_ok(), "{url}");
        }
        for url in
            ["http://example.test/a", "http://127.0.0.1.example.test/", "http://localhost.test/", "http://10.0.0.1/"]
        {
            assert!(permitted(url, false).is_err(), "{url}");
            assert!(permitted(url, true).is_ok(), "{url}");
        }
        assert!(permitted("ftp://localhost/a", true).is_err());
        assert!(permitted("file:///etc/passwd", true).is_err());
    }

    #[test]
    fn another_port_scheme_or_host_is_another_origin() {
        let url = |text: &str| Url::parse(text).unwrap();
        assert!(same_origin(&url("https://a/x"), &url("https://a:443/y?z")));
        for other in ["https://a:444/x", "http://a/x", "https://b/x", "https://a.b/x"] {
            assert!(!same_origin(&url("https://a/x"), &url(other)), "{other}");
            assert!(!is_same_origin("https://a/x", other), "{other}");
        }
        assert!(is_same_origin("https://A/x", "https://a:443") && !is_same_origin("a", "a"));
    }
}
