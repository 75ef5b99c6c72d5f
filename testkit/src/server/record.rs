//! What the server saw.

use std::{
    fmt,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{Request, pattern};

/// How long [`Log::wait_until`] waits at most.
const PATIENCE: Duration = Duration::from_secs(60);

/// One of the hosts of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Host {
    /// The Hub itself: the API and the plain files.
    Hub,
    /// GitHub's API, `api.github.com`.
    Api,
    /// GitHub's web pages with the browser's download URLs, `github.com`.
    Web,
    /// The host that others redirect to for large files: the Hub for those in LFS, GitHub for all assets.
    Cdn,
}

/// A file that a request asks for, on whatever host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) repo: String,
    /// Of the release, where the file is an asset of one.
    pub(crate) tag: Option<String>,
    /// Its path in the repository, or the name of the asset.
    pub(crate) file: String,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// It has not.
    Open,
    /// The whole answer was handed to the operating system.
    Finished,
    /// The client went away before that, or the server was dropped.
    Aborted,
    /// A fault ended it.
    Cut,
}

impl Outcome {
    /// Whether the request has ended.
    pub fn is_over(self) -> bool {
        self != Self::Open
    }
}

/// A request and its answer as the server saw them.
#[derive(Clone)]
#[non_exhaustive]
pub struct Recorded {
    /// The host that was asked.
    pub host: Host,
    /// The connection it came on: requests of one connection have the same number.
    pub connection: u64,
    /// The method.
    pub method: String,
    /// The path, encoded as it came.
    pub path: String,
    /// What came after the `?`, as it came; empty without one.
    pub query: String,
    /// The headers in their order, names as they came.
    pub headers: Vec<(String, String)>,
    /// The repository that a file was asked of, on whatever host.
    pub repo: Option<String>,
    /// The tag of the release that an asset was asked of, on whatever host.
    pub tag: Option<String>,
    /// The path in its repository of the file that was asked for, or the name of the asset, on whatever host.
    pub file: Option<String>,
    /// The status of the answer; 0 as long as none was sent.
    pub status: u16,
    /// How many bytes of the answer's body were handed to the operating system: the client may have got less of them,
    /// by what its and our socket buffers hold.
    pub body_bytes_sent: u64,
    /// How it ended.
    pub outcome: Outcome,
    id: u64,
}

impl Recorded {
    /// The value of the first header called `name`, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Whether `pattern` describes the path of the request or the file that was asked for: its path in the repository or
    /// the name of the asset; an asset with its tag before it, as in `v1/adapter.gguf`; and either with the repository
    /// before it. `*` stands for any run of characters.
    pub fn is_for(&self, pattern: &str) -> bool {
        let subject = self.repo.clone().zip(self.file.clone());
        let subject = subject.map(|(repo, file)| Subject { repo, tag: self.tag.clone(), file });
        is_for(pattern, &self.path, subject.as_ref())
    }
}

/// The request line, the range and what came of it; no other headers, since they may hold a token.
impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} {}", self.host, self.method, self.path)?;
        if let Some(range) = self.header("range") {
            write!(f, " [{range}]")?;
        }
        write!(f, " -> {}, {} bytes, {:?}", self.status, self.body_bytes_sent, self.outcome)
    }
}

/// Whether `pattern` describes a request for `path`, which asks for `subject`.
pub(super) fn is_for(pattern: &str, path: &str, subject: Option<&Subject>) -> bool {
    let matches = |text: &str| pattern::matches(pattern, text);
    let by_name = |Subject { repo, tag, file }: &Subject| {
        let of_tag = tag.as_ref().is_some_and(|tag| {
            let name = format!("{tag}/{file}");
            matches(&name) || matches(&format!("{repo}/{name}"))
        });
        of_tag || matches(file) || matches(&format!("{repo}/{file}"))
    };
    matches(path) || subject.is_some_and(by_name)
}

/// All requests, and a way to wait for what is to happen to them.
#[derive(Debug, Default)]
pub(super) struct Log {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    requests: Vec<Recorded>,
    begun: u64,
    open: usize,
}

impl Log {
    /// Records that `request` has come, for `subject`. The id is for [`update`](Self::update).
    pub(super) fn begin(&self, host: Host, request: &Request, connection: u64, subject: Option<Subject>) -> u64 {
        let (repo, tag, file) = match subject {
            Some(Subject { repo, tag, file }) => (Some(repo), tag, Some(file)),
            None => (None, None, None),
        };
        let mut state = self.state();
        state.begun += 1;
        state.open += 1;
        let id = state.begun;
        state.requests.push(Recorded {
            host,
            connection,
            method: request.method.clone(),
            path: request.path.clone(),
            query: request.query.clone(),
            headers: request.headers.clone(),
            repo,
            tag,
            file,
            status: 0,
            body_bytes_sent: 0,
            outcome: Outcome::Open,
            id,
        });
        self.changed.notify_all();
        id
    }

    /// Changes what is recorded of a request, unless it was cleared away since.
    pub(super) fn update(&self, id: u64, change: impl FnOnce(&mut Recorded)) {
        let mut state = self.state();
        if let Some(recorded) = state.requests.iter_mut().rev().find(|recorded| recorded.id == id) {
            change(recorded);
            self.changed.notify_all();
        }
    }

    /// Records how a request ended.
    pub(super) fn end(&self, id: u64, outcome: Outcome) {
        let mut state = self.state();
        state.open -= 1;
        if let Some(recorded) = state.requests.iter_mut().rev().find(|recorded| recorded.id == id) {
            recorded.outcome = outcome;
        }
        self.changed.notify_all();
    }

    pub(super) fn requests(&self) -> Vec<Recorded> {
        self.state().requests.clone()
    }

    pub(super) fn open(&self) -> usize {
        self.state().open
    }

    pub(super) fn clear(&self) {
        self.state().requests.clear();
        self.changed.notify_all();
    }

    /// Waits until `done` holds for the requests recorded and the number of open ones.
    ///
    /// # Panics
    /// If it does not within a minute.
    pub(super) fn wait_until(&self, done: impl Fn(&[Recorded], usize) -> bool) -> Vec<Recorded> {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.state();
        while !done(&state.requests, state.open) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited {PATIENCE:?} in vain; the requests so far: {:#?}", state.requests);
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.requests.clone()
    }

    // A waiting test that panics poisons the lock; what it guards is whole all the same.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
