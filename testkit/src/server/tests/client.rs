//! One request, one answer.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// An answer as it came.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }

    /// Whether the body has the length that was promised.
    pub(crate) fn is_whole(&self) -> bool {
        self.header("content-length").map(|length| length.parse().unwrap()) == Some(self.body.len())
    }

    /// Host and target of a redirect to another host.
    pub(crate) fn location(&self) -> (SocketAddr, &str) {
        let url = self.header("location").expect("a redirect says where to").strip_prefix("http://").unwrap();
        let slash = url.find('/').unwrap();
        (url[..slash].parse().unwrap(), &url[slash..])
    }
}

pub(crate) fn get(address: SocketAddr, target: &str, headers: &[(&str, &str)]) -> Reply {
    ask(address, "GET", target, headers, b"").expect("there is an answer")
}

pub(crate) fn head(address: SocketAddr, target: &str) -> Reply {
    ask(address, "HEAD", target, &[], b"").expect("there is an answer")
}

/// The answer to one request on a connection of its own; `None` if the connection ended without one.
pub(crate) fn ask(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Option<Reply> {
    let mut connection = TcpStream::connect(address).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    connection.write_all(head.as_bytes()).unwrap();
    connection.write_all(body).unwrap();
    let mut bytes = Vec::new();
    connection.read_to_end(&mut bytes).unwrap();
    (!bytes.is_empty()).then(|| parse(&bytes))
}

fn parse(bytes: &[u8]) -> Reply {
    let mut headers = [httparse::EMPTY_HEADER; 40];
    let mut parsed = httparse::Response::new(&mut headers);
    let length = parsed.parse(bytes).unwrap().unwrap();
    let headers = parsed.headers.iter().map(|h| (h.name.to_owned(), String::from_utf8_lossy(h.value).into_owned()));
    Reply { status: parsed.code.unwrap(), headers: headers.collect(), body: bytes[length..].to_vec() }
}
