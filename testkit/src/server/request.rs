//! Requests as they come from a connection.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
};

use super::percent;

/// The largest head and the largest body that are read.
const HEAD_LIMIT: usize = 64 << 10;
const BODY_LIMIT: usize = 16 << 20;
const HEADERS: usize = 100;

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Encoded as it came.
    pub(crate) path: String,
    /// Encoded as it came, without the `?`.
    pub(crate) query: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Whether the client wants the connection for more requests.
    pub(crate) keep_alive: bool,
}

impl Request {
    /// The value of the first header called `name`, in any case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The segments of the path, decoded.
    pub(crate) fn segments(&self) -> Vec<String> {
        self.path.split('/').skip(1).map(percent::decode).collect()
    }

    /// The first value of `name` in the query, decoded.
    pub(crate) fn query(&self, name: &str) -> Option<String> {
        percent::pairs(&self.query).find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// Path and query as they came.
    pub(crate) fn target(&self) -> String {
        if self.query.is_empty() { self.path.clone() } else { format!("{}?{}", self.path, self.query) }
    }
}

/// Reads the requests of one connection, one after the other.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    stream: &'a TcpStream,
    buffer: Vec<u8>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(stream: &'a TcpStream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// The next request, or `None` if the client is done.
    pub(super) fn next(&mut self) -> io::Result<Option<Request>> {
        let (mut request, length) = loop {
            if let Some((request, length)) = parse(&self.buffer)? {
                break (request, length);
            }
            if self.buffer.len() > HEAD_LIMIT {
                return Err(malformed("its head is too long"));
            }
            if self.fill()? == 0 {
                return Ok(None);
            }
        };
        self.buffer.drain(..length);
        request.body = self.body(&request)?;
        Ok(Some(request))
    }

    fn body(&mut self, request: &Request) -> io::Result<Vec<u8>> {
        if request.header("transfer-encoding").is_some() {
            return Err(malformed("a body needs a Content-Length here"));
        }
        let length = match request.header("content-length") {
            Some(length) => length.parse().map_err(|_| malformed("its Content-Length is no number"))?,
            None => 0,
        };
        if length > BODY_LIMIT {
            return Err(malformed("its body is too long"));
        }
        if request.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
            self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        while self.buffer.len() < length {
            if self.fill()? == 0 {
                return Err(malformed("it ends within its body"));
            }
        }
        Ok(self.buffer.drain(..length).collect())
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut bytes = [0; 8 << 10];
        let n = self.stream.read(&mut bytes)?;
        self.buffer.extend_from_slice(&bytes[..n]);
        Ok(n)
    }
}

/// The request without its body that `bytes` begin with, and the length of its head; `None` if it is not all there.
fn parse(bytes: &[u8]) -> io::Result<Option<(Request, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(length) = parsed.parse(bytes).map_err(malformed)? else { return Ok(None) };
    let target = parsed.path.unwrap_or_default();
    // A client that takes the server for a proxy names the host as well.
    let target = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers = parsed.headers.iter();
    let headers = headers.map(|h| (h.name.to_owned(), String::from_utf8_lossy(h.value).into_owned())).collect();
    let mut request = Request {
        method: parsed.method.unwrap_or_default().to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        body: Vec::new(),
        keep_alive: parsed.version == Some(1),
    };
    if request.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
        request.keep_alive = false;
    }
    Ok(Some((request, length)))
}

fn malformed(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not a request: {what}"))
}
