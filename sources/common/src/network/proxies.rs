//! Which requests go by way of a proxy: those that the usual variables name, but never those to this machine.

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt,
};

use llm_local_core::{Error, Result};
use reqwest::{NoProxy, Proxy, Url};

use super::address;

/// What to do where a proxy cannot be used.
const FIX: &str = "set HTTPS_PROXY and HTTP_PROXY to URLs such as `http://proxy.example:3128`, or NO_PROXY to `*`";

/// The proxies that requests go by way of, one for `https:` and one for `http:` URLs. Requests to this machine
/// (`localhost`, 127.0.0.0/8 and ::1) never do: the token for a server on this machine is none of a proxy's business.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    https: Option<Named>,
    http: Option<Named>,
    /// As in the variable `NO_PROXY`.
    exempt: Option<Named>,
}

/// What a variable says, and which it is.
#[derive(Clone, PartialEq, Eq)]
struct Named {
    variable: &'static str,
    /// It may hold a password. `None` if it is no text, which is not the same as none: what is to go through a proxy would
    /// go past it.
    value: Option<String>,
}

impl Proxies {
    /// No proxy.
    pub fn none() -> Self {
        Self::default()
    }

    /// Those that the variables of this process name: see [`Proxies::from_variables`].
    pub fn from_environment() -> Self {
        Self::from_values(|name| env::var_os(name))
    }

