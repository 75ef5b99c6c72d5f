//! What an asset is made with.

use super::Content;

/// A file of a release.
#[derive(Debug, Clone)]
#[must_use = "an asset is served once a release has it"]
pub struct Asset {
    pub(super) name: String,
    pub(super) content: Content,
    pub(super) content_type: String,
    pub(super) size: Option<u64>,
    pub(super) digest: Digest,
    pub(super) uploading: bool,
    pub(super) download_count: u64,
}

/// What the API tells as the digest of an asset.
#[derive(Debug, Clone)]
pub(super) enum Digest {
    True,
    Absent,
    Other(String),
}

impl Asset {
    /// An asset whose digest the API gives. Any name is taken, also one that GitHub would change or a careful client
    /// refuses.
    pub fn new(name: impl Into<String>, content: impl Into<Content>) -> Self {
        Self {
            name: name.into(),
            content: content.into(),
            content_type: "application/octet-stream".into(),
            size: None,
            digest: Digest::True,
            uploading: false,
            download_count: 0,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets the media type that the API tells. The object store sends `application/octet-stream` whatever it is.
    pub fn with_content_type(mut self, content_type: impl Into<String>) -> Self {
        self.content_type = content_type.into();
        self
    }

    /// Lets the API give no digest, as for what was uploaded before June 2025.
    pub fn without_digest(mut self) -> Self {
        self.digest = Digest::Absent;
        self
    }

    /// Lets the API give this digest, right or wrong: `sha256:` and the hex digits.
    pub fn with_digest(mut self, digest: impl Into<String>) -> Self {
        self.digest = Digest::Other(digest.into());
        self
    }

    /// Lets the API tell this size, right or wrong.
    pub fn with_size(mut self, bytes: u64) -> Self {
        self.size = Some(bytes);
        self
    }

    /// Makes it one whose upload has not come to its end: its state is `starter`, its size 0, it has no digest, and the
    /// URL that one is redirected to leads to nothing.
    pub fn uploading(mut self) -> Self {
        self.uploading = true;
        self
    }

    /// Sets how often it was downloaded.
    pub fn with_download_count(mut self, count: u64) -> Self {
        self.download_count = count;
        self
    }

    /// Computes its digest if the API is to tell it: that may take a while, so it is not to be left to a request.
    pub(super) fn hash(&self) {
        if matches!(self.digest, Digest::True) {
            self.content.sha256();
        }
    }
}
