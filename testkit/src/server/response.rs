//! Answers.

use std::{fmt::Write as _, ops::Range};

use serde_json::Value;

use super::Content;

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Content,
    /// Which bytes of the body are sent.
    pub(crate) range: Range<u64>,
}

impl Response {
    /// A body with its media type.
    pub(crate) fn new(status: u16, content_type: &str, body: impl Into<Content>) -> Self {
        let body = body.into();
        let range = 0..body.size();
        Self { status, headers: Vec::new(), body, range }.with_header("Content-Type", content_type)
    }

    /// A JSON body.
    pub(crate) fn json(status: u16, body: &Value) -> Self {
        Self::new(status, "application/json; charset=utf-8", body.to_string())
    }

    /// A text.
    pub(crate) fn text(status: u16, body: impl Into<String>) -> Self {
        Self::new(status, "text/plain; charset=utf-8", body.into())
    }

    /// A redirect to `location`.
    pub(crate) fn redirect(status: u16, location: &str) -> Self {
        Self::text(status, format!("{}. Redirecting to {location}", reason(status))).with_header("Location", location)
    }

    /// A file, of which ranges can be had. `etag` is without quotes.
    pub(crate) fn file(content: &Content, content_type: &str, etag: &str) -> Self {
        Self::new(200, content_type, content.clone())
            .with_header("ETag", format!("\"{etag}\""))
            .with_header("Accept-Ranges", "bytes")
    }

    /// The same with this header, in place of one that it had.
    pub(crate) fn with_header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.set_header(name, value);
        self
    }

    pub(crate) fn set_header(&mut self, name: &str, value: impl Into<String>) {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.into()));
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Puts another body into its place, and sends all of it.
    pub(crate) fn replace_body(&mut self, body: Content) {
        self.range = 0..body.size();
        self.body = body;
    }

    /// Status line and headers. `promised` is what `Content-Length` says.
    pub(super) fn head(&self, promised: u64, keep_alive: bool) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        let connection = if keep_alive { "keep-alive" } else { "close" };
        let own = [("Content-Length", promised.to_string()), ("Connection", connection.to_owned())];
        let own = own.iter().map(|(name, value)| (*name, value.as_str()));
        let given = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in given.clone().chain(own.filter(|(name, _)| self.header(name).is_none())) {
            let _ = write!(head, "{name}: {value}\r\n"); // writing to a String cannot fail
        }
        head.push_str("\r\n");
        head.into_bytes()
    }
}

/// The reason phrase of a status (RFC 9110, 15).
pub(crate) fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        410 => "Gone",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Unknown",
    }
}
