use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use super::{get, head};
use crate::hub::{Content, Fault, Host, Hub, Outcome, Repo};

const PLAIN: &str = "/org/tiny/resolve/main/file.bin";

/// A hub with a file that no pair of socket buffers holds.
fn hub() -> (Hub, Content) {
    let content = Content::generated(64 << 20, 3);
    (Hub::builder().with_repo(Repo::new("org/tiny").with_file("file.bin", content.clone())).start(), content)
}

/// A connection on which the file was asked for.
fn asking(hub: &Hub) -> TcpStream {
    let mut connection = TcpStream::connect(hub.address()).unwrap();
    write!(connection, "GET {PLAIN} HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n\r\n").unwrap();
    connection
}

#[test]
fn requests_are_recorded_with_their_headers_and_what_was_sent() {
    let hub = Hub::builder().with_repo(Repo::new("org/tiny").with_lfs("a b.bin", "0123456789")).start();
    let redirect = get(hub.address(), "/org/tiny/resolve/main/a%20b.bin?download=true", &[("X-Asked-By", "test")]);
    let (host, target) = redirect.location();
    get(host, target, &[("Range", "bytes=0-3")]);
    head(host, target);
    let requests = hub.wait_until_idle();
    let seen: Vec<_> = requests.iter().map(|r| (r.host, &*r.method, r.status, r.outcome)).collect();
    let done = Outcome::Finished;
    assert_eq!(seen, [(Host::Hub, "GET", 302, done), (Host::Cdn, "GET", 206, done), (Host::Cdn, "HEAD", 200, done)]);
    assert_eq!((&*requests[0].path, &*requests[0].query), ("/org/tiny/resolve/main/a%20b.bin", "download=true"));
    assert_eq!(requests[0].header("x-asked-by"), Some("test"));
    assert!(requests.iter().all(|request| request.file.as_deref() == Some("a b.bin")));
    assert_eq!((requests[1].body_bytes_sent, requests[2].body_bytes_sent), (4, 0));
    let redirect_body = redirect.body.len() as u64;
    assert_eq!(hub.bytes_served(), redirect_body + 4);
    assert_eq!(hub.bytes_served_for("org/tiny/a b.bin"), redirect_body + 4);
    assert_eq!(hub.bytes_served_for("/blob/*"), 4);
    hub.clear();
    assert!(hub.requests().is_empty());
}

#[test]
fn a_token_does_not_show_in_the_debug_form() {
    let hub = Hub::builder().with_token("hf_secret").start();
    get(hub.address(), "/api/models/none", &[("Authorization", "Bearer hf_secret")]);
    let requests = hub.wait_until_idle();
    assert_eq!(requests[0].header("authorization"), Some("Bearer hf_secret"));
    assert!(!format!("{requests:?}").contains("hf_secret"));
}

#[test]
fn a_client_that_goes_away_is_seen() {
    let (hub, content) = hub();
    let mut connection = asking(&hub);
    connection.read_exact(&mut [0; 1000]).unwrap();
    assert_eq!(hub.open_requests(), 1);
    drop(connection);
    let requests = hub.wait_until_idle();
    assert_eq!(requests[0].outcome, Outcome::Aborted);
    assert!(requests[0].body_bytes_sent < content.size());
}

#[test]
fn a_stalled_body_goes_on_when_it_is_released() {
    let (hub, content) = hub();
    hub.fault(Fault::stall(1000).once());
    let mut connection = asking(&hub);
    hub.wait_until(|requests| requests.iter().any(|request| request.body_bytes_sent == 1000));
    assert_eq!(hub.open_requests(), 1);
    hub.release();
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).unwrap();
    assert!(answer.ends_with(&content.read(0..content.size()).unwrap()));
    assert_eq!(hub.wait_until_idle()[0].outcome, Outcome::Finished);
}

#[test]
fn a_client_that_leaves_a_stalled_or_silent_answer_is_seen_too() {
    let (hub, _) = hub();
    hub.fault(Fault::stall(0).once());
    hub.fault(Fault::silence().once());
    for sent in [200, 0] {
        let connection = asking(&hub);
        hub.wait_until(|requests| requests.iter().any(|request| request.status == sent));
        drop(connection);
        let requests = hub.wait_until_idle();
        assert_eq!((requests[0].outcome, requests[0].body_bytes_sent), (Outcome::Aborted, 0));
        hub.clear();
    }
}

#[test]
fn dropping_the_hub_ends_what_is_stalled() {
    let (hub, _) = hub();
    hub.fault(Fault::stall(1000));
    let mut connection = asking(&hub);
    hub.wait_until(|requests| requests.iter().any(|request| request.body_bytes_sent == 1000));
    drop(hub);
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).unwrap();
    assert!(answer.len() > 1000 && answer.len() < 2000, "the head and 1000 bytes");
}
