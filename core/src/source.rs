//! Sources: they know where artifacts are. They pin a ref, list files and say how to get the bytes; the engine moves
//! and verifies them, so that no source can skip verification.

use std::{fmt, ops::Range, path::PathBuf, pin::Pin, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::Stream;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{ArtifactRef, Error, Manifest, ManifestFile, ProgressHandler, Result, Want};

/// Knows where artifacts of one scheme are.
#[async_trait]
pub trait ArtifactSource: Send + Sync {
    /// The scheme of the refs it knows: `file`, `hf`, `github`, ...
    fn scheme(&self) -> &str;

    /// Pins `reference` to an immutable revision and lists the files that `want` needs. Downloads nothing but
    /// listings.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unauthorized`], [`Error::RateLimited`], [`Error::Offline`], or
    /// [`Error::UnsupportedModelFormat`] where what is there cannot be used (pickle weights).
    async fn resolve(&self, reference: &ArtifactRef, want: Want, cx: &FetchContext) -> Result<Manifest>;

    /// Says how to get the bytes `range` of `file`. Asked anew for each range and after a signed URL expired.
    ///
    /// # Errors
    /// As [`ArtifactSource::resolve`].
    async fn open(
        &self,
        manifest: &Manifest,
        file: &ManifestFile,
        range: Range<u64>,
        cx: &FetchContext,
    ) -> Result<Opened>;

    /// Where the files of `manifest` are published. Without an answer, which is the default, the engine's own store
    /// takes them; a source that shares the cache of other tools says where that cache wants them. Called after
    /// [`ArtifactSource::resolve`]; makes no request and writes nothing.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] if the cache cannot hold such an artifact.
    fn placement(&self, manifest: &Manifest) -> Result<Option<Placement>> {
        let _ = manifest;
        Ok(None)
    }

    /// The error for an answer that refuses a request of [`ArtifactSource::open`], from the host that the request named,
    /// in the source's own words: which token, which licence. `None`, the default, leaves it to the transfer engine.
    fn explain(&self, manifest: &Manifest, file: &ManifestFile, refusal: &Refusal) -> Option<Error> {
        let _ = (manifest, file, refusal);
        None
    }

    /// The ref that names what `reference` does, at `revision`: the name of one, or an immutable one where it has no name
    /// ([`Manifest::version`], [`Manifest::revision`]). The default puts it in place of the revision.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] if refs of this source have no revisions.
    fn at_revision(&self, reference: &ArtifactRef, revision: &str) -> Result<ArtifactRef> {
        reference.clone().with_revision(revision)
    }

    /// The revisions that there are, newest first.
    ///
    /// # Errors
    /// [`Error::Unsupported`] unless a source has them.
    async fn revisions(&self, reference: &ArtifactRef, cx: &FetchContext) -> Result<Vec<Revision>> {
        let _ = cx;
        Err(Error::unsupported(
            format!("listing revisions of {reference}"),
            format!("the source `{}` keeps none", self.scheme()),
        ))
    }
}

/// A source of models.
pub trait ModelSource: ArtifactSource {}

/// A source of adapters.
pub trait AdapterSource: ArtifactSource {}

const _: fn(&dyn ArtifactSource, &dyn ModelSource, &dyn AdapterSource) = |_, _, _| {};

/// What a call to a source may use and must look at.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct FetchContext {
    /// When set, no request may be made.
    pub offline: bool,
    /// Whether an adapter may be of files that the source does not know for one: of a plugin's format, or tensors of which
    /// somebody says what they are. Where a source that looks for names of files finds none that it knows, it lists those
    /// that there are, but for pickles, models, and what training left beside the file that it gave; whether they are an adapter is then known once they are read.
    pub any_adapter: bool,
    /// When cancelled, the call ends soon with [`Error::Cancelled`].
    pub cancel: CancellationToken,
    /// Who hears of progress.
    pub progress: Option<Arc<dyn ProgressHandler>>,
}

impl FetchContext {
    /// Online, not cancelled, nobody listening.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whether requests are forbidden.
    pub fn with_offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// Sets whether an adapter may be of files that the source does not know for one.
    pub fn with_any_adapter(mut self, any_adapter: bool) -> Self {
        self.any_adapter = any_adapter;
        self
    }

    /// Sets the token that cancels.
    pub fn with_cancel(mut self, cancel: CancellationToken) -> Self {
        self.cancel = cancel;
        self
    }

    /// Sets who hears of progress.
    pub fn with_progress(mut self, progress: Arc<dyn ProgressHandler>) -> Self {
        self.progress = Some(progress);
        self
    }
}

impl fmt::Debug for FetchContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FetchContext").field("offline", &self.offline).finish_non_exhaustive()
    }
}

/// Bytes as they arrive, in order.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>;