    /// Those that the values of `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` (for either, where its own says nothing) and
    /// `NO_PROXY` name, each also in lower case where it is not there in upper case. `HTTP_PROXY` in upper case means
    /// nothing in a CGI script, where the client of the script sets it by the header `Proxy`: `REQUEST_METHOD` tells.
    ///
    /// `NO_PROXY` is a list with commas of hosts, which stand for their subdomains too, of IP addresses and networks
    /// (`10.0.0.0/8`), or `*` for all.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        Self::from_values(|name| variable(name).map(OsString::from))
    }

    /// [`Proxies::from_variables`], of values that may be no text.
    fn from_values(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let text = |value: &OsStr| value.to_str().map(|value| value.trim().to_owned());
        let first = |names: &[&'static str]| {
            names.iter().find_map(|name| Some(Named { variable: name, value: text(&variable(name)?) }))
        };
        let told = |names: &[&'static str]| first(names).filter(|named| named.value.as_deref() != Some(""));
        let all = told(&["ALL_PROXY", "all_proxy"]);
        let is_cgi = variable("REQUEST_METHOD").is_some();
        let http: &[&'static str] = if is_cgi { &["http_proxy"] } else { &["HTTP_PROXY", "http_proxy"] };
        Self {
            https: told(&["HTTPS_PROXY", "https_proxy"]).or_else(|| all.clone()),
            http: told(http).or(all),
            exempt: first(&["NO_PROXY", "no_proxy"]),
        }
    }

    /// reqwest's rules for these. Where `insecure_http` is not set, `http:` goes to this machine only.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a proxy that cannot be used, or a variable that is no text. To go on without it would send past the proxy what is
    /// to go through it.
    pub(super) fn rules(&self, insecure_http: bool) -> Result<Vec<Proxy>> {
        let exempt = self.exempt.as_ref().map(Named::text).transpose()?.unwrap_or_default();
        // reqwest takes `*` for all names, but for no address.
        if exempt.split(',').any(|entry| entry.trim() == "*") {
            return Ok(Vec::new());
        }
        let exempt = NoProxy::from_string(&format!("{},{}", address::LOOPBACK, exempt));
        let http = self.http.as_ref().filter(|_| insecure_http).map(|named| Ok(Proxy::http(named.url()?)));
        let https = self.https.as_ref().map(|named| Ok(Proxy::https(named.url()?)));
        let rules = https.into_iter().chain(http);
        rules
            .map(|rule| match rule? {
                Ok(proxy) => Ok(proxy.no_proxy(exempt.clone())),
                // reqwest's error shows the URL.
                Err(_) => Err(Error::unsupported("network access", format!("a proxy's URL is not usable; {FIX}"))),
            })
            .collect()
    }
}

impl Named {
    fn text(&self) -> Result<&str> {
        self.value.as_deref().ok_or_else(|| {
            let reason =
                format!("the variable {} says which proxy is used, and is no Unicode text; {FIX}", self.variable);
            Error::unsupported("network access", reason)
        })
    }

    /// The URL of the proxy; its scheme may have been left out.
    fn url(&self) -> Result<Url> {
        let unusable = |found: &str| {
            let expected = "expected `http://host:port` or `https://host:port`";
            let reason = format!("the variable {} names a proxy: {expected}, found {found}; {FIX}", self.variable);
            Err(Error::unsupported("network access", reason))
        };
        let value = self.text()?;
        let text = if value.contains("://") { value.to_owned() } else { format!("http://{value}") };
        match Url::parse(&text) {
            Ok(url) if !matches!(url.scheme(), "http" | "https") => {
                unusable(&format!("one with the scheme `{}`, which is not spoken", url.scheme()))
            }
            Ok(url) if url.host_str().is_some_and(|host| !host.is_empty()) => Ok(url),
            _ => unusable("what is no URL of a host"),
        }
    }
}

/// Where they are, without user and password.
impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |named: &Option<Named>| {
            named.as_ref().map(|named| match named.url() {
                Ok(url) => format!("{}://{}", url.scheme(), address::shown_url(&url)),
                Err(_) => format!("an unusable one, by {}", named.variable),
            })
        };
        f.debug_struct("Proxies")
            .field("https", &at(&self.https))
            .field("http", &at(&self.http))
            .field("exempt", &self.exempt.as_ref().and_then(|named| named.value.as_deref()).unwrap_or_default())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{BufRead as _, BufReader, Write as _},
        net::TcpListener,
    };

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        Proxies::from_variables(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    /// The values for `https:` and `http:`.
    fn told(variables: &[(&str, &str)]) -> (Option<String>, Option<String>) {
        let proxies = proxies(variables);
        (proxies.https.and_then(|named| named.value), proxies.http.and_then(|named| named.value))
    }

    #[test]
    fn the_variables_are_read_as_other_programs_read_them() {
        let of = |https: &str, http: &str| {
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            (some(https), some(http))
        };
        assert_eq!(told(&[]), of("", ""));
        assert_eq!(told(&[("HTTPS_PROXY", "a"), ("https_proxy", "b")]), of("a", ""));
        assert_eq!(told(&[("https_proxy", "b"), ("http_proxy", "c")]), of("b", "c"));
        assert_eq!(told(&[("ALL_PROXY", "a"), ("http_proxy", "c")]), of("a", "c"));
        assert_eq!(told(&[("all_proxy", "a"), ("HTTPS_PROXY", " ")]), of("a", "a"));
        let cgi = [("REQUEST_METHOD", "GET"), ("HTTP_PROXY", "evil"), ("HTTPS_PROXY", "a")];
        assert_eq!(told(&cgi), of("a", ""));
        assert_eq!(told(&[("REQUEST_METHOD", "GET"), ("HTTP_PROXY", "evil"), ("http_proxy", "c")]), of("", "c"));
    }

    #[test]
    fn a_star_exempts_all_and_http_needs_a_proxy_only_where_it_may_leave_this_machine() {
        let both = [("ALL_PROXY", "http://proxy.test")];
        assert_eq!(proxies(&both).rules(true).unwrap().len(), 2);
        assert_eq!(proxies(&both).rules(false).unwrap().len(), 1);
        assert!(proxies(&[both[0], ("no_proxy", "a.test, *")]).rules(true).unwrap().is_empty());
    }

    #[test]
    fn a_proxy_that_cannot_be_used_is_an_error_that_names_the_variable_and_not_its_value() {
        for (value, words) in [("socks5h://user:pw@host", "`socks5h`"), ("http://", "no URL"), ("user:pw@", "no URL")] {
            let proxies = proxies(&[("all_proxy", value)]);
            let error = proxies.rules(false).unwrap_err().to_string();
            assert!(error.contains("all_proxy") && error.contains(words) && !error.contains("pw"), "{error}");
            assert!(!format!("{proxies:?}").contains("pw"), "{proxies:?}");
        }
        // One that no request needs does no harm.
        let proxies = proxies(&[("HTTP_PROXY", "socks5://host"), ("HTTPS_PROXY", "proxy.test:3128")]);
        assert!(proxies.rules(false).is_ok() && proxies.rules(true).is_err());
    }

    /// What goes past a proxy that is named, however badly, is not what its owner wants.
    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_no_text_is_an_error_that_names_it() {
        use std::os::unix::ffi::OsStringExt as _;
        for variable in ["HTTPS_PROXY", "all_proxy", "NO_PROXY"] {
            let value = |name: &str| (name == variable).then(|| OsString::from_vec(b"http://\xff".to_vec()));
            let proxies = Proxies::from_values(value);
            let error = proxies.rules(false).unwrap_err().to_string();
            assert!(error.contains(variable) && error.contains("no Unicode text"), "{error}");
            assert!(!format!("{proxies:?}").contains("xff"), "{proxies:?}");
        }
    }

    #[test]
    fn what_is_shown_of_a_proxy_is_no_secret() {
        let proxies = proxies(&[("HTTPS_PROXY", "user:pw@proxy.test:3128"), ("http_proxy", "https://u:pw@b.test")]);
        let shown = format!("{proxies:?}");
        assert!(shown.contains("http://proxy.test:3128") && shown.contains("https://b.test"), "{shown}");
        assert!(!shown.contains("pw"), "{shown}");
        let rules = proxies.rules(true).unwrap();
        let client = rules.into_iter().fold(reqwest::Client::builder(), |client, rule| client.proxy(rule));
        let client = format!("{:?}", client.build().unwrap());
        assert!(client.contains("proxy.test") && !client.contains("pw"), "{client}");
    }

    /// The first line of the request for `url` that arrives, whoever it is meant for: all names are this machine's.
    fn asked(variables: &[(&str, &str)], url: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = listener.local_addr().unwrap();
        let proxy = format!("http://{here}");
        let variables: Vec<_> = variables.iter().copied().chain([("ALL_PROXY", proxy.as_str())]).collect();
        let rules = proxies(&variables).rules(true).unwrap();
        let client = rules.into_iter().fold(reqwest::Client::builder().no_proxy(), reqwest::ClientBuilder::proxy);
        let names = ["hub.test", "a.hub.test", "nothub.test", "localhost."];
        let client = names.iter().fold(client, |client, name| client.resolve(name, here)).build().unwrap();
        let answering = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
            let first = lines.next().unwrap();
            lines.take_while(|line| !line.is_empty()).for_each(drop);
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
            first
        });
        let url = url.replace("PORT", &here.port().to_string());
        let network = crate::network::Network::new(crate::network::NetworkConfig::new());
        pollster::block_on(network.run(async move { Ok(client.get(url).send().await.unwrap().status()) })).unwrap();
        answering.join().unwrap()
    }

    #[test]
    fn no_proxy_exempts_hosts_and_addresses() {
        for (exempt, host, is_exempt) in [
            ("hub.test", "hub.test", true),
            ("x.test, .hub.test", "a.hub.test", true),
            ("hub.test", "nothub.test", false),
            ("", "hub.test", false),
            ("*", "hub.test", true),
            ("", "localhost.", true),
            // This machine too, though no address of the loopback.
            #[cfg(unix)]
            ("0.0.0.0/8", "0.0.0.0", true),
            #[cfg(unix)]
            ("192.0.2.0/24", "0.0.0.0", false),
            #[cfg(unix)]
            ("*", "0.0.0.0", true),
        ] {
            for name in ["NO_PROXY", "no_proxy"] {
                let first = asked(&[(name, exempt)], &format!("http://{host}:PORT/x"));
                let to_proxy = first.starts_with(&format!("GET http://{host}:"));
                assert!(to_proxy != is_exempt, "{host} with {name}={exempt}: {first}");
                assert!(to_proxy || first == "GET /x HTTP/1.1", "{first}");
            }
        }
    }
}
