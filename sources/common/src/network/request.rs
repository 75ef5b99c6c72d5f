//! One GET request: redirects followed by hand, credentials for the named host only, and the answer.

use std::{fmt, time::Duration};

use bytes::{Bytes, BytesMut};
use llm_local_core::{Refusal, Request};
use reqwest::{
    Url,
    header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, LOCATION},
};

use super::{
    Failure, MAX_REDIRECTS, Network, NetworkConfig, address,
    rate::{may_say_more, wait_asked, wait_said},
};

/// The headers of a source that go to hosts it did not name. All others stay back, since any may be a credential:
/// `Authorization` and `Cookie`, but also `X-Api-Key` or `PRIVATE-TOKEN`.
const HARMLESS: [&str; 2] = ["accept", "user-agent"];

/// What is read of the body of a redirect, so that its connection can be used again.
const REDIRECT_BODY: u64 = 16 << 10;

/// What is read of the body of a refusal, to find out whether it is one for long.
const REFUSAL_BODY: usize = 16 << 10;

/// An answer: status, headers, and a body that is still to be read.
pub struct Response {
    inner: reqwest::Response,
    network: Network,
    address: Box<str>,
    named: bool,
    /// What was found out of a refusal. Few answers are one.
    heard: Option<Box<Heard>>,
}

/// The begin of a body that was read.
struct Heard {
    /// What is still to be given of it.
    head: Bytes,
    /// The wait that it asks for in words, where no header does.
    wait: Option<Duration>,
}

impl Network {
    /// One GET of `request`, with the headers `extra` besides. At most ten redirects are followed, never from `https` to
    /// `http`; what the source put into `request` but for `Accept` and `User-Agent` is not sent to another host, port or
    /// scheme, nor ever again after that. Any status but a redirect is an answer. Not tried again. A host that asked for a
    /// pause, by `Retry-After` or GitHub's words for too many requests, to any request of this network, is not asked before
    /// that is over.
    ///
    /// # Errors
    /// [`Failure`] if there is no answer, or a URL that may not be asked.
    pub async fn get(&self, request: &Request, extra: &[(&str, &str)]) -> Result<Response, Failure> {
        let client = self.plain_client()?;
        let named = address::permitted(&request.url, self.config())?;
        let mut own = headers(request.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())))?;
        let extra = headers(extra.iter().copied())?;
        let (mut url, mut foreign) = (named.clone(), false);
        for _ in 0..=MAX_REDIRECTS {
            let shown = address::shown_url(&url);
            self.turn_of(&url).await;
            let sending = client.get(url.clone()).headers(own.clone()).headers(extra.clone()).send();
            let answer = match self.within_stall(sending).await {
                Some(answer) => answer.map_err(|e| Failure::connection(&shown, e))?,
                None => return Err(Failure::passing(shown, self.stalled())),
            };
            let Some(next) = redirect(&answer, &url, self.config())? else {
                let (network, address, named) = (self.clone(), shown.into(), !foreign);
                let mut response = Response { inner: answer, network, address, named, heard: None };
                if response.status() >= 400 {
                    response.listen().await;
                    if let Some(wait) = response.wait_asked() {
                        self.pause_url(&url, wait);
                    }
                }
                return Ok(response);
            };
            drain(self, answer).await;
            if !foreign && !address::same_origin(&named, &next) {
                foreign = true;
                let harmless = |name: &HeaderName| HARMLESS.contains(&name.as_str());
                own = own.iter().filter(|(n, _)| harmless(n)).map(|(n, v)| (n.clone(), v.clone())).collect();
            }
            url = next;
        }
        Err(Failure::permanent(address::shown_url(&named), format!("more than {MAX_REDIRECTS} redirects")))
    }

    fn stalled(&self) -> String {
        format!("no byte came for {} s", self.config().stall.as_secs_f32())
    }
}

/// Where `answer`, given at `url`, redirects to.
fn redirect(answer: &reqwest::Response, url: &Url, config: &NetworkConfig) -> Result<Option<Url>, Failure> {
    if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    // Some hosts send names in UTF-8 as they are.
    let location = answer.headers().get(LOCATION).and_then(|v| std::str::from_utf8(v.as_bytes()).ok());
    follow(url, location, config).map(Some)
}

/// What `location` leads to from `url`, if that may be asked.
fn follow(url: &Url, location: Option<&str>, config: &NetworkConfig) -> Result<Url, Failure> {
    let shown = address::shown_url(url);
    let Some(Ok(next)) = location.map(|l| url.join(l)) else {
        return Err(Failure::permanent(shown, "it redirects to nowhere: no Location header that is a URL"));
    };
    let to = address::shown_url(&next);
    if url.scheme() == "https" && next.scheme() != "https" {
        return Err(Failure::permanent(shown, format!("it redirects from `https` to `{}` ({to})", next.scheme())));
    }
    match address::refused(&next, config.insecure_http) {
        Some(reason) => Err(Failure::permanent(shown, format!("it redirects to {to}: {reason}"))),
        None => {
            address::allowed(&next, config)?;
            Ok(next)
        }
    }
}

async fn drain(network: &Network, mut answer: reqwest::Response) {
    let length = answer.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length <= REDIRECT_BODY) {
        // Whatever goes wrong here costs a new connection, no more.
        let body = async { while let Ok(Some(_)) = answer.chunk().await {} };
        network.within_stall(body).await;
    }
}

fn headers<'a>(of: impl Iterator<Item = (&'a str, &'a str)>) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::new();
    for (name, value) in of {
        let (Ok(name), Ok(mut value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) else {
            // The value may be a token that was pasted with a line break: only the name is said.
            let reason =
                format!("the header `{}` cannot be sent: it holds a character that none may", name.escape_debug());
            return Err(Failure::permanent("a request", reason));
        };
        value.set_sensitive(!HARMLESS.contains(&name.as_str()));
        headers.append(name, value);
    }
    Ok(headers)
}

