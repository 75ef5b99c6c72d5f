//! What goes wrong, for which requests, and how often.

use std::ops::Range;

use super::{Content, Host};

/// Something that goes wrong with the requests it is for: by default all of them, always.
///
/// Of the faults that are set, a request gets the first that is for it and has turns left. Faults of the body (`cut`,
/// `stall`, `slow`, `ignore_range`, `changed`, `wrong_*`, `longer`, `shorter`, `content_length`, `gzip`) are only for a
/// `GET` that is answered with a body of its own, so a redirect to another host does not use them up.
#[derive(Debug, Clone)]
#[must_use = "a fault does nothing until it is given to a server"]
pub struct Fault {
    pub(super) actions: Vec<Action>,
    pub(super) host: Option<Host>,
    pub(super) method: Option<String>,
    pub(super) path: Option<String>,
    pub(super) skip: usize,
    pub(super) times: Option<usize>,
}

#[derive(Debug, Clone)]
pub(super) enum Action {
    HangUp,
    Silence,
    Cut(u64),
    Stall(u64),
    Slow(u64),
    IgnoreRange,
    Etag(String),
    Changed(Content),
    Invert(Range<u64>),
    Resize(i64),
    Promise(i64),
    Gzip,
    Answer { status: u16, content_type: String, body: Content },
    Status(u16),
    Redirect { status: u16, location: Option<String> },
    Header { name: String, value: String },
}

impl Action {
    /// Whether it needs an answer with a body of its own.
    pub(super) fn is_of_the_body(&self) -> bool {
        use Action::*;
        match self {
            Cut(_) | Stall(_) | Slow(_) | IgnoreRange | Changed(_) | Invert(_) | Resize(_) | Promise(_) | Gzip => true,
            HangUp | Silence | Etag(_) | Answer { .. } | Status(_) | Redirect { .. } | Header { .. } => false,
        }
    }
}

/// What goes wrong.
impl Fault {
    /// The connection ends without an answer.
    pub fn hang_up() -> Self {
        Self::of(Action::HangUp)
    }

    /// There is no answer until [`Loopback::release`](super::Loopback::release).
    pub fn silence() -> Self {
        Self::of(Action::Silence)
    }

    /// The connection ends after `bytes` of the body. A body that has no more than that is sent whole.
    pub fn cut(bytes: u64) -> Self {
        Self::of(Action::Cut(bytes))
    }

    /// Nothing comes after `bytes` of the body until [`Loopback::release`](super::Loopback::release).
    pub fn stall(bytes: u64) -> Self {
        Self::of(Action::Stall(bytes))
    }

    /// The body comes at about this many bytes a second.
    ///
    /// # Panics
    /// If it is 0.
    pub fn slow(bytes_per_second: u64) -> Self {
        assert!(bytes_per_second > 0, "a body that never comes is a stall");
        Self::of(Action::Slow(bytes_per_second))
    }

    /// A request for a range is answered with 200 and all of the file. Only for requests that have a `Range`.
    pub fn ignore_range() -> Self {
        Self::of(Action::IgnoreRange)
    }

    /// The file has this ETag (without quotes) and no other; an `If-Range` with another one fails. In the Hub's
    /// redirect to the second host, `X-Linked-Etag` is changed. With [`skip`](Self::skip) it changes midway.
    pub fn etag(etag: impl Into<String>) -> Self {
        Self::of(Action::Etag(format!("\"{}\"", etag.into())))
    }

    /// The file has this content, and another ETag with it: it was replaced. With [`skip`](Self::skip), midway.
    pub fn changed(content: impl Into<Content>) -> Self {
        Self::of(Action::Changed(content.into()))
    }

    /// All bytes are inverted, under the old ETag.
    pub fn wrong_bytes() -> Self {
        Self::of(Action::Invert(0..u64::MAX))
    }

    /// One byte of the file, at `offset`, is inverted, under the old ETag.
    pub fn wrong_byte(offset: u64) -> Self {
        Self::of(Action::Invert(offset..offset + 1))
    }

    /// The file has this many bytes more than it should, zeros, and every header says so.
    pub fn longer(bytes: u32) -> Self {
        Self::of(Action::Resize(bytes.into()))
    }

    /// The file has this many bytes less than it should, and every header says so.
    pub fn shorter(bytes: u32) -> Self {
        Self::of(Action::Resize(-i64::from(bytes)))
    }

    /// `Content-Length` promises this many bytes more (or less, if negative) than come; the connection ends after it.
    pub fn content_length(difference: i32) -> Self {
        Self::of(Action::Promise(difference.into()))
    }

    /// The body is gzipped whatever the client accepts, with a true `Content-Encoding`; for files that fit in memory.
    pub fn gzip() -> Self {
        Self::of(Action::Gzip)
    }

    /// This answer instead of the true one.
    pub fn answer(status: u16, content_type: impl Into<String>, body: impl Into<Content>) -> Self {
        Self::of(Action::Answer { status, content_type: content_type.into(), body: body.into() })
    }

    /// A web page with status 200 instead of the true answer, as captive portals and login walls send it.
    pub fn html() -> Self {
        Self::answer(200, "text/html; charset=utf-8", "<!doctype html><title>Welcome</title><p>Please log in.")
    }

    /// An error with this status, worded as the host would: 401, 403, 404, 416, 500, 503 and others. 416 names the size
    /// of the file.
    pub fn status(status: u16) -> Self {
        Self::of(Action::Status(status))
    }

    /// 429, with this `Retry-After`: seconds or an HTTP date, as it is to be sent.
    pub fn too_many_requests(retry_after: impl Into<String>) -> Self {
        Self::status(429).with_header("Retry-After", retry_after)
    }

    /// A redirect to `location`, which may be on another host.
    pub fn redirect(status: u16, location: impl Into<String>) -> Self {
        Self::of(Action::Redirect { status, location: Some(location.into()) })
    }

    /// A redirect to the same URL again.
    pub fn redirect_loop() -> Self {
        Self::of(Action::Redirect { status: 302, location: None })
    }

    /// The answer has this header; one of that name that it had is replaced.
    pub fn header(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self::of(Action::Header { name: name.into(), value: value.into() })
    }

    fn of(action: Action) -> Self {
        Self { actions: vec![action], host: None, method: None, path: None, skip: 0, times: None }
    }
}

/// For which requests, and how often.
impl Fault {
    /// Only for requests to this host.
    pub fn on(mut self, host: Host) -> Self {
        self.host = Some(host);
        self
    }

    /// Only for requests with this method.
    pub fn method(mut self, method: impl Into<String>) -> Self {
        self.method = Some(method.into());
        self
    }

    /// Only for requests that this pattern describes: see [`Recorded::is_for`](super::Recorded::is_for). A file has its
    /// name on all hosts.
    pub fn path(mut self, pattern: impl Into<String>) -> Self {
        self.path = Some(pattern.into());
        self
    }

    /// The first `requests` that it would be for go well.
    pub fn skip(mut self, requests: usize) -> Self {
        self.skip = requests;
        self
    }

    /// For so many requests, and none after them.
    pub fn times(mut self, requests: usize) -> Self {
        self.times = Some(requests);
        self
    }

    /// For one request.
    pub fn once(self) -> Self {
        self.times(1)
    }

    /// And this header in the same answer: see [`header`](Self::header).
    pub fn with_header(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.and(Self::header(name, value))
    }

    /// And what goes wrong by `other` in the same answer. Which requests `other` was for does not matter.
    pub fn and(mut self, other: Self) -> Self {
        self.actions.extend(other.actions);
        self
    }
}
