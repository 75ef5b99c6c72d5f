//! What goes by way of a proxy, and what it gets to see.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use llm_local_core::{Request, Result};
use llm_local_source_common::network::{Failure, Network, NetworkConfig, Proxies};
use llm_local_testkit::hub::Hub;

use super::support::TOKEN;

/// A proxy that answers everything itself, and writes down the heads of the requests: `/away` redirects to another host,
/// `/denied` and tunnels are refused, all else is found.
struct FakeProxy {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FakeProxy {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (heads, over) = (Arc::<Mutex<Vec<String>>>::default(), Arc::new(AtomicBool::new(false)));
        let (to, end) = (heads.clone(), over.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(|stream| stream.ok()) {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                answer(&stream, &to);
            }
        });
        Self { address, heads, over, thread: Some(thread) }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

fn answer(mut stream: &TcpStream, heads: &Mutex<Vec<String>>) {
    let lines = BufReader::new(stream).lines().map_while(|line| line.ok());
    let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let target = head.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_owned();
    let is_tunnel = head.first().is_some_and(|line| line.starts_with("CONNECT "));
    heads.lock().unwrap().push(head.join("\n").to_lowercase());
    let (status, more) = match target {
        _ if is_tunnel => ("502 Bad Gateway", ""),
        target if target.ends_with("/away") => ("302 Found", "Location: http://other.test/there\r\n"),
        target if target.ends_with("/denied") => ("407 Proxy Authentication Required", ""),
        _ => ("200 OK", ""),
    };
    let head = format!("HTTP/1.1 {status}\r\n{more}Content-Length: 7\r\nConnection: close\r\n\r\nproxied");
    // Who asked may be gone.
    let _ = stream.write_all(head.as_bytes());
}

impl Drop for FakeProxy {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // So that it looks.
        let _ = TcpStream::connect(self.address);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// A network whose environment is `variables`.
fn network(insecure_http: bool, variables: &[(&str, String)]) -> Network {
    let proxies = Proxies::from_variables(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone()));
    Network::new(NetworkConfig::new().with_insecure_http(insecure_http).with_proxies(proxies))
}

/// Status and body of what `url` gives to one who has a token.
fn get(network: &Network, url: String) -> Result<(u16, String)> {
    let inner = network.clone();
    pollster::block_on(network.run(async move {
        let bearer = format!("Bearer {TOKEN}");
        let request = Request::new(url).with_header("Authorization", bearer).with_header("PRIVATE-TOKEN", TOKEN);
        let mut response = inner.get(&request, &[]).await.map_err(|f| f.error)?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|f| f.error)? {
            body.extend_from_slice(&chunk);
        }
        Ok((response.status(), String::from_utf8(body).unwrap()))
    }))
}

/// The same by the client for API calls.
fn get_api(network: &Network, url: String) -> Result<u16> {
    let inner = network.clone();
    pollster::block_on(network.run(async move {
        let sent = inner.client()?.get(url).header("authorization", format!("Bearer {TOKEN}")).send().await;
        Ok(sent.map_err(|e| Failure::connection("host", e).error)?.status().as_u16())
    }))
}

#[test]
fn a_request_to_this_machine_never_goes_to_a_proxy() {
    let (proxy, hub) = (FakeProxy::start(), Hub::start());
    let at = format!("http://{}", proxy.address);
    let port = hub.address().port();
    for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        for insecure_http in [false, true] {
            let network = network(insecure_http, &[(name, at.clone())]);
            for host in ["127.0.0.1", "localhost", "LOCALHOST", "127.1"] {
                hub.clear();
                let (status, body) = get(&network, format!("http://{host}:{port}/x")).unwrap();
                assert!(status == 404 && body != "proxied", "{host} by {name}: {status} {body}");
                assert_eq!(get_api(&network, format!("http://{host}:{port}/x")).unwrap(), 404);
                assert_eq!(hub.requests().len(), 2, "{host} by {name}");
            }
            // Nobody has to listen there: that nobody asks the proxy is all.
            for host in ["127.9.9.9", "[::1]", "[::ffff:127.0.0.1]"] {
                let _ = get(&network, format!("http://{host}:1/x"));
                let _ = get(&network, format!("https://{host}:1/x"));
            }
        }
    }
    assert_eq!(proxy.heads(), [""; 0]);
}

#[test]
fn a_request_to_another_machine_goes_by_way_of_the_proxy() {
    let proxy = FakeProxy::start();
    let network = network(true, &[("HTTP_PROXY", format!("http://user:p%40ss@{}", proxy.address))]);
    assert_eq!(get(&network, "http://hub.test/a/b?c=d".into()).unwrap(), (200, "proxied".into()));
    assert_eq!(get_api(&network, "http://hub.test/api".into()).unwrap(), 200);
    let heads = proxy.heads();
    assert!(heads[0].starts_with("get http://hub.test/a/b?c=d http/1.1\n"), "{}", heads[0]);
    assert!(heads[1].starts_with("get http://hub.test/api http/1.1\n"), "{}", heads[1]);
    // "user:p@ss"
    assert!(heads.iter().all(|head| head.contains("proxy-authorization: basic dxnlcjpwqhnz")), "{heads:?}");
}

#[test]
fn a_proxy_gets_no_head_of_an_encrypted_request() {
    let proxy = FakeProxy::start();
    let network = network(false, &[("https_proxy", format!("user:p%40ss@{}", proxy.address))]);
    let error = get(&network, "https://hub.test/a?sig=abc".into()).unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(text.contains("hub.test/a") && !text.contains("abc") && !text.contains("ss@"), "{text}");
    let heads = proxy.heads();
    assert!(heads[0].starts_with("connect hub.test:443 http/1.1\n"), "{heads:?}");
    let token = TOKEN.to_lowercase();
    assert!(heads.iter().all(|head| !head.contains(&token) && !head.contains("abc")), "{heads:?}");
}

#[test]
fn credentials_stay_with_the_named_host_by_way_of_a_proxy_too() {
    let proxy = FakeProxy::start();
    let network = network(true, &[("HTTP_PROXY", format!("http://{}", proxy.address))]);
    assert_eq!(get(&network, "http://hub.test/away".into()).unwrap().0, 200);
    let heads = proxy.heads();
    let has = |head: &String| head.contains("\nauthorization:") as u8 + head.contains("\nprivate-token:") as u8;
    assert_eq!(heads.iter().map(has).collect::<Vec<_>>(), [2, 0], "{heads:?}");
    assert!(heads[1].starts_with("get http://other.test/there "), "{heads:?}");
}

#[test]
fn the_password_of_a_proxy_stands_in_no_error() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = FakeProxy::start();
    for at in [gone, proxy.address] {
        let value = format!("http://user:pa55word@{at}");
        let network = network(true, &[("ALL_PROXY", value)]);
        assert!(!format!("{network:?}").contains("pa55word"), "{network:?}");
        for url in ["http://hub.test/denied", "https://hub.test/denied"] {
            for text in [format!("{:?}", get(&network, url.into())), format!("{:?}", get_api(&network, url.into()))] {
                assert!(!text.contains("pa55word") && !text.contains("dXNlcjpwYTU1d29yZA"), "{text}");
            }
        }
    }
    assert!(!proxy.heads().is_empty());
}