/// How to get a range of a file.
#[non_exhaustive]
pub enum Opened {
    /// A GET request, to which the transfer engine adds `Range`.
    Request(Request),
    /// The bytes of exactly the range asked for.
    Stream(ByteStream),
    /// The whole file, on this machine already; it is used where it lies and never changed.
    Local(PathBuf),
}

impl Opened {
    /// A stream of bytes held in memory.
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        struct Once(Option<Bytes>);
        impl Stream for Once {
            type Item = Result<Bytes>;

            fn poll_next(
                mut self: Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Option<Self::Item>> {
                std::task::Poll::Ready(self.0.take().map(Ok))
            }
        }
        Self::Stream(Box::pin(Once(Some(bytes.into()))))
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(request) => f.debug_tuple("Request").field(request).finish(),
            Self::Stream(_) => f.write_str("Stream"),
            Self::Local(path) => f.debug_tuple("Local").field(path).finish(),
        }
    }
}

/// A GET request with headers that may be secret. `Debug` shows neither query nor header values.
#[derive(Clone)]
#[non_exhaustive]
pub struct Request {
    /// The URL. Its query may carry a signature.
    pub url: String,
    /// Headers. `Authorization` goes to this URL's host only and never across a redirect to another.
    pub headers: Vec<(String, String)>,
}

impl Request {
    /// A request without headers.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), headers: Vec::new() }
    }

    /// Adds a header.
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        let url = self.url.split('?').next().unwrap_or_default();
        // Credentials may stand before the host.
        let url = match url.split_once("://") {
            Some((scheme, rest)) => match rest.split_once('@') {
                Some((before, after)) if !before.contains('/') => format!("{scheme}://{after}"),
                _ => url.to_owned(),
            },
            None => url.to_owned(),
        };
        f.debug_struct("Request").field("url", &url).field("headers", &names).finish()
    }
}

/// An HTTP answer that is no file. `Debug` shows no header values.
#[derive(Clone)]
#[non_exhaustive]
pub struct Refusal {
    /// The status: 401, 403, 404, ...
    pub status: u16,
    /// Its headers, names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Refusal {
    /// An answer of `status` with `headers`, whose names are in lower case.
    pub fn new(status: u16, headers: Vec<(String, String)>) -> Self {
        Self { status, headers }
    }

    /// The first header called `name`, in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusal").field("status", &self.status).finish_non_exhaustive()
    }
}

/// Where the files of an artifact are published, in the cache of another tool: content under the name of its digest, and
/// a tree of links to it for each revision. Everything is an absolute path below [`Placement::root`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Placement {
    /// The folder of that cache which holds all of it.
    pub root: PathBuf,
    /// One for each file of the manifest, in its order.
    pub files: Vec<PlacedFile>,
    /// Small text files that name the revision, with their content. Written last, each only once every file is there.
    pub refs: Vec<(PathBuf, String)>,
    /// The folder of all trees of links: content that a link below it points to is in use.
    pub links: PathBuf,
}

impl Placement {
    /// Content and links of an artifact below `root`, all trees of links below `links`.
    pub fn new(root: impl Into<PathBuf>, links: impl Into<PathBuf>, files: Vec<PlacedFile>) -> Self {
        Self { root: root.into(), files, refs: Vec::new(), links: links.into() }
    }

    /// Adds a text file that names the revision.
    pub fn with_ref(mut self, path: impl Into<PathBuf>, content: impl Into<String>) -> Self {
        self.refs.push((path.into(), content.into()));
        self
    }
}

/// Where one file is published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PlacedFile {
    /// The content, shared by all revisions that have it.
    pub blob: PathBuf,
    /// A relative symbolic link to it; the file itself where links are not to be had. This is the path that is used.
    pub link: PathBuf,
}

impl PlacedFile {
    /// The content at `blob`, used through `link`.
    pub fn new(blob: impl Into<PathBuf>, link: impl Into<PathBuf>) -> Self {
        Self { blob: blob.into(), link: link.into() }
    }
}

/// A revision that a source has.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Revision {
    /// Its name: a tag, a branch, a commit.
    pub name: String,
    /// The immutable revision it stands for now.
    pub pinned: String,
}

impl Revision {
    /// The revision `name`, which now stands for `pinned`.
    pub fn new(name: impl Into<String>, pinned: impl Into<String>) -> Self {
        Self { name: name.into(), pinned: pinned.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_of_a_request_shows_no_secret() {
        let request =
            Request::new("https://user:pw@host/a?X-Signature=abc").with_header("Authorization", "Bearer t0ken");
        let shown = format!("{:?}", Opened::Request(request));
        for secret in ["pw", "abc", "t0ken"] {
            assert!(!shown.contains(secret), "{shown}");
        }
        assert!(shown.contains("host/a") && shown.contains("Authorization"), "{shown}");
    }
}