impl Response {
    /// The status: 200, 206, 404, ...
    pub fn status(&self) -> u16 {
        self.inner.status().as_u16()
    }

    /// The header called `name`, in lower case, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.inner.headers().get(name)?.to_str().ok()
    }

    /// Whether the host that the request named gave this answer, and not one that it redirected to.
    pub fn from_named_host(&self) -> bool {
        self.named
    }

    /// Host, port and path of who answered.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Status and headers, as sources explain them. A wait that the host asks for in words alone, as GitHub does where
    /// requests come too fast, is a `retry-after` among them.
    pub fn as_refusal(&self) -> Refusal {
        let text = |v: &HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned();
        let headers = self.inner.headers().iter().map(|(n, v)| (n.as_str().to_owned(), text(v)));
        let said = self
            .heard
            .as_ref()
            .and_then(|heard| heard.wait)
            .map(|wait| ("retry-after".to_owned(), wait.as_secs().to_string()));
        // Before one that could not be read.
        Refusal::new(self.status(), said.into_iter().chain(headers).collect())
    }

    fn wait_asked(&self) -> Option<Duration> {
        wait_asked(&self.as_refusal(), self.network.timer().wall())
    }

    /// Reads the begin of a refusal that asks for no wait, but may do so in its words.
    async fn listen(&mut self) {
        if !may_say_more(self.status(), self.header("content-type")) || self.wait_asked().is_some() {
            return;
        }
        let mut read = BytesMut::new();
        // If no more can be had the answer is a refusal all the same.
        while read.len() < REFUSAL_BODY
            && let Ok(Some(chunk)) = self.chunk().await
        {
            read.extend_from_slice(&chunk);
        }
        let wait = wait_said(self.status(), &read);
        self.heard = Some(Box::new(Heard { head: read.freeze(), wait }));
    }

    /// The failure of a request for `what` that this answer refuses.
    pub fn failure(&self, what: &str) -> Failure {
        let wall = self.network.timer().wall();
        Failure::refusal(what, &self.as_refusal(), &self.address, self.named, wall)
    }

    /// The next bytes of the body; `None` at its end.
    ///
    /// # Errors
    /// [`Failure`] if the connection breaks, or stays without a byte for too long.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Failure> {
        if let Some(heard) = self.heard.as_mut().filter(|heard| !heard.head.is_empty()) {
            return Ok(Some(std::mem::take(&mut heard.head)));
        }
        match self.network.within_stall(self.inner.chunk()).await {
            Some(chunk) => chunk.map_err(|e| Failure::connection(&*self.address, e)),
            None => Err(Failure::passing(&*self.address, self.network.stalled())),
        }
    }

    /// All of the body that is still to be read, which may have `most` bytes: for listings, not for files of a size that
    /// somebody else chooses.
    ///
    /// # Errors
    /// As [`Response::chunk`]; a permanent [`Failure`] for more bytes than that.
    pub async fn bytes(&mut self, most: usize) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if bytes.len() + chunk.len() > most {
                return Err(Failure::permanent(&*self.address, format!("it answered with more than {most} bytes")));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response")
            .field("status", &self.status())
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn followed(url: &str, location: &str, insecure_http: bool) -> Result<String, String> {
        let config = NetworkConfig::new().with_insecure_http(insecure_http);
        let next = follow(&Url::parse(url).unwrap(), Some(location), &config);
        next.map(String::from).map_err(|failure| failure.error.to_string())
    }

    #[test]
    fn a_redirect_never_leads_out_of_encryption() {
        // Not even where `http` is allowed, or to this machine.
        for location in ["http://hub.test/b?sig=abc", "http://127.0.0.1/b?sig=abc", "http://user:abc@hub.test/b"] {
            for insecure_http in [false, true] {
                let error = followed("https://hub.test/a", location, insecure_http).unwrap_err();
                assert!(error.contains("from `https` to `http`") && error.contains("/b"), "{error}");
                assert!(!error.contains("abc"), "{error}");
            }
        }
        assert!(followed("http://127.0.0.1/a", "http://hub.test/b", false).unwrap_err().contains("not encrypted"));
        assert!(followed("https://hub.test/a", "file:///etc/passwd", true).is_err());
    }

    #[test]
    fn a_redirect_leads_to_allowed_hosts_only() {
        let config = NetworkConfig::new().with_allowed_hosts(["hub.test"]);
        let follow = |location| follow(&Url::parse("https://hub.test/a").unwrap(), Some(location), &config);
        assert!(follow("/b").is_ok());
        let failure = follow("https://cdn.test/b?sig=abc").unwrap_err();
        assert_eq!((failure.error.code(), failure.retry), ("not_allowed", super::super::Retry::Never));
        assert!(!failure.error.to_string().contains("abc"));
    }

    #[test]
    fn a_redirect_is_read_as_a_browser_reads_it() {
        for (location, next) in [
            ("/b?c", "https://hub.test/b?c"),
            ("b", "https://hub.test/x/b"),
            ("//cdn.test/b", "https://cdn.test/b"),
            ("https://cdn.test/ü", "https://cdn.test/%C3%BC"),
        ] {
            assert_eq!(followed("https://hub.test/x/a", location, false).as_deref(), Ok(next));
        }
        assert!(followed("https://hub.test/a", "https://[", false).is_err());
        assert_eq!(followed("http://hub.test/a", "https://hub.test/a", true).as_deref(), Ok("https://hub.test/a"));
    }
}
